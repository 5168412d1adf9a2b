"""The description of an extractor in the metadata of a graph's file, from which the extractor is restored."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..features import FeatureInfo, Levels
from ..json_checks import JsonError, Value, parsed
from ..preprocessing import DataConfig

KEY = "featx"  # of the description in the metadata
VERSION = 2
DTYPES = {f"{dtype}".removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
DTYPES |= {"float64": torch.float64}
OUTPUTS = ("list", "dict", "tokens")
LARGEST = 2**20  # of channels, strides and pixels


@dataclass(frozen=True, slots=True)
class ShapeGuard:
    """The image shapes that a graph supports.

    Attributes:
        shape: (N, C, H, W) of the example.
        free: The axes that may have any other length.
    """

    shape: tuple[int, ...]
    free: frozenset[int]

    def __contains__(self, shape: Sequence[int]) -> bool:
        return all(axis in self.free or length == self.shape[axis] for axis, length in enumerate(shape))

    def __str__(self) -> str:
        batch = "any batch of" if 0 in self.free else f"batches of {self.shape[0]}"
        size = "" if {2, 3} <= self.free else f" of {self.shape[2]}x{self.shape[3]} pixels"
        return f"{batch} images{size or ' of most sizes'}"


@dataclass(frozen=True)
class Description:
    """The properties of an extractor, without its tensors and its code.

    Attributes:
        levels: The returned levels, in order.
        output: "list", "dict" or "tokens".
        in_chans: Channels of the images; None if unknown.
        size_divisor: The number of which image sides must be multiples.
        fixed_size: The only supported (height, width) in pixels, or None.
        data_config: Preprocessing of the images, or None.
        guard: The image shapes that the graph supports.
        dtype: Dtype of the maps.
        computes: "float32", "bfloat16" or "int8".
        agreement: In a lower precision, the cosine similarity of each level's map with the original's.
        smallest: The shortest supported side of images in pixels, or None.
        in_float32: In a lower precision, the paths of the layers that stay in float32.
    """

    levels: Levels
    output: str
    in_chans: int | None
    size_divisor: int
    fixed_size: tuple[int, int] | None
    data_config: DataConfig | None
    guard: ShapeGuard
    dtype: torch.dtype
    computes: str
    agreement: dict[str, float] | None = None
    smallest: int | None = None
    in_float32: tuple[str, ...] = ()

    def output_names(self) -> list[str]:
        """Names of the graph's outputs, valid in any format: a map per level, or its prefix tokens and the map.

        They are in ascending order of levels, whatever the order of `levels`.
        """
        names = [self.levels[position].name for position in ascending(self.levels)]
        safe = _distinct(["".join(c if c.isalnum() and c.isascii() else "_" for c in name) for name in names])
        return [part for name in safe for part in (f"{name}_tokens", name)] if self.output == "tokens" else safe


def ascending(levels: Levels) -> list[int]:
    """Positions in the returned levels, from the shallowest level to the deepest."""
    return sorted(range(len(levels)), key=lambda position: levels.out_indices[position])


def to_json(description: Description) -> str:
    """The description as JSON."""
    info = [[row["num_chs"], row["reduction"], row["module"]] for row in description.levels.info]
    fields = {name: value for name, value in vars(description).items() if name not in ("levels", "dtype", "guard")}
    config = None if description.data_config is None else asdict(description.data_config)
    return json.dumps(
        {
            **fields,
            "version": VERSION,
            "levels": info,
            "out_indices": description.levels.out_indices,
            "data_config": config,
            "dtype": f"{description.dtype}".removeprefix("torch."),
            "shape": description.guard.shape,
            "free": sorted(description.guard.free),
        }
    )


def from_json(text: str | bytes, file: object) -> Description:
    """The description that a JSON text contains; CheckpointError, which names the file, if it is invalid."""
    try:
        return _read(parsed(text))
    except JsonError as error:
        raise CheckpointError(
            f"{file} describes no extractor that this version of featx knows ({error}): write it again with "
            "featx.export"
        ) from error


def _read(stated: Value) -> Description:
    if stated["version"].held != VERSION:
        raise stated["version"].mismatch(f"{VERSION}")
    levels, guard, config = _levels(stated), _guard(stated), stated.get("data_config")
    in_chans, fixed = _number(stated, "in_chans"), stated.get("fixed_size")
    if in_chans not in (None, guard.shape[1]):
        raise stated["in_chans"].mismatch(f"{guard.shape[1]}, as its shape says")
    agreement, in_float32 = stated.get("agreement"), stated.get("in_float32")
    return Description(
        levels,
        stated["output"].text(OUTPUTS),
        in_chans,
        stated["size_divisor"].number(1, LARGEST),
        None if fixed is None else (fixed.numbers(1, LARGEST, 2)[0], fixed.array()[1]),
        None if config is None else DataConfig.from_json(config),
        guard,
        DTYPES[stated["dtype"].text(DTYPES)],
        stated["computes"].text(("float32", "bfloat16", "int8")),
        None if agreement is None else {name: agreement[name].real() for name in agreement.object()},
        _number(stated, "smallest"),
        () if in_float32 is None else tuple(path.text() for path in in_float32.each()),
    )


def _number(stated: Value, key: str) -> int | None:
    number = stated.get(key)
    return None if number is None else number.number(1, LARGEST)


def _levels(stated: Value) -> Levels:
    info = []
    for level in stated["levels"].each():
        if len(level.array()) != 3:
            raise level.mismatch("chs, reduction and name")
        chs, reduction, name = level.each()
        info.append(FeatureInfo(chs.number(1, LARGEST), reduction.number(1, LARGEST), name.text()))
    if len({level.name for level in info}) < len(info):
        raise stated["levels"].mismatch("levels of different names")
    out_indices = stated["out_indices"].numbers(0, len(info) - 1)
    if not out_indices or len(set(out_indices)) < len(out_indices):
        raise stated["out_indices"].mismatch("the index of a level, or several")
    return Levels(info, out_indices)


def _guard(stated: Value) -> ShapeGuard:
    shape, free = stated["shape"].numbers(1, LARGEST, 4), stated["free"].numbers(0, 3)
    return ShapeGuard(tuple(shape), frozenset(free))


def _distinct(names: list[str]) -> list[str]:
    """The names; a repeated one gets a number as suffix."""
    distinct: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in range(2, len(names) + 2))
        unused = (other for other in numbered if other not in names + distinct)
        distinct.append(name if name not in distinct else next(unused))
    return distinct


def weights_file(path: Path) -> Path:
    """The file next to an ONNX file that contains its weights if they are too large for the ONNX file."""
    return path.with_name(f"{path.name}.data")
