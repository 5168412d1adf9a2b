"""Random damage of a folder of maps: every row that is read is one that was written, or an error says why not."""

import json
import shutil
import struct
from pathlib import Path
from random import Random

import pytest
from PIL import Image
from support.damaged_maps import (
    OPTIONS,
    SHARDS,
    assert_true,
    calls,
    change_header,
    header_of,
    set_at,
    sign,
    with_header,
)
from support.export_cases import small
from support.fuzzing import answered, bytes_of, damaged, mutated, replaced

from featx import FeatureDataset, FeatxError, extract
from featx.bulk.shard import KEY


@pytest.fixture(scope="module")
def extractor():
    return small()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Eight, one of them of another shape, one that is none."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        Image.new("RGB", (80 if number == 4 else 40, 40), (30 * number, 255 - 30 * number, 99)).save(
            folder / f"{number}.png"
        )
    (folder / "2.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, extractor, images) -> Path:
    out = tmp_path_factory.mktemp("maps") / "out"
    extract(images, extractor, out, **OPTIONS)
    return out


@pytest.fixture(scope="module")
def truth(whole) -> dict:
    return {one.id: one for one in FeatureDataset(whole)}


@pytest.fixture
def folder(tmp_path, whole) -> Path:
    shutil.copytree(whole, tmp_path / "maps")
    return tmp_path / "maps"


@pytest.fixture(scope="module")
def grown(tmp_path_factory, whole, images, extractor) -> tuple[Path, Path, dict]:
    """A folder of two generations, one image removed; its images, and what it holds."""
    base = tmp_path_factory.mktemp("grown")
    shutil.copytree(images, base / "images")
    shutil.copytree(whole, base / "maps")
    (base / "images" / "6.png").unlink()
    (base / "images" / "2.png").write_bytes((images / "1.png").read_bytes())
    Image.new("RGB", (40, 40), "teal").save(base / "images" / "9.png")
    extract(base / "images", extractor, base / "maps", retry_failed=True, **{**OPTIONS, "rows_per_shard": None})
    rows = {one.id: one for one in FeatureDataset(base / "maps")}
    assert list(rows) == [f"{number}.png" for number in (0, 1, 3, 4, 5, 7, 2, 9)]
    return base / "maps", base / "images", rows


def damage_meta(folder: Path, chance: Random) -> bool:
    path = folder / "meta.json"
    if chance.random() < 0.2:
        path.write_bytes(damaged(path.read_bytes(), chance))
        return False
    facts = mutated(json.loads(path.read_text()), chance)
    if chance.random() < 0.3:
        path.write_bytes(bytes_of(facts, chance))
        return False
    plan = sign(facts) if isinstance(facts, dict) else ""
    path.write_bytes(bytes_of(facts, chance))
    if chance.random() < 0.5:
        for shard in folder.glob("maps-*"):
            change_header(shard, set_at("plan", value=plan))
    return True


def damage_shard(folder: Path, chance: Random) -> bool:
    path = folder / chance.choice(SHARDS)
    content, kind = path.read_bytes(), chance.randrange(6)
    header = header_of(content)
    if kind == 0:
        (length,) = struct.unpack("<Q", content[:8])  # a number among the maps is no structure
        path.write_bytes(damaged(content[: 8 + length], chance) + content[8 + length :])
    elif kind == 1:
        path.write_bytes(with_header(content, bytes_of(mutated(header, chance), chance)))
    elif kind == 2:
        facts = mutated(json.loads(header["__metadata__"][KEY]), chance)
        header["__metadata__"][KEY] = json.dumps(facts)
        path.write_bytes(with_header(content, bytes_of(header, chance)))
    elif kind == 3:
        path.write_bytes(content[: chance.randrange(len(content))])
    else:
        path.write_bytes((folder / chance.choice(SHARDS)).read_bytes())
    return True


def damage_files(folder: Path, chance: Random) -> bool:
    name = chance.choice(["meta.json", *SHARDS, "index.parquet"])
    if chance.random() < 0.8:
        replaced(folder / name, chance)
    else:
        shutil.copy(
            folder / name, folder / chance.choice(["maps-000007.safetensors", ".lock", "maps-0000001.safetensors"])
        )
    return False


def fuzz(base: Path, whole: Path, images: Path, extractor, truth: dict, seeds: range, *, resume: int) -> None:
    for seed in seeds:
        chance, folder = Random(seed), base / f"{seed}" / "maps"
        shutil.copytree(whole, folder)
        kind = chance.choice([damage_meta, damage_meta, damage_shard, damage_shard, damage_files])
        was_signed = kind(folder, chance)
        every = calls(folder, images, extractor)
        for call in every if seed % resume == 0 else every[:-2]:
            result = answered(call)
            if isinstance(result, FeatureDataset):
                rows = answered(lambda result=result: list(result))
                if not was_signed and not isinstance(rows, FeatxError):
                    assert_true(result, truth)
        shutil.rmtree(base / f"{seed}")


def test_no_change_of_a_folder_is_answered_wrongly(tmp_path, whole, images, extractor, truth):
    fuzz(tmp_path, whole, images, extractor, truth, range(40), resume=10)


@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(1000, 2000), marks=pytest.mark.sweep)], ids=len)
def test_no_change_of_a_grown_folder_is_answered_wrongly(tmp_path, grown, extractor, seeds):
    folder, images, truth = grown
    fuzz(tmp_path, folder, images, extractor, truth, seeds, resume=10)


@pytest.mark.sweep
def test_no_change_of_a_folder_in_thousands_is_answered_wrongly(tmp_path, whole, images, extractor, truth):
    fuzz(tmp_path, whole, images, extractor, truth, range(1000, 3000), resume=5)
