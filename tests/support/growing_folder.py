"""Folders of images that grow, and the maps extracted from them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from support.extraction import extract_threes
from torch import Tensor

from featx import FeatureDataset, FeatureExtractWrapper


@contextmanager
def seeing(extractor: FeatureExtractWrapper) -> Iterator[list[int]]:
    """Within the block, the sizes of the batches that the extractor has seen."""
    seen: list[int] = []
    handle = extractor.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    yield seen
    handle.remove()


def add(folder: Path, *numbers: int) -> Path:
    """Images of one color each, named after their numbers."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.new("RGB", (40, 40), (number, 255 - number, 5 * number % 256)).save(folder / name(number))
    return folder


def name(number: int) -> str:
    return f"{number:04d}.png"


def names(*numbers: int) -> list[str]:
    return [name(number) for number in numbers]


def maps(out: Path) -> dict[str, list[Tensor]]:
    return {features.id: list(features.maps.values()) for features in FeatureDataset(out)}


def assert_same(one: dict[str, list[Tensor]], other: dict[str, list[Tensor]]) -> None:
    assert one.keys() == other.keys()
    for id_, levels in one.items():
        assert all(map(torch.equal, levels, other[id_])), id_


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("maps-*")}


def fresh(images: Path, extractor: FeatureExtractWrapper, out: Path) -> dict[str, list[Tensor]]:
    """The maps of one extraction of what there is now."""
    shutil.rmtree(out, ignore_errors=True)
    extract_threes(images, extractor, out)
    return maps(out)
