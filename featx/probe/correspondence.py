"""Correspondence under known transformations of an image: flips, crops and homographies.

Each cell of the transformed image's map is matched with the most similar cell of the image's map, by cosine. A match is
correct if it is within a fraction of the image's longer side of the true place, which the transformation gives:
percentage of correct keypoints (PCK), Yang and Ramanan, "Articulated human detection with flexible mixtures of parts"
(2013).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

THRESHOLD = 0.1  # of the longer side, the usual one
MOST_CELLS = 256  # of a transformed map that are matched
SMALLEST_CROP, LARGEST_CROP = 0.5, 0.8  # sides of a crop relative to the image's
LARGEST_SHIFT = 0.25  # of the corners of a homography, relative to the image's sides


def flip(generator: torch.Generator) -> Tensor:
    """The homography (3, 3) of a horizontal flip."""
    del generator
    return torch.diag(torch.tensor([-1.0, 1, 1], dtype=torch.float64))


def crop(generator: torch.Generator) -> Tensor:
    """The homography (3, 3) of a random crop, resized to the image's size."""
    size, x, y = torch.rand(3, generator=generator, dtype=torch.float64)
    scale = SMALLEST_CROP + (LARGEST_CROP - SMALLEST_CROP) * size
    matrix = torch.diag(torch.stack([scale, scale, torch.ones_like(scale)]))
    matrix[:2, 2] = (1 - scale) * (2 * torch.stack([x, y]) - 1)
    return matrix


def perspective(generator: torch.Generator) -> Tensor:
    """A random homography (3, 3), which moves each corner towards the center."""
    corners = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    shifts = 2 * LARGEST_SHIFT * torch.rand(4, 2, generator=generator, dtype=torch.float64)
    return homography(corners, corners * (1 - shifts))


TRANSFORMATIONS: Mapping[str, Callable[[torch.Generator], Tensor]] = {
    "flip": flip,
    "crop": crop,
    "homography": perspective,
}


def homography(points: Tensor, places: Tensor) -> Tensor:
    """The homography (3, 3) that maps four points (4, 2) to four places (4, 2)."""
    (x, y), (u, v) = points.T, places.T
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows = [
        torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 1),
        torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 1),
    ]
    solution = torch.linalg.solve(torch.cat(rows), torch.cat([u, v]))
    return torch.cat([solution, one[:1]]).reshape(3, 3)


def transformed(points: Tensor, matrix: Tensor) -> Tensor:
    """Points (n, 2) under a homography (3, 3)."""
    projected = F.pad(points, (0, 1), value=1) @ matrix.T
    return projected[:, :2] / projected[:, 2:]


def centers(height: int, width: int) -> Tensor:
    """(x, y) of the centers (height · width, 2) of cells or pixels, from -1 to 1 between the edges of the image."""
    y, x = ((2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1 for side in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)


def warped(image: Tensor, matrix: Tensor) -> Tensor:
    """The image (chs, H, W) under a homography from places of the result to places of the image; zero outside it."""
    grid = transformed(centers(*image.shape[1:]), matrix).reshape(1, *image.shape[1:], 2)
    return F.grid_sample(image[None], grid.to(image), align_corners=False)[0]


def pck(
    map_: Tensor, other: Tensor, matrix: Tensor, size: tuple[int, int], *, threshold: float = THRESHOLD, seed: int = 0
) -> float:
    """The fraction of cells whose most similar cell is within `threshold` of the true place.

    Args:
        map_: of an image, (chs, h, w).
        other: map of the transformed image, (chs, h', w').
        matrix: homography (3, 3) from places of the transformed image to places of the image, both from -1 to 1
            between the edges.
        size: (height, width) of the image in pixels.
        threshold: largest distance, relative to the longer side.
        seed: of the draw of 256 cells from a larger map.

    Returns:
        From 0 to 1, over the cells whose true place is inside the image; NaN if there are none.
    """
    places = transformed(centers(*other.shape[1:]), matrix)
    inside = (places.abs() <= 1).all(1).nonzero()[:, 0]
    order = torch.randperm(len(inside), generator=torch.Generator().manual_seed(seed))
    queries = inside[order[:MOST_CELLS]]
    vectors, keys = (F.normalize(one.flatten(1).T.float(), dim=1) for one in (other, map_))
    found = centers(*map_.shape[1:])[(vectors[queries] @ keys.T).argmax(1)]
    pixels = (found - places[queries]) * torch.tensor([size[1], size[0]]) / 2
    return (pixels.norm(dim=1) <= threshold * max(size)).double().mean().item()


@torch.no_grad()
def correspondences(
    maps_of: Callable[[Tensor], Sequence[Tensor]], images: Sequence[Tensor], threshold: float, seed: int
) -> Tensor:
    """The PCK (images, levels) of each image, the mean over a flip, a crop and a homography.

    Args:
        maps_of: the maps of a batch of images, one (N, chs, h, w) per level.
        images: preprocessed, (chs, H, W) each, on the device of the model.
        threshold: see `pck`.
        seed: of the transformations.
    """
    generator = torch.Generator().manual_seed(seed)
    scores: list[list[float]] = []
    for image in images:
        matrices = [make(generator) for make in TRANSFORMATIONS.values()]
        batch = torch.stack([image, *(warped(image.cpu(), matrix).to(image) for matrix in matrices)])
        size = image.shape[1], image.shape[2]
        scores.append([_mean_pck(level.cpu(), matrices, size, threshold, seed) for level in maps_of(batch)])
    return torch.tensor(scores, dtype=torch.float64)


def _mean_pck(maps: Tensor, matrices: Sequence[Tensor], size: tuple[int, int], threshold: float, seed: int) -> float:
    """The mean PCK over transformations; the first map is of the image, the others are of its transformed copies."""
    pairs = zip(maps[1:], matrices, strict=True)
    scores = [pck(maps[0], other, matrix, size, threshold=threshold, seed=seed) for other, matrix in pairs]
    return sum(scores) / len(scores)
