"""Reading a damaged folder of maps gives what was written, or an error that names the damage."""

import json
import os
import shutil
import struct
import threading
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.damaged_maps import (
    OPTIONS,
    SHARDS,
    assert_true,
    calls,
    change_header,
    change_meta,
    header_of,
    set_at,
    sign,
    with_header,
)
from support.export_cases import small
from support.fuzzing import answered, bytes_of, damaged, mutated, replaced

import featx
from featx import FeatureDataset, FeatxError, OutputError, extract
from featx.bulk import convert, merge, stats, write_index
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


# one fault at a time


META_FAULTS = [
    (("decided",), 5, "decided is 5, expected an object"),
    (("decided", "levels"), [], "decided.levels is [], expected levels, each once"),
    (("decided", "levels"), {}, "decided.levels is {}, expected an array"),
    (("decided", "dtype"), "float64", "expected one of float32, float16, bfloat16"),
    (("decided", "preprocessing", "crop"), 0, "expected a crop of at least 0.01"),
    (("decided", "preprocessing", "std"), [0, 1, 1], "no std of 0"),
    (("items", "count"), True, "items.count is True, expected an int from 0"),
    (("items", "count"), 10**15, "at most 1000000"),
    (("rows_per_shard",), 0, "rows_per_shard is 0, expected an int from 1"),
    (("recorded", "directory"), 5, "recorded.directory is 5, expected a text"),
    (("recorded", "batch_size"), 10**9, "recorded.batch_size is 1000000000, expected an int from 1"),
    (("recorded",), None, "recorded is None, expected an object"),
    (("format",), "1", "format is '1'"),
]


@pytest.mark.parametrize(("path", "value", "message"), META_FAULTS, ids=[".".join(path) for path, *_ in META_FAULTS])
def test_values_that_meta_cannot_have_are_reported(folder, path, value, message):
    change_meta(folder, set_at(*path, value=value))
    for call in (FeatureDataset, stats, write_index, lambda folder: merge([folder], folder.parent / "out")):
        with pytest.raises(OutputError) as refused:
            call(folder)
        assert message in str(refused.value)
        assert "does not describe an extraction that featx knows" in str(refused.value)


def test_a_missing_entry_is_reported(folder):
    change_meta(folder, lambda facts: facts.pop("decided"))
    with pytest.raises(OutputError, match="it has no 'decided'"):
        FeatureDataset(folder)


def test_a_meta_that_was_edited_is_reported(folder):
    change_meta(folder, set_at("decided", "model", value="another"), signed=False)
    with pytest.raises(OutputError, match="its fingerprint does not match its content: it was changed after"):
        FeatureDataset(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "it is not valid JSON"),
        ("[" + "[]," * 3_000_000 + "[]]", "it holds more than 2000000 values"),
        (" " * (2**24 + 1), "it has 16777217 bytes, more than 16777216"),
        ("\x00", "it is not valid JSON"),
        ("9" * 10_000, "it is not valid JSON"),
    ],
)
def test_a_meta_that_costs_much_is_refused_before(folder, content, message):
    (folder / "meta.json").write_text(content)
    with pytest.raises(OutputError, match=message):
        FeatureDataset(folder)


SHARD_FAULTS = [
    ("shard", True, "shard is True, expected an int"),
    ("shard", 1, "it is a copy of shard 1"),
    ("ids", ["0.png"], "expected one that begins with"),
    ("ids", "abc", "ids is 'abc', expected an array"),
    ("ids", ["a", "\ud800"], "expected an array of texts"),
    ("sources", [], "it lists 2 images and 1 failures, expected 3"),
    ("sizes", [[1, 2], [0, 3]], "sizes is .*, expected an array of pairs of ints from 1"),
    ("stamps", [None], "it lists 2 images"),
    ("errors", [["a", "b"]], "expected id, source and reason"),
    ("errors", [], "it lists 2 images and 0 failures, expected 3"),
]


@pytest.mark.parametrize(("key", "value", "message"), SHARD_FAULTS, ids=str)
def test_values_that_a_header_cannot_have_are_reported(folder, key, value, message):
    change_header(folder / SHARDS[0], set_at(key, value=value))
    with pytest.raises(OutputError, match=f"is not a complete shard of maps: .*{message}"):
        FeatureDataset(folder)
    assert str(folder / SHARDS[0]) in stats(folder).damaged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [2, 4, 0, 16]}, "ints from 1"),
        ({"shape": [2, 8, 8, 16]}, "one that begins with [2, 4]"),
        ({"shape": [2, 4, 16, 2**31]}, "ints from 1"),
        ({"dtype": "F16"}, "one of F32"),
        ({"data_offsets": [0, 8]}, "bytes for [2, 4, 16, 16]"),
        ({"data_offsets": [4, 8196]}, "its tensors overlap or have gaps between them"),
        ({"data_offsets": [-8192, 0]}, "ints from 0"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fill_a_file_are_reported(folder, change, message):
    path = folder / SHARDS[0]
    header = header_of(path.read_bytes())
    header["a.0"].update(change)
    path.write_bytes(with_header(path.read_bytes(), json.dumps(header).encode()))
    with pytest.raises(OutputError) as refused:
        FeatureDataset(folder)
    assert message in str(refused.value)


def test_a_copied_shard_is_not_counted_twice(folder, images, extractor, truth):
    shutil.copy(folder / SHARDS[0], folder / SHARDS[2])
    with pytest.raises(OutputError, match="it is a copy of shard 0"):
        FeatureDataset(folder)
    found = stats(folder)
    assert (found.written, found.missing, len(found.damaged)) == (5, 2, 1)
    assert extract(images, extractor, folder, **OPTIONS).made == 1
    assert_true(FeatureDataset(folder), truth)


@pytest.mark.parametrize("name", ["meta.json", SHARDS[1], "index.parquet"])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_not_a_file_is_never_waited_for(folder, name, seed, images, extractor):
    replaced(folder / name, Random(seed))
    for call in calls(folder, images, extractor):
        answered(call)


def test_a_pipe_among_the_tables_is_refused(tmp_path, extractor):
    os.mkfifo(tmp_path / "images.parquet")
    assert isinstance(answered(lambda: extract(tmp_path / "images.parquet", extractor, tmp_path / "out")), FeatxError)


@pytest.mark.parametrize("name", ["../up", "/tmp/up", "a\\b", "..", "id"])
@pytest.mark.parametrize("format_", ["npy", "webdataset"])
def test_names_of_levels_lead_out_of_no_folder(folder, name, format_):
    rename(folder, "a.0", name)
    assert FeatureDataset(folder).levels[0] == name
    with pytest.raises(featx.ArgumentError, match="cannot be the name of a file or a column"):
        convert(folder, folder.parent / "out", format_)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["maps"]


def rename(folder: Path, level: str, name: str) -> None:
    """Give a level another name, everywhere in a folder."""

    def change(facts: dict) -> None:
        next(one for one in facts["decided"]["levels"] if one["name"] == level)["name"] = name

    change_meta(folder, change)
    plan = json.loads((folder / "meta.json").read_text())["fingerprint"]
    for path in folder.glob("maps-*"):
        tensors = {key.replace(level, name): value for key, value in load_file(path).items()}
        facts = json.loads(header_of(path.read_bytes())["__metadata__"][KEY])
        save_file(tensors, path, {KEY: json.dumps({**facts, "plan": plan})})


# files that change while they are open


@pytest.mark.parametrize("how", ["overwritten", "cut short", "replaced before it was opened", "removed before"])
def test_a_file_that_changes_under_an_open_folder_is_reported(folder, how, truth):
    dataset, path = FeatureDataset(folder), folder / SHARDS[0]
    if "before" not in how:
        assert dataset[0].id in truth
    content = path.read_bytes()
    if how == "overwritten":
        with path.open("r+b") as file:
            file.write(content[::-1])
        os.utime(path, ns=(1, 1))  # a file system may tell the time in steps
    elif how == "cut short":
        os.truncate(path, 11)
    else:
        path.unlink()
    if how.startswith("replaced"):
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
    with pytest.raises(
        OutputError, match="was overwritten, replaced or removed while it was in use: open the folder again"
    ):
        dataset[0]
    assert dataset[2].id in truth


def test_a_file_that_is_overwritten_all_the_time_gives_what_it_had_or_an_error(folder, truth):
    path = folder / SHARDS[0]
    os.utime(path, ns=(1, 1))
    content, datasets = path.read_bytes(), [FeatureDataset(folder) for _ in range(200)]
    started = threading.Event()

    def overwrite() -> None:
        with path.open("r+b", buffering=0) as file:
            for number in range(500):
                os.pwrite(file.fileno(), bytes([number % 256]) * 8192, len(content) - 8192)
                started.set()

    writer = threading.Thread(target=overwrite)
    before = datasets[0][0]
    writer.start()
    started.wait()
    for dataset in datasets:
        assert isinstance(answered(lambda dataset=dataset: dataset[0]), OutputError)
    writer.join()
    assert all(torch.equal(map_, truth[before.id].maps[level]) for level, map_ in before.maps.items())


def test_a_file_that_is_replaced_while_it_is_open_stays_what_it_was(folder, truth):
    dataset, path = FeatureDataset(folder), folder / SHARDS[0]
    before = dataset[0]
    other = path.with_name("other")
    other.write_bytes(bytes(len(path.read_bytes())))
    other.replace(path)
    after = dataset[0]
    assert all(torch.equal(map_, after.maps[level]) for level, map_ in before.maps.items())


# many faults


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
