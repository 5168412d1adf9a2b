"""`featx stats` reports what the files of a folder contain."""

import json
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.extraction import extract_threes, plan_of, run_stats, small_extractor

import featx
from featx import FeatureDataset, FeatureExtractWrapper, OutputError
from featx.bulk import stats
from featx.bulk.header import read_header
from featx.bulk.preview import save_picture
from featx.bulk.shard import Shard, shard_name, write_shard
from featx.bulk.statistics import READ, _Moments, _rows

EXACT = 1e-12  # of sums in double precision that are added in another order


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return small_extractor()


@pytest.fixture
def images(tmp_path) -> Path:
    """Seven images of one color each, two of them wider than high; the third and the fifth are none."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(7):
        size = (60, 40) if number > 4 else (40, 40)
        Image.new("RGB", size, (35 * number, 255 - 35 * number, 99)).save(folder / f"{number}.png")
    (folder / "2.png").write_text("no image")
    (folder / "4.png").write_text("")
    return folder


def run(images: Path, extractor: FeatureExtractWrapper, out: Path, **options) -> Path:
    extract_threes(images, extractor, out, **options)
    return out


def spoil(file: Path, level: str, row: int, value: float) -> None:
    """Put a value into a row of a shard, as a defect of a disk might."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    tensors[level][row].view(-1)[3] = value
    save_file(tensors, file, metadata)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"keep_aspect": True}, {"pooling": ["none", "mean"]}], ids=str)
def test_numbers_of_levels_are_those_of_all_their_values(tmp_path, images, extractor, dtype, options):
    out = run(images, extractor, tmp_path / "out", dtype=dtype, **options)
    dataset, found = FeatureDataset(out), stats(out)
    assert [level.name for level in found.levels] == dataset.levels
    for level in found.levels:
        maps = [features.maps[level.name] for features in dataset]
        values = np.concatenate([map_.double().numpy().ravel() for map_ in maps])
        assert level.values == values.size
        assert level.mean == pytest.approx(values.mean(), rel=EXACT, abs=EXACT)
        assert level.std == pytest.approx(values.std(), rel=EXACT)
        assert (level.low, level.high) == (values.min(), values.max())
        assert level.shapes == Counter(tuple(map_.shape) for map_ in maps)
        assert not level.not_finite


def test_parts_read_apart_give_the_numbers_of_the_whole(monkeypatch, tmp_path, images, extractor):
    out = run(images, extractor, tmp_path / "out")
    whole = stats(out)
    for size in (1, 3000):
        monkeypatch.setattr(import_module("featx.bulk.statistics"), "READ", size)
        for one, other in zip(stats(out).levels, whole.levels, strict=True):
            assert one.mean == pytest.approx(other.mean, rel=EXACT)
            assert one.std == pytest.approx(other.std, rel=EXACT)
            assert (one.values, one.shapes) == (other.values, other.shapes)


def test_files_are_read_in_parts_of_bounded_size(tmp_path):
    rows = torch.randn(10, READ // 4 // 4)  # a quarter of what is read at once each
    plan = plan_of("a", rows.shape[1], 10)
    ids = [*"abcdefghij"]
    write_shard(tmp_path, Shard(0, plan.fingerprint, ["a"], ids, ids, [(4, 4)] * 10, [None] * 10, [[*rows]]))
    file = str(tmp_path / shard_name(0))
    parts = list(_rows(file, read_header(file, plan), "a"))
    assert [(first, len(part)) for first, part in parts] == [(0, 4), (4, 4), (8, 2)]
    assert torch.equal(torch.cat([part for _, part in parts]), rows)


def test_a_large_mean_costs_no_digits():
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e6
    moments = _Moments()
    for part in values.split(999):
        moments.add(part)
    assert moments.mean == pytest.approx(values.numpy().mean(), rel=EXACT)
    # the deviations themselves have 10 digits left, since the values have 16 of which the mean takes 6
    assert (moments.squares / moments.count) ** 0.5 == pytest.approx(values.numpy().std(), rel=1e-10)


def test_images_files_and_errors_are_counted(tmp_path, images, extractor):
    out = run(images, extractor, tmp_path / "out")
    found = stats(str(out))
    assert (found.model, found.dtype, found.planned) == ("MobileNetV3", "float32", (7, 3))
    assert (found.written, found.shards, found.missing, found.sound) == (5, 3, 0, True)
    assert found.nbytes == sum(file.stat().st_size for file in out.glob("*.safetensors"))
    assert found.failed == {"not an image in any format that Pillow reads": 1, "the file is empty": 1}


def test_what_is_still_to_do_is_counted(tmp_path, images, extractor):
    found = stats(run(images, extractor, tmp_path / "out", shard="0/2"), partial=True)
    assert (found.shards, found.written, found.failed.total(), found.missing) == (2, 3, 1, 3)


def test_a_folder_with_no_image_has_no_numbers(tmp_path, images, extractor):
    for path in images.iterdir():
        path.write_text("no image")
    found = stats(run(images, extractor, tmp_path / "out"))
    assert (found.written, found.missing) == (0, 0)
    assert all(level.values == 0 and np.isnan(level.mean) for level in found.levels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named_and_left_out(tmp_path, images, extractor, value):
    out = run(images, extractor, tmp_path / "out")
    name = extractor.feature_info.names()[1]
    before = stats(out).levels[1].values
    spoil(out / "maps-000001.safetensors", name, 1, value)
    found = stats(out)
    assert [level.not_finite for level in found.levels] == [[], ["5.png"]]
    assert found.levels[1].values == before - 1
    assert np.isfinite(found.levels[1].mean)
    assert not found.sound


def test_files_that_are_damaged_or_of_another_extraction_are_named(tmp_path, images, extractor):
    out = run(images, extractor, tmp_path / "out")
    other = run(images, extractor, tmp_path / "other", dtype="float16")
    cut = out / "maps-000000.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    (out / "maps-000001.safetensors").write_bytes((other / "maps-000001.safetensors").read_bytes())
    found = stats(out)
    assert "is not a complete shard of maps: it is cut short" in found.damaged[str(cut)]
    assert "is of another extraction" in found.damaged[str(out / "maps-000001.safetensors")]
    assert (found.shards, found.sound) == (1, False)


def test_a_folder_at_an_address_is_read_too(tmp_path, images, extractor):
    out = run(images, extractor, tmp_path / "out")
    assert stats(f"file://{out}").levels == stats(out).levels


def test_a_folder_without_maps_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"meta.json does not exist: expected a folder that featx extract made"):
        stats(tmp_path)


# the picture


def test_a_picture_shows_images_as_the_model_saw_them(tmp_path, images, extractor):
    out = run(images, extractor, tmp_path / "out")
    save_picture(out, tmp_path / "few.png", 2)
    save_picture(out, tmp_path / "all.png", 99)
    with Image.open(tmp_path / "few.png") as few, Image.open(tmp_path / "all.png") as every:
        assert few.width == every.width
        assert few.height * 5 == every.height * 2
        colors = {color for _, color in few.convert("RGB").getcolors(2**24) or []}
    assert (0, 255, 99) in colors  # of the first image
    assert (210, 45, 99) in colors  # and of the last


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_a_picture_is_made_without_the_images_too(tmp_path, images, extractor, keep_aspect):
    out = run(images, extractor, tmp_path / "out", keep_aspect=keep_aspect, dtype="bfloat16")
    for path in images.iterdir():
        path.unlink()
    save_picture(out, tmp_path / "out.png", 1)
    with Image.open(tmp_path / "out.png") as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(2**24) or []}
    assert (128, 128, 128) in colors


def test_a_picture_of_vectors_is_refused(tmp_path, images, extractor):
    out = run(images, extractor, tmp_path / "out", pooling="mean")
    with pytest.raises(featx.ArgumentError, match="has no maps to show: its levels are stored as vectors"):
        save_picture(out, tmp_path / "out.png")


def test_a_picture_of_no_image_or_another_format_is_refused(tmp_path, images, extractor):
    out = run(images, extractor, tmp_path / "out")
    with pytest.raises(featx.ArgumentError, match="count=0: expected at least one image"):
        save_picture(out, tmp_path / "out.png", 0)
    with pytest.raises(OutputError, match=r"out.jpg: name a picture that ends with .png"):
        save_picture(out, tmp_path / "out.jpg")


# the command


def test_the_command_shows_a_table(tmp_path, images, extractor):
    out = run(images, extractor, tmp_path / "out", keep_aspect=True, pooling=["none", "max"])
    done = run_stats(out, "--picture", tmp_path / "shown.png", "--images", 2)
    assert done.exit_code == 0
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert "MobileNetV3, stored as float32" in lines
    assert "5 of 7 images, 2 failed, 0 still to do" in lines
    first, second = stats(out).levels
    shape = "×".join(map(str, first.shapes.most_common()[0][0]))
    numbers = f"{first.mean:.4g} {first.std:.4g} {first.low:.4g} {first.high:.4g}"
    assert f"{first.name} {shape} 3 {numbers}" in lines
    assert f"{first.chs}×8×12 2" in lines  # the shape of the wider images
    assert any(line.startswith(f"{second.name} {second.chs} max 5 ") for line in lines)
    assert "1 × the file is empty" in lines
    assert (tmp_path / "shown.png").exists()


def test_the_command_prints_json(tmp_path, images, extractor):
    out = run(images, extractor, tmp_path / "out")
    done = run_stats(out, "--json")
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    found = stats(out)
    assert facts["images"] == {"planned": 7, "written": 5, "failed": 2, "missing": 0}
    assert facts["files"] == {"planned": 3, "there": 3, "bytes": found.nbytes}
    assert facts["errors"]["the file is empty"] == 1
    assert facts["levels"][0]["mean"] == found.levels[0].mean
    assert facts["levels"][0]["shapes"] == [
        {"shape": list(shape), "images": count} for shape, count in found.levels[0].shapes.items()
    ]


def test_json_has_null_where_there_are_no_numbers(tmp_path, images, extractor):
    for path in images.iterdir():
        path.write_text("no image")
    done = run_stats(run(images, extractor, tmp_path / "out"), "--json")
    assert json.loads(done.stdout)["levels"][0]["mean"] is None


def test_the_command_exits_with_1_if_something_is_wrong(tmp_path, images, extractor):
    out = run(images, extractor, tmp_path / "out")
    spoil(out / "maps-000001.safetensors", extractor.feature_info.names()[0], 0, float("nan"))
    (out / "maps-000002.safetensors").write_text("")
    done = run_stats(out)
    assert done.exit_code == 1
    assert f"3.png in {extractor.feature_info.names()[0]}" in done.output
    assert "maps-000002.safetensors is not a complete shard of maps" in done.output
