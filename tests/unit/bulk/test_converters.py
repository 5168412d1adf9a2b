"""Converted maps are read back, unchanged, by the packages of the formats."""

import gc
import json
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import random_extractor
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from featx import ArgumentError, FeatureDataset, FeatureExtractWrapper, MissingPackageError, OutputError, extract
from featx.bulk import converters
from featx.bulk.converters import Format, convert
from featx.cli import app
from featx.whole_files import part_name

DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return random_extractor("mobilenetv3_small_050", out_indices=[1, 4])


@pytest.fixture
def images(tmp_path) -> Path:
    """Five images of one color each, one wider than high; the third is none."""
    folder = tmp_path / "in"
    (folder / "a.b").mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (60 if number == 4 else 40, 40), (50 * number, 255 - 50 * number, 99)).save(
            folder / f"a.b/ä {number}.png"
        )
    (folder / "a.b/ä 2.png").write_text("no image")
    return folder


def run(images: Path, extractor: FeatureExtractWrapper, out: Path, **options) -> Path:
    extract(images, extractor, out, **{"size": 32, "batch_size": 2, "rows_per_shard": 3, **options})
    return out


def exact(map_: Tensor) -> np.ndarray:
    """As NumPy has it: bfloat16 in single precision, which holds all of its values."""
    return (map_.float() if map_.dtype == torch.bfloat16 else map_).numpy()


def assert_same(ours: np.ndarray, map_: Tensor) -> None:
    assert ours.dtype == exact(map_).dtype
    np.testing.assert_array_equal(ours, exact(map_))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pooling", ["none", "mean"])
def test_arrays_are_read_by_numpy(tmp_path, images, extractor, dtype, pooling):
    maps = run(images, extractor, tmp_path / "maps", dtype=dtype, pooling=pooling)
    assert convert(maps, tmp_path / "out", "npy") == 4
    dataset = FeatureDataset(maps)
    ids = json.loads((tmp_path / "out/ids.json").read_text())
    assert ids == dataset.ids == [f"a.b/ä {number}.png" for number in (0, 1, 3, 4)]
    arrays = {level: np.load(tmp_path / f"out/{level}.npy", mmap_mode="r") for level in dataset.levels}
    for row, features in enumerate(dataset):
        for level, map_ in features.maps.items():
            assert_same(arrays[level][row], map_)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("options", [{"dtype": dtype} for dtype in DTYPES] + [{"keep_aspect": True}], ids=str)
def test_tars_are_read_by_webdataset(tmp_path, images, extractor, options, monkeypatch):
    import webdataset

    monkeypatch.setattr(converters, "TAR_BYTES", 1000)  # so that there are several
    maps = run(images, extractor, tmp_path / "maps", pooling=["none", "max"], **options)
    assert convert(maps, tmp_path / "out", "webdataset") == 4
    tars = sorted(map(str, (tmp_path / "out").iterdir()))
    assert len(tars) > 1
    dataset = FeatureDataset(maps)
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    gc.collect()  # it leaves the closing of its files to the collector, which complains
    for row, (sample, features) in enumerate(zip(samples, dataset, strict=True)):
        width, height = features.size
        assert sample["__key__"] == f"{row:09d}"
        assert sample["json"] == {"id": features.id, "width": width, "height": height}
        for level, map_ in features.maps.items():
            assert_same(sample[f"{level}.npy"], map_)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 2**20])
def test_groups_are_read_by_zarr(tmp_path, images, extractor, dtype, chunk, monkeypatch):
    import zarr

    monkeypatch.setattr(converters, "CHUNK_BYTES", chunk)
    maps = run(images, extractor, tmp_path / "maps", dtype=dtype, pooling=["none", "gem"])
    assert convert(maps, tmp_path / "out", "zarr") == 4
    dataset, group = FeatureDataset(maps), zarr.open_group(tmp_path / "out", mode="r")
    assert json.loads((tmp_path / "out/ids.json").read_text()) == dataset.ids
    for row, features in enumerate(dataset):
        assert (group["width"][row], group["height"][row]) == features.size
        for level, map_ in features.maps.items():
            assert_same(group[level][row], map_)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tables_are_read_by_datasets(tmp_path, images, extractor, dtype, monkeypatch):
    import datasets

    monkeypatch.setattr(converters, "TABLE_ROWS", 3)
    maps = run(images, extractor, tmp_path / "maps", dtype=dtype, pooling=["mean", "max"])
    assert convert(maps, tmp_path / "out.parquet", "parquet") == 4
    read = datasets.Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    dataset = FeatureDataset(maps)
    for row, features in zip(read.with_format("numpy"), dataset, strict=True):
        assert row["id"] == features.id
        assert (row["width"], row["height"]) == features.size
        for level, map_ in features.maps.items():
            np.testing.assert_array_equal(row[level], exact(map_))


def test_a_table_is_loaded_by_its_name_as_datasets_are(tmp_path, images, extractor):
    import datasets

    maps = run(images, extractor, tmp_path / "maps", pooling="mean")
    convert(maps, tmp_path / "out.parquet", "parquet")
    files, cache = str(tmp_path / "out.parquet"), str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert loaded["id"] == FeatureDataset(maps).ids
    loaded.save_to_disk(tmp_path / "saved")
    again = datasets.load_from_disk(tmp_path / "saved").with_format("torch")
    for row, features in zip(again, FeatureDataset(maps), strict=True):
        assert torch.equal(row["blocks.5"], features.maps["blocks.5"])


def test_tables_are_read_by_pyarrow_with_types_and_lengths(tmp_path, images, extractor):
    import pyarrow.parquet as pq

    maps = run(images, extractor, tmp_path / "maps", dtype="float16", pooling="mean")
    convert(maps, tmp_path / "out.parquet", "parquet")
    table, dataset = pq.read_table(tmp_path / "out.parquet"), FeatureDataset(maps)
    for level, chs in zip(dataset.levels, extractor.feature_info.channels(), strict=True):
        assert str(table.schema.field(level).type) == f"fixed_size_list<element: halffloat>[{chs}]"


# what is refused


@pytest.mark.parametrize("format", ["npy", "zarr"])
def test_maps_of_several_shapes_are_refused(tmp_path, images, extractor, format):
    maps = run(images, extractor, tmp_path / "maps", keep_aspect=True)
    with pytest.raises(
        ArgumentError, match=rf"{format} takes maps of one shape, and level .* has 2, such as .*: choose"
    ):
        convert(maps, tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_a_table_of_maps_is_refused(tmp_path, images, extractor):
    maps = run(images, extractor, tmp_path / "maps", pooling=["mean", "none"])
    with pytest.raises(ArgumentError, match=r"parquet takes vectors, and level .* has maps .*: choose npy or zarr"):
        convert(maps, tmp_path / "out", "parquet")


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"format='hdf5': choose one of \('npy', 'webdataset', 'zarr', 'parquet'\)"):
        convert(tmp_path, tmp_path / "out", "hdf5")  # pyright: ignore[reportArgumentType]


def test_what_exists_is_not_replaced(tmp_path, images, extractor):
    maps = run(images, extractor, tmp_path / "maps")
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="out exists: name a new one"):
        convert(maps, tmp_path / "out", "npy")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("format", get_args(Format))
def test_a_folder_with_no_image_is_refused(tmp_path, images, extractor, format):
    for path in images.glob("*/*"):
        path.write_text("no image")
    maps = run(images, extractor, tmp_path / "maps")
    with pytest.raises(ArgumentError, match="has no image that was extracted, so there is nothing to write"):
        convert(maps, tmp_path / "out", format)


@pytest.mark.parametrize("format", get_args(Format))
def test_a_failure_leaves_nothing(tmp_path, images, extractor, format, monkeypatch):
    maps = run(images, extractor, tmp_path / "maps", pooling="mean")
    read, failing = FeatureDataset.__getitem__, iter([False, False, True])

    def fail(dataset: FeatureDataset, index: int):
        if next(failing, False):
            raise OSError(28, "No space left on device")
        return read(dataset, index)

    monkeypatch.setattr(FeatureDataset, "__getitem__", fail)
    with pytest.raises(OutputError, match=r"cannot write .*out: .*No space left on device"):
        convert(maps, tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_what_a_killed_conversion_left_is_replaced(tmp_path, images, extractor):
    maps = run(images, extractor, tmp_path / "maps", pooling="mean")
    part = tmp_path / part_name("out")
    part.mkdir()
    (part / "half").touch()
    convert(maps, tmp_path / "out", "npy")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".npy") == ["ids.json"]
    assert not part.exists()


@pytest.mark.parametrize("format", ["webdataset", "zarr"])
def test_a_missing_package_is_named(tmp_path, images, extractor, format, monkeypatch):
    maps = run(images, extractor, tmp_path / "maps")
    for name in [name for name in sys.modules if name.split(".")[0] == format] or [format]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, format, None)
    message = rf"writing {format} needs the package of that name: pip install 'featx\[{format}\]'"
    with pytest.raises(MissingPackageError, match=message):
        convert(maps, tmp_path / "out", format)


def test_the_command_writes_the_format_named(tmp_path, images, extractor):
    maps = run(images, extractor, tmp_path / "maps", pooling="mean")
    done = CliRunner().invoke(app, ["convert", str(maps), "--out", str(tmp_path / "a.parquet"), "--format", "parquet"])
    assert done.exit_code == 0
    assert f"{tmp_path / 'a.parquet'}: 4 images as parquet" in done.output
    assert (tmp_path / "a.parquet").is_file()
