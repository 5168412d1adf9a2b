"""What tests of extractions share: images, maps without anything of featx.bulk, and what a folder says it holds."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from conftest import random_extractor, relative_difference
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform
from torch import Tensor
from typer.testing import CliRunner, Result

import featx
from featx import FeatureExtractWrapper
from featx.bulk import Summary
from featx.bulk.meta import Plan
from featx.cli import app

SIZE = 64
PREPARE = create_transform(
    (3, SIZE, SIZE),
    interpolation="bicubic",
    crop_pct=0.875,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
# Convolutions of one image and of a batch may add in another order.
CLOSE = 1e-5
COLORS = ["red", "lime", "blue", "white", "orange", "black", "purple"]


class Stopped:
    """Says to stop from the n-th time on that it is asked."""

    def __init__(self, shards: int) -> None:
        self.left = shards

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def direct(extractor: FeatureExtractWrapper, image: Image.Image) -> list[Tensor]:
    """The maps (chs, h, w) of an image, without anything of featx.bulk."""
    with torch.inference_mode():
        return [map_[0] for map_ in extractor(PREPARE(image)[None])]


def index(folder: Path) -> list[dict]:
    return pq.read_table(folder / "index.parquet").to_pylist()


def contents(folder: Path) -> dict[str, bytes]:
    """What a run leaves but what it recorded of itself."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(("maps", "index"))}


def run_stats(*words: object) -> Result:
    """`featx stats …` within this process."""
    return CliRunner().invoke(app, ["stats", *map(str, words)])


def stored(folder: Path) -> dict[str, list[Tensor]]:
    """The maps that the index names, by the name of their source's file."""
    shards = {path.name: list(load_file(path).items()) for path in folder.glob("*.safetensors")}
    rows = [row for row in index(folder) if row["status"] == "ok"]
    return {Path(row["source"]).name: [maps[row["row"]] for _, maps in sorted(shards[row["shard"]])] for row in rows}


def in_order_of_names(extractor: FeatureExtractWrapper, maps: list[Tensor]) -> list[Tensor]:
    return [
        map_ for _, map_ in sorted(zip(extractor.feature_info.names(), maps, strict=True), key=lambda pair: pair[0])
    ]


def assert_maps_are_of(extractor: FeatureExtractWrapper, maps: list[Tensor], image: Image.Image) -> None:
    for ours, reference in zip(maps, in_order_of_names(extractor, direct(extractor, image)), strict=True):
        assert relative_difference(ours, reference) < CLOSE


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".lock"))


def noise(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(1, 256, (20, 24, 3), dtype=np.uint8))


def noises(folder: Path, count: int) -> Path:
    """Small images of noise, none of which is like another."""
    folder.mkdir()
    for number in range(count):
        noise(number).save(folder / f"{number:04d}.png")
    return folder


def paint(folder: Path, count: int, size: tuple[int, int] = (64, 64)) -> Path:
    folder.mkdir()
    for number, color in enumerate(COLORS[:count]):
        Image.new("RGB", size, color).save(folder / f"{number}.png")
    return folder


def plan_of(level: str, chs: int, items: int) -> Plan:
    """A plan of one file of vectors of one level."""
    levels = [{"name": level, "chs": chs, "reduction": 1, "pooling": "mean"}]
    return Plan({"levels": levels, "dtype": "float32"}, items, "", items)


def small_extractor() -> FeatureExtractWrapper:
    """Two levels of a small model."""
    return random_extractor("mobilenetv3_small_050", out_indices=[1, 4])


def ten_colors(folder: Path) -> Path:
    """Ten images of one color each, so that every map tells whose it is; the fifth is none."""
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (40, 40), (25 * number, 255 - 25 * number, 99)).save(folder / f"{number}.png")
    (folder / "4.png").write_text("no image")
    return folder


def extract_threes(images: Path, extractor: FeatureExtractWrapper, out: Path, **options: object) -> Summary:
    """Into files of three images."""
    return featx.extract(images, extractor, out, **{"size": 32, "batch_size": 2, "rows_per_shard": 3, **options})
