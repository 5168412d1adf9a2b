"""Joint bilateral upsampling, Kopf et al., SIGGRAPH 2007 (https://doi.org/10.1145/1275808.1276497).

A pixel p is the mean of the cells q around it, weighted by exp(-|p - q|² / 2 sigma_space²), in cells, and by
exp(-|I_p - I_q|² / 2 sigma_color²), where I is the image and I_q its value at the center of the cell. A softmax of
both exponents normalizes the weights, so that a pixel unlike all cells is the mean of those that are least unlike it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..arguments import require_number, wrong
from .upsampler import resized

MOST_ELEMENTS = 1 << 24  # of the largest intermediate tensor


@dataclass(frozen=True, slots=True)
class JointBilateral:
    """Upsampling whose weights follow the edges of the image (Kopf et al. 2007).

    The result is computed at a whole multiple of the map's size, in parts of bounded memory, and interpolated
    bilinearly if another size is requested. It is differentiable; the backward pass computes the parts again.

    Args:
        radius: cells around a pixel's own cell on each side: (2 * radius + 1)² cells are averaged.
        sigma_space: standard deviation of the distance in cells.
        sigma_color: standard deviation of the distance of colors, in the units of the images: normalized images have a
            standard deviation of about 1 per channel, so that 0.5 is about a tenth of the range of pixels.

    Raises:
        ArgumentError: `radius` is negative, or a standard deviation is not positive.
    """

    radius: int = 2
    sigma_space: float = 0.75
    sigma_color: float = 0.5

    def __post_init__(self) -> None:
        require_number(self.radius, "radius", 0)
        for name in ("sigma_space", "sigma_color"):
            if not getattr(self, name) > 0:
                raise wrong(name, getattr(self, name), "a positive number")

    def __call__(self, images: Tensor, map_: Tensor, size: tuple[int, int], /) -> Tensor:
        """Upsample a map.

        Args:
            images: (N, in_chans, H, W); the pixels of a cell are the part of the image at its place.
            map_: (N, chs, h, w).
            size: (height, width) of the result.

        Returns:
            (N, chs, height, width), in the dtype of the map.
        """
        cells = map_.shape[2:]
        scale = -(-size[0] // cells[0]), -(-size[1] // cells[1])
        # weights need the precision of float32; float64 stays
        guide = images.to(torch.promote_types(map_.dtype, torch.float32))
        guide = resized(guide, (cells[0] * scale[0], cells[1] * scale[1]))
        parts = [torch.cat([*self._parts(*pair, scale)], 2) for pair in zip(guide.split(1), map_.split(1), strict=True)]
        dense = torch.cat(parts) if parts else map_.new_empty(0, map_.shape[1], *guide.shape[2:])
        return resized(dense, size)

    def _parts(self, guide: Tensor, map_: Tensor, scale: tuple[int, int]) -> Iterator[Tensor]:
        """The rows of the dense map of one image, a few rows of cells at a time."""
        _, chs, height, width = map_.shape
        radius, window = self.radius, (2 * self.radius + 1) ** 2
        pad = (radius, radius, radius, radius)
        # bilinear interpolation to one pixel per cell samples the center of each
        cells = F.pad(F.interpolate(guide, (height, width), mode="bilinear", align_corners=False), pad)
        inside = F.pad(torch.ones_like(cells[:, :1, radius : radius + height, radius : radius + width]), pad)
        values = F.pad(map_, pad)
        per_row = width * (scale[0] * scale[1] * (guide.shape[1] * window + chs) + window * chs)
        step = max(1, MOST_ELEMENTS // per_row)
        learns = torch.is_grad_enabled() and (map_.requires_grad or guide.requires_grad)
        for start in range(0, height, step):
            stop = min(start + step, height)
            rows = slice(start, stop + 2 * radius)
            pixels = guide[:, :, start * scale[0] : stop * scale[0]]
            part = pixels, cells[:, :, rows], inside[:, :, rows], values[:, :, rows], scale
            yield checkpoint(self._weighted, *part, use_reentrant=False) if learns else self._weighted(*part)

    def _weighted(
        self, pixels: Tensor, cells: Tensor, inside: Tensor, values: Tensor, scale: tuple[int, int]
    ) -> Tensor:
        """Dense rows (1, chs, rows * scale, w * scale) of padded cells (1, chs, rows + 2 * radius, w + 2 * radius)."""
        down, across = scale
        pixels = pixels.unflatten(2, (-1, down)).unflatten(4, (-1, across)).permute(0, 2, 4, 3, 5, 1)
        grid = pixels.shape[1:3]
        pixels = pixels.flatten(3, 4)  # (1, rows, w, pixels of a cell, in_chans)
        near, is_cell, values = (self._windows(tensor, grid) for tensor in (cells, inside, values))
        distance = (pixels.unsqueeze(-2) - near.unsqueeze(-3)).square().sum(-1)
        exponents = self._space(scale, distance) - distance / (2 * self.sigma_color**2)
        weights = exponents.masked_fill(is_cell.transpose(-1, -2) == 0, -torch.inf).softmax(-1)
        dense = weights.to(values.dtype) @ values  # (1, rows, w, pixels of a cell, chs)
        return dense.unflatten(3, scale).permute(0, 5, 1, 3, 2, 4).flatten(2, 3).flatten(3)

    def _windows(self, padded: Tensor, grid: torch.Size) -> Tensor:
        """The window around each cell: (1, C, rows + 2 * radius, w + 2 * radius) to (1, rows, w, window, C)."""
        windows = F.unfold(padded, 2 * self.radius + 1).unflatten(1, (padded.shape[1], -1)).unflatten(3, grid)
        return windows.permute(0, 3, 4, 2, 1)

    def _space(self, scale: tuple[int, int], like: Tensor) -> Tensor:
        """Exponents of the distance between the pixels of a cell and its window, (pixels of a cell, window)."""
        offsets = torch.arange(-self.radius, self.radius + 1, dtype=like.dtype, device=like.device)
        down, across = (
            ((torch.arange(pixels, dtype=like.dtype, device=like.device) + 0.5) / pixels - 0.5)[:, None] - offsets
            for pixels in scale
        )
        squares = down.square()[:, None, :, None] + across.square()[None, :, None, :]
        return -squares.flatten(2).flatten(0, 1) / (2 * self.sigma_space**2)
