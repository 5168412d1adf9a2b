"""Faults of a folder of maps: changes of its meta.json and of the headers of its files."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import featx
from featx import FeatureDataset, extract
from featx.bulk import convert, merge, stats, write_index
from featx.bulk.meta import Plan
from featx.bulk.shard import KEY

OPTIONS = {"size": 32, "keep_aspect": True, "rows_per_shard": 3, "batch_size": 2, "streams": 1, "workers": 1}
SHARDS = [f"maps-{number:06d}.safetensors" for number in range(3)]


def change_meta(folder: Path, change: Callable[[dict], None], signed: bool = True) -> None:
    """Change what meta.json says, and make its fingerprint that of what it says then."""
    facts = json.loads((folder / "meta.json").read_text())
    change(facts)
    if signed:
        sign(facts)
    (folder / "meta.json").write_text(json.dumps(facts))


def sign(facts: dict) -> str:
    try:
        plan = Plan(facts["decided"], facts["items"]["count"], facts["items"]["sha256"], facts["rows_per_shard"])
        facts["shards"], facts["fingerprint"] = plan.shards, plan.fingerprint
    except (TypeError, LookupError, ArithmeticError):
        pass
    return facts.get("fingerprint", "")


def change_header(path: Path, change: Callable[[dict], None]) -> None:
    """Change what a shard says of its rows."""
    tensors, header = load_file(path), header_of(path.read_bytes())
    facts = json.loads(header["__metadata__"][KEY])
    change(facts)
    save_file(tensors, path, {KEY: json.dumps(facts)})


def header_of(content: bytes) -> dict:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def with_header(content: bytes, header: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def set_at(*path: str, value: object) -> Callable[[dict], None]:
    def change(facts: dict) -> None:
        *holders, key = path
        for step in holders:
            facts = facts[step]
        facts[key] = value

    return change


def calls(folder: Path, images: Path, extractor) -> list[Callable[[], object]]:
    """Everything that reads a folder of maps; each may leave files beside it."""
    return [
        lambda: FeatureDataset(folder),
        lambda: stats(folder),
        lambda: merge([folder], folder.parent / "merged"),
        lambda: convert(folder, folder.parent / "converted", "webdataset"),
        lambda: featx.bulk.check_sources(folder),
        lambda: write_index(folder),
        lambda: extract(images, extractor, folder, retry_changed=True, **OPTIONS),
    ]


def assert_true(dataset: FeatureDataset, truth: dict) -> None:
    """Every row is one that was written."""
    for row in dataset:
        assert row.size == truth[row.id].size
        assert list(row.maps) == list(truth[row.id].maps)
        assert all(torch.equal(map_, truth[row.id].maps[level]) for level, map_ in row.maps.items())
