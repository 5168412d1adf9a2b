"""Photographs with objects whose masks are exactly known, and how well a map separates the objects at each pixel.

A composite is a part of a photograph, cut out along a polygon, on another photograph. Its edges are those of pasted
pixels, which is the easiest case for a method that follows the colors of the image. The motorcycle is one photograph
with measured disparities: its foreground is what is nearer than a disparity, and its edges are those of the scene.
"""

from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

# Outlines of what scikit-image's photographs show, in fractions of width and height.
OUTLINES = {
    "coffee": [(0.19, 0.1), (0.4, 0.03), (0.7, 0.03), (0.79, 0.2), (0.72, 0.5), (0.55, 0.6), (0.35, 0.55), (0.2, 0.3)],
    "astronaut": [
        *((0.28, 0.05), (0.45, 0.0), (0.6, 0.05), (0.6, 0.3), (0.74, 0.55)),
        *((0.74, 1.0), (0.05, 1.0), (0.1, 0.6), (0.25, 0.4), (0.33, 0.25)),
    ],
    "chelsea": [
        *((0.2, 0.25), (0.28, 0.02), (0.4, 0.12), (0.55, 0.1), (0.68, 0.0)),
        *((0.72, 0.25), (0.75, 0.6), (0.6, 0.95), (0.35, 0.95), (0.2, 0.6)),
    ],
}
BACKGROUNDS = ("grass", "brick", "rocket")
BAND = 8  # pixels on each side of an edge, in which the boundary score counts
FOLDER = Path(f"{distribution('scikit-image').locate_file('skimage/data')}")


def photograph(name: str) -> Image.Image:
    return Image.open(next(FOLDER.glob(f"{name}.*g"))).convert("RGB")


def composite(name: str, background: str, side: int) -> tuple[Image.Image, Tensor]:
    """A square photograph with an object on another background, and the object's mask (side, side)."""
    both = [photograph(one).resize((side, side), Image.Resampling.BICUBIC) for one in (name, background)]
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon([(x * side, y * side) for x, y in OUTLINES[name]], fill=255)
    return Image.composite(*both, mask), torch.from_numpy(np.array(mask) > 0)


def motorcycle() -> tuple[Image.Image, Tensor]:
    """The photograph, and its disparities (500, 741) in pixels, which are not finite where they are unknown."""
    with np.load(FOLDER / "motorcycle_disp.npz") as arrays:
        return photograph("motorcycle_left"), torch.from_numpy(arrays[arrays.files[0]]).float()


@dataclass(frozen=True)
class Probe:
    """A linear classifier of the cells of one image: the least squares of their labels, with a small penalty."""

    mean: Tensor
    weight: Tensor
    offset: Tensor

    @classmethod
    def of(cls, map_: Tensor, labels: Tensor, known: Tensor) -> "Probe":
        """Fit to a map (chs, h, w), and the labels and known cells (h, w)."""
        cells, signs = map_[:, known].T.double(), labels[known].double() * 2 - 1
        mean = cells.mean(0)
        centered = cells - mean
        penalty = 0.05 * len(cells) * centered.var() * torch.eye(cells.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(centered.T @ centered + penalty, centered.T @ (signs - signs.mean()))
        return cls(mean, weight, signs.mean())

    def __call__(self, map_: Tensor) -> Tensor:
        """The mask (h, w) of a map (chs, h, w) of any size."""
        values = torch.tensordot(self.weight.to(map_), map_, 1)
        return values + float(self.offset - self.mean @ self.weight) > 0


def share_of_cells(mask: Tensor, side: int) -> Tensor:
    """The share of the pixels (H, W) of each cell that is in a mask; cells may reach beyond the image."""
    padding = (0, -mask.shape[1] % side, 0, -mask.shape[0] % side)
    sums = [F.avg_pool2d(F.pad(one, padding)[None, None], side)[0, 0] for one in (mask.float(), torch.ones(mask.shape))]
    return sums[0] / sums[1]


def scores(found: Tensor, mask: Tensor, known: Tensor) -> tuple[float, float]:
    """Intersection over union of two masks (H, W), in all known pixels and in those near an edge of the true mask."""
    value = mask.float()[None, None]
    wide, narrow = F.max_pool2d(value, 2 * BAND + 1, 1, BAND), -F.max_pool2d(-value, 2 * BAND + 1, 1, BAND)
    near = (wide > narrow)[0, 0] & known
    whole, edge = (((found & mask & part).sum() / ((found | mask) & part).sum()).item() for part in (known, near))
    return whole, edge
