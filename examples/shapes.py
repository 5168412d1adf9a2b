"""A small dataset for the examples: colored shapes on crops of photographs, with masks and boxes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image, ImageDraw
from torch import Tensor

CLASSES = ("background", "circle", "square", "triangle")
PHOTOGRAPHS = ("coffee.png", "chelsea.png", "rocket.jpg", "astronaut.png")
SIDE = 96


@dataclass(frozen=True, slots=True)
class Scene:
    """An image with its annotations.

    Attributes:
        image: (3, SIDE, SIDE) in [0, 1].
        mask: (SIDE, SIDE), a class per pixel.
        boxes: (n, 4), x1, y1, x2, y2 in pixels.
        labels: (n,), the class of each box.
    """

    image: Tensor
    mask: Tensor
    boxes: Tensor
    labels: Tensor


def scenes(count: int, seed: int) -> list[Scene]:
    """Return random scenes, determined by the seed."""
    rng = np.random.default_rng(seed)
    folder = Path(skimage.__file__).parent / "data"
    photographs = [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]
    return [_scene(rng, photographs[rng.integers(len(photographs))]) for _ in range(count)]


def batches(dataset: list[Scene], size: int, seed: int) -> Iterator[list[Scene]]:
    """Yield batches of the scenes in random order, without end."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(dataset))
        yield from (
            [dataset[i] for i in order[start : start + size]] for start in range(0, len(dataset) - size + 1, size)
        )


def _scene(rng: np.random.Generator, photograph: Image.Image) -> Scene:
    left, top = (int(rng.integers(side - SIDE)) for side in photograph.size)
    image = photograph.crop((left, top, left + SIDE, top + SIDE))
    mask = Image.new("L", image.size)
    boxes, labels = [], []
    for _ in range(rng.integers(1, 4)):
        label, size = int(rng.integers(1, len(CLASSES))), int(rng.integers(24, 48))
        box = _free_square(rng, size, boxes)
        if box is not None:
            color = tuple(int(value) for value in rng.integers(256, size=3))
            _draw(image, mask, label, box, color)
            boxes.append(box)
            labels.append(label)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    corners = torch.tensor(boxes, dtype=torch.float32)
    return Scene(pixels, torch.from_numpy(np.array(mask)).long(), corners, torch.tensor(labels))


def _free_square(rng: np.random.Generator, size: int, boxes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """Return a random square that overlaps none of the boxes; None after 20 failed attempts."""
    for _ in range(20):
        left, top = (int(value) for value in rng.integers(SIDE - size, size=2))
        box = (left, top, left + size, top + size)
        if all(box[0] >= b[2] or box[2] <= b[0] or box[1] >= b[3] or box[3] <= b[1] for b in boxes):
            return box
    return None


def _draw(image: Image.Image, mask: Image.Image, label: int, box: tuple[int, ...], color: tuple[int, ...]) -> None:
    left, top, right, bottom = box
    for canvas, fill in ((image, color), (mask, label)):
        draw = ImageDraw.Draw(canvas)
        if CLASSES[label] == "circle":
            draw.ellipse(box, fill=fill)
        elif CLASSES[label] == "square":
            draw.rectangle(box, fill=fill)
        else:
            draw.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=fill)
