"""Limits of a folder of maps: what cannot be read again is refused before it is written."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.export_cases import small
from support.extraction import paint, plan_of
from support.fuzzing import answered
from torch import nn

import featx
from featx import ArgumentError, ContractError, FeatxError, ImageError, OutputError, extract
from featx.bulk import meta as meta_module
from featx.bulk import shard as shard_module
from featx.bulk.header import read_header
from featx.bulk.shard import Shard, ShardFile, shard_name, write_shard
from featx.bulk.sources import read_file
from featx.json_checks import JsonError, Value, parsed

PLAN = plan_of("a", 2, 3)


def write(folder: Path, **fields: object) -> str:
    """A shard of three vectors; its path."""
    ids = ["0", "1", "2"]
    rows = [torch.full((2,), float(row)) for row in range(3)]
    write_shard(
        folder, replace(Shard(0, PLAN.fingerprint, ["a"], ids, ids, [(4, 4)] * 3, [None] * 3, [rows]), **fields)
    )
    return str(folder / shard_name(0))


def test_what_was_written_is_read(tmp_path):
    header = read_header(write(tmp_path), PLAN)
    assert (header.number, header.ids, header.sizes, header.stamps) == (0, ["0", "1", "2"], [(4, 4)] * 3, [None] * 3)
    assert [header.shape("a", row) for row in range(3)] == [(2,)] * 3


@pytest.mark.parametrize("limit", ["LONGEST_HEADER", "MOST_VALUES"])
def test_a_file_that_would_say_too_much_is_not_written(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(shard_module, limit, 30)
    with pytest.raises(OutputError, match=r"would have too large a header: choose a smaller rows_per_shard"):
        write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_tensor_of_no_level_is_reported(tmp_path):
    path = write(tmp_path, levels=["b"])
    with pytest.raises(OutputError, match=r"it has no 'a/0'"):
        read_header(path, PLAN)
    extra = plan_of("a", 2, 3)
    write(tmp_path, levels=["a", "b"], maps=[[torch.zeros(2)] * 3] * 2, plan=extra.fingerprint)
    with pytest.raises(OutputError, match=r"it holds 'b', which is not a level"):
        read_header(path, extra)


def test_too_many_files_are_refused_before(tmp_path, monkeypatch):
    monkeypatch.setattr("featx.bulk.extraction.MOST_SHARDS", 2)
    images = paint(tmp_path / "in", 3)
    with pytest.raises(ArgumentError, match="rows_per_shard=1 makes 3 files of 3 images, more than 2: choose a larger"):
        extract(images, small(), tmp_path / "out", size=32, rows_per_shard=1)
    assert not (tmp_path / "out").exists()


class Wrong(nn.Module):
    """Says another number of channels than its map has."""

    feature_info = ({"chs": 5, "reduction": 1, "name": "conv"},)
    is_rewritten = True
    data_config = featx.DataConfig()

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward_features(self, x):
        return [self.conv(x)]


def test_maps_that_are_not_as_described_are_refused_before(tmp_path):
    images, model = paint(tmp_path / "in", 1), featx.FeatureExtractWrapper(Wrong()).eval()
    with pytest.raises(ContractError, match="the map of conv has 4 channels, its feature_info 5"):
        extract(images, model, tmp_path / "out", size=32)


def test_memory_that_there_is_not_is_reported(tmp_path):
    path = write(tmp_path)
    with pytest.raises(OutputError, match=r"there is no memory for \d+ bytes of it"):
        ShardFile(path).read(0, 2**62)


def test_bytes_that_are_missing_at_an_address_are_reported(tmp_path):
    with pytest.raises(OutputError, match="was overwritten, replaced or removed while"):
        ShardFile(f"file://{write(tmp_path)}").read(0, 2**20)


@pytest.mark.parametrize("name", [".lock", ".lock-0-of-1"])
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_in_the_place_of_a_lock_is_reported_or_taken(tmp_path, name, kind):
    images, out = paint(tmp_path / "in", 1), tmp_path / "out"
    out.mkdir()
    (out / name).mkdir() if kind == "folder" else os.mkfifo(out / name)
    done = answered(lambda: extract(images, small(), out, size=32))
    assert "cannot write to" in str(done) if isinstance(done, FeatxError) else done.written == 1


def test_a_path_that_is_none_holds_no_image():
    with pytest.raises(ImageError, match=r"'a\\x00b' is not a path"):
        read_file("a\0b")
    with pytest.raises(ImageError, match="it is not a file"):
        read_file("/dev/null")


@pytest.mark.parametrize("name", ["", "\x1b", "x" * 1001])
def test_names_of_levels_can_be_shown(tmp_path, name):
    decided = {
        "model": "m",
        "dtype": "float32",
        "keep_aspect": False,
        "size": 0,
        "preprocessing": {},
        "levels": [{"name": name, "chs": 1, "reduction": 1, "pooling": "none"}],
    }
    plan = replace(PLAN, decided=decided)
    meta_module.write_meta(tmp_path, meta_module.Meta((plan,), 1))
    with pytest.raises(OutputError, match=r"decided\.size is 0, expected an int from 1"):
        meta_module.read_meta(tmp_path)
    decided["size"] = None
    meta_module.write_meta(tmp_path, meta_module.Meta((replace(PLAN, decided=decided),), 1))
    with pytest.raises(OutputError, match="expected the name of a level"):
        meta_module.read_meta(tmp_path)


@pytest.mark.parametrize(
    ("check", "held", "expected"),
    [
        (Value.object, [], "it is [], expected an object"),
        (Value.array, "a", "it is 'a', expected an array"),
        (Value.text, 1, "it is 1, expected a text"),
        (Value.texts, ["a", 1], "expected an array of texts"),
        (Value.number, True, "it is True, expected an int"),
        (Value.numbers, [1.0], "expected an array of ints"),
        (Value.real, float("nan"), "it is nan, expected a number"),
        (Value.real, True, "it is True, expected a number"),
        (Value.flag, 0, "it is 0, expected true or false"),
        (lambda value: value.pairs(0, 9), [[1, 2], [3]], "expected an array of pairs"),
        (lambda value: value.pairs(0, 9), [[1, 10]], "ints from 0 to 9"),
        (lambda value: value["a"]["b"], {"a": {}}, "a has no 'b'"),
        (lambda value: [one.number() for one in value["a"].each()], {"a": [1, None]}, "a[1] is None, expected an int"),
        (Value.flag, "x" * 10**6, "it is 'xxxxxxxxxxxx...xxxxxxxxxxxxx', expected"),
    ],
)
def test_values_of_another_kind_are_reported(check, held, expected):
    with pytest.raises(JsonError) as refused:
        check(Value(held))
    assert expected in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("text", ["", "{", "[" * 10**5, "1" * 5000, b"\xff\xfe\xff", "\ufeff{}", "{} {}"])
def test_what_is_not_json_is_reported(text):
    with pytest.raises(JsonError, match="it is not valid JSON"):
        parsed(text)


def test_costly_json_is_refused_before_it_is_parsed():
    assert parsed("[1, 2, 3]", most=3).held == [1, 2, 3]
    with pytest.raises(JsonError, match="it holds more than 2 values"):
        parsed("[1, 2, 3]", most=2)
