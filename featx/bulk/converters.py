"""Conversion of stored maps to NumPy, WebDataset, Zarr and Parquet."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, MissingPackageError
from ..whole_files import alone, local, new_file_or_folder, require_new
from .feature_dataset import FeatureDataset, Features
from .output_folder import require_complete
from .parquet_reader import cell_text, require_pyarrow

Format = Literal["npy", "webdataset", "zarr", "parquet"]
TAR_BYTES = 512 * 2**20  # of a tar, approximately
TABLE_ROWS = 4096  # per row group
MODULES: Mapping[str, str] = {"webdataset": "webdataset.writer", "zarr": "zarr"}
CHUNK_BYTES = 2**20  # of a Zarr chunk, approximately

RESERVED = ("id", "width", "height", "json")  # names of columns and files that no level may have

Levels = Mapping[str, tuple[np.dtype, tuple[int, ...]]]  # dtype and shape of a row, by level
Writer = Callable[[FeatureDataset, Path], None]


def convert(folder: str | Path, out: str | Path, format: Format, *, partial: bool = False) -> int:
    """Convert a folder of maps to another format.

    The formats are:

    - "npy": for each level LEVEL.npy (images, chs, h, w) or (images, chs), and ids.json, a list in the same order.
    - "webdataset": tars of about 512 MiB; a sample has LEVEL.npy per level, and json with id, width and height.
    - "zarr": a group with an array per level as above, the arrays width and height, and ids.json.
    - "parquet": one file with a row per image: id, width, height and a list of numbers per level; vectors only.

    bfloat16, which NumPy does not support, becomes float32. Only "webdataset" supports maps of different shapes. The
    output is written atomically.

    Args:
        folder: a path, or an address that fsspec supports.
        out: path to write, which must not exist.
        format: one of the above.
        partial: allow an unfinished folder; images of missing files are left out.

    Returns:
        The number of images.

    Raises:
        ArgumentError: the format is unknown or does not support the shapes, or all images failed.
        OutputError: the folder has no maps or is unfinished, or `out` exists, is an address, is being written by
            another process or cannot be written.
        MissingPackageError: the package of the format is not installed.
    """
    if format not in WRITERS:
        raise ArgumentError(f"format={format!r}: choose one of {tuple(WRITERS)}")
    out = local(out)
    require_new(out)
    require_package(format)
    dataset = FeatureDataset(folder)
    require_complete(f"{dataset.folder} is unfinished", dataset._meta, dataset._names, partial)
    if unsafe := [level for level in dataset.levels if not _is_file_name(level) or level in RESERVED]:
        raise ArgumentError(f"level {unsafe[0]!r} of {dataset.folder} cannot be the name of a file or a column")
    if not len(dataset):
        raise ArgumentError(f"{dataset.folder} has no image that was extracted, so there is nothing to write")
    with alone(out), new_file_or_folder(out) as part:
        WRITERS[format](dataset, part)
    return len(dataset)


def _is_file_name(level: str) -> bool:
    """Whether a name is safe as a part of a file name."""
    return level.strip(".") != "" and not set(level) & set('/\\:*?"<>|')


def require_package(format: Format) -> Any:
    """The optional module that writes a format, if any; MissingPackageError if it is not installed."""
    try:
        return import_module(MODULES[format]) if format in MODULES else None
    except ImportError as error:
        raise MissingPackageError(
            f"writing {format} needs the package of that name: pip install 'featx[{format}]'"
        ) from error


def _numbers(map_: Tensor) -> np.ndarray:
    return (map_.float() if map_.dtype == torch.bfloat16 else map_).numpy()


def _levels(dataset: FeatureDataset, format: Format) -> Levels:
    """Dtype and shape of the rows of each level; ArgumentError if rows of a level have different shapes."""
    first = {level: _numbers(map_) for level, map_ in dataset[0].maps.items()}
    for level, numbers in first.items():
        shapes = {header.shape(level, row) for header in dataset._headers for row in range(header.rows)}
        if len(shapes) > 1:
            raise ArgumentError(
                f"{format} takes maps of one shape, and level {level} has {len(shapes)}, such as {sorted(shapes)[:3]}: "
                "choose webdataset"
            )
        if format == "parquet" and numbers.ndim > 1:
            raise ArgumentError(
                f"parquet takes vectors, and level {level} has maps {numbers.shape}: choose npy or zarr"
            )
    return {level: (numbers.dtype, numbers.shape) for level, numbers in first.items()}


def _write_npy(dataset: FeatureDataset, out: Path) -> None:
    """Write arrays without memory mapping, because a full disk kills a process that writes to mapped memory."""
    out.mkdir()
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for level, (dtype, shape) in _levels(dataset, "npy").items():
            files[level] = stack.enter_context((out / f"{level}.npy").open("wb"))
            header = {
                "descr": np.lib.format.dtype_to_descr(dtype),
                "fortran_order": False,
                "shape": (len(dataset), *shape),
            }
            np.lib.format.write_array_header_1_0(files[level], header)
        for features in _each(dataset):
            for level, map_ in features.maps.items():
                files[level].write(_numbers(map_).data)
    _write_ids(dataset, out)


def _write_webdataset(dataset: FeatureDataset, out: Path) -> None:
    writing = require_package("webdataset")
    out.mkdir()
    row = tar = 0
    while row < len(dataset):
        nbytes = 0
        with (out / f"{tar:06d}.tar").open("wb") as file, writing.TarWriter(file) as writer:
            while row < len(dataset) and nbytes < TAR_BYTES:
                nbytes += writer.write(_sample(row, dataset[row]))
                row += 1
        tar += 1


def _sample(row: int, features: Features) -> dict[str, Any]:
    """A sample of WebDataset. Its key is a number, because an id may contain dots, which end a key."""
    width, height = features.size
    maps = {f"{level}.npy": _numbers(map_) for level, map_ in features.maps.items()}
    return {"__key__": f"{row:09d}", "json": {"id": features.id, "width": width, "height": height}, **maps}


def _write_zarr(dataset: FeatureDataset, out: Path) -> None:
    """Write with an event loop that ends here, because Zarr's own loop keeps writing after an error.

    A thread runs it, because a notebook's thread already runs a loop.
    """
    require_package("zarr")
    levels = _levels(dataset, "zarr")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, _write_arrays(dataset, out, levels)).result()
    _write_ids(dataset, out)  # Zarr has no string type that all readers support


async def _write_arrays(dataset: FeatureDataset, out: Path, levels: Levels) -> None:
    """Write whole chunks, because writing a part of a chunk reads and writes all of it."""
    count = len(dataset)
    nbytes = sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in levels.values())
    rows = min(count, max(1, CHUNK_BYTES * len(levels) // nbytes))
    group: Any = await import_module("zarr.api.asynchronous").open_group(out, mode="w")
    arrays = {
        level: await group.create_array(level, shape=(count, *shape), chunks=(rows, *shape), dtype=dtype)
        for level, (dtype, shape) in levels.items()
    }
    sizes: list[tuple[int, int]] = []
    for start in range(0, count, rows):
        part = [dataset[row] for row in range(start, min(start + rows, count))]
        sizes += [features.size for features in part]
        for level, array in arrays.items():
            numbers = np.stack([_numbers(features.maps[level]) for features in part])
            await array.setitem(slice(start, start + rows), numbers)
    for name, column in zip(("width", "height"), np.array(sizes, np.int32).T, strict=True):
        await group.create_array(name, data=np.ascontiguousarray(column))


def _write_parquet(dataset: FeatureDataset, out: Path) -> None:
    pyarrow, parquet = require_pyarrow()
    levels = _levels(dataset, "parquet")
    number = pyarrow.int32()
    vectors = {
        level: pyarrow.list_(pyarrow.from_numpy_dtype(dtype), shape[0]) for level, (dtype, shape) in levels.items()
    }
    schema = pyarrow.schema([("id", pyarrow.string()), ("width", number), ("height", number), *vectors.items()])
    with out.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, len(dataset), TABLE_ROWS):
            part = [dataset[row] for row in range(start, min(start + TABLE_ROWS, len(dataset)))]
            widths, heights = zip(*(features.size for features in part), strict=True)
            columns: list[Any] = [[cell_text(features.id) for features in part], widths, heights]
            columns = [pyarrow.array(column, type_) for column, type_ in zip(columns, schema.types, strict=False)]
            for level, type_ in vectors.items():
                values = np.concatenate([_numbers(features.maps[level]) for features in part])
                columns.append(pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values), type=type_))
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


def _write_ids(dataset: FeatureDataset, out: Path) -> None:
    (out / "ids.json").write_text(json.dumps(dataset.ids))


def _each(dataset: FeatureDataset) -> Iterator[Any]:
    return (dataset[row] for row in range(len(dataset)))


WRITERS: Mapping[str, Writer] = {
    "npy": _write_npy,
    "webdataset": _write_webdataset,
    "zarr": _write_zarr,
    "parquet": _write_parquet,
}
