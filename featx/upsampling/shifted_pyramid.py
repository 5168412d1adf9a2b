"""`shifted`: an extractor whose maps have a finer grid, because it also runs on shifted copies of the image.

With s shifts along an axis, a cell of reduction r becomes s cells of reduction f = r / s. If the cells of the extractor
look at the place c pixels after their start, the fine cell a is the cell whose r pixels start at a * f - o, where
o = c - f / 2 makes it look at its own center: it is cell a // s of the run on the image from pixel d * f - o, where
d = a mod s. Pixels outside the image repeat its border. o is rounded, halves down. c is measured: r / 2 for patches,
and 0.5 for padded convolutions, whose fine map is that of the same convolution with the smaller stride.

Amir et al. 2021 (https://arxiv.org/abs/2112.05814) extract overlapping patches by a smaller stride of the patch
embedding, so that all patches attend to each other. Here each run is the model as it was trained, for any family.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil

import torch
from torch import Tensor

from ..arguments import require_number
from ..backbone import Backbone, Pyramid
from ..errors import ArgumentError, ContractError
from ..features import FeatureInfo, Levels
from ..place_proof import cell_centers
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import pyramid_of
from ..wrappers.transparent import Transparent

MOST_ADDED = 64  # cells that are tried beyond those that are needed, for families that pad inside (MobileViTv2)


def shifted(extractor: FeatureExtractWrapper, shifts: int = 2) -> FeatureExtractWrapper:
    """An extractor whose maps have `shifts` times as many cells per side, from `shifts`² runs on shifted images.

    It shares the parameters of `extractor` under the same names, and images of any size work. Prefix tokens are the
    mean of all runs. Levels of different reductions need shifts of their own: an extractor with three reductions runs
    3 * `shifts`² times. The place that cells look at is measured on a copy with random weights.

    Args:
        extractor: the extractor.
        shifts: shifts along each axis. It divides the reduction of every level.

    Raises:
        ArgumentError: `extractor` is not an extractor, a reduction is not a multiple of `shifts`, or the extractor
            accepts one image size only, which is not a whole number of cells.
        ContractError: when called, the cells of a map do not divide the image evenly, as after convolutions without
            padding.
    """
    if not isinstance(extractor, FeatureExtractWrapper):
        raise ArgumentError(f"expected an extractor, got {type(extractor).__name__}: features_only=True builds one")
    require_number(shifts, "shifts", 2, "the number of shifts along each axis, {least} or more")
    wrong = [level for level in extractor.feature_info if level.reduction % shifts]
    if wrong:
        rows = ", ".join(f"{level.name} (1/{level.reduction})" for level in wrong)
        raise ArgumentError(f"shifts={shifts} does not divide the reduction of {rows}: choose a divisor of it")
    fixed = extractor.fixed_size
    if fixed is not None and any(side % level.reduction for side in fixed for level in extractor.feature_info):
        raise ArgumentError(
            f"this extractor accepts images of {fixed} alone, whose sides are not multiples of its reductions"
        )
    return extractor.with_pyramid(ShiftedPyramid(extractor, shifts))


class ShiftedPyramid(Transparent[Pyramid], Pyramid):
    """Maps of an extractor's pyramid on a finer grid, from runs on shifted images.

    Args:
        extractor: the extractor. Levels that it does not return keep their reduction.
        shifts: shifts along each axis.
    """

    def __init__(self, extractor: FeatureExtractWrapper, shifts: int) -> None:
        pyramid, selected = pyramid_of(extractor), extractor.feature_info.out_indices
        super().__init__(pyramid)
        self._shifts = shifts
        self.feature_info = Levels(
            FeatureInfo(level.chs, level.reduction // shifts, level.name) if position in selected else level
            for position, level in enumerate(pyramid.feature_info)
        )
        self._before = {
            position: tuple(ceil(center - level.reduction / shifts / 2 - 0.5) for center in centers)
            for position, level, centers in zip(selected, extractor.feature_info, cell_centers(extractor), strict=True)
        }
        source, self._divisor = extractor.source, extractor.size_divisor
        self._cells = source.size_rule if isinstance(source, Backbone) else Backbone.size_rule
        self.fixed_size, self.smallest, self.excess = pyramid.fixed_size, pyramid.smallest, pyramid.excess
        self.corrections, self.maps_are_normed = pyramid.corrections, pyramid.maps_are_normed

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return [map_ for _, map_ in self.forward_tokens(x, levels)]

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Prefix tokens (N, tokens, chs) and map (N, chs, H / reduction, W / reduction) per level."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        kinds = {level: (self.feature_info[level].reduction, self._before[level]) for level in levels}
        for kind in dict.fromkeys(kinds.values()):
            group = [level for level in levels if kinds[level] == kind]
            runs = [self._inner.forward_tokens(image, group) for image in self._shifted_images(x, *kind)]
            for level, *pairs in zip(group, *runs, strict=True):
                prefix = torch.stack([pair[0] for pair in pairs]).mean(0)
                found[level] = prefix, self._interleaved([pair[1] for pair in pairs], x, level)
        return [found[level] for level in levels]

    def _shifted_images(self, x: Tensor, step: int, before: Sequence[int]) -> Iterator[Tensor]:
        """The images of all runs, row by row: they start `before` pixels before `x` and multiples of `step` later."""
        rows, columns = (
            [_pixels(side, shift * step - start, self._length(side, step), x.device) for shift in range(self._shifts)]
            for side, start in zip(x.shape[2:], before, strict=True)
        )
        for row, column in product(rows, columns):
            yield x.index_select(2, row).index_select(3, column)

    def _length(self, side: int, step: int) -> int:
        """Pixels of a run along a side: whole cells of the pyramid, at least as many as the fine cells need."""
        reduction = step * self._shifts
        least = -(-self._cells(side, step) // self._shifts)
        for cells in range(least, least + MOST_ADDED):
            length = cells * reduction
            if self._cells(length, reduction) == cells and length % self._divisor == 0:
                return length
        raise _uneven(step * self._shifts)

    def _interleaved(self, maps: Sequence[Tensor], x: Tensor, level: int) -> Tensor:
        """One map (N, chs, h, w) of the fine grid from those of all runs."""
        info = self.feature_info[level]
        reduction = info.reduction * self._shifts
        if any(
            cells * reduction != self._length(side, info.reduction)
            for cells, side in zip(maps[0].shape[2:], x.shape[2:], strict=True)
        ):
            raise _uneven(reduction)
        grid = torch.stack([*maps], 2).unflatten(2, (self._shifts, self._shifts))  # (N, chs, s, s, h, w)
        fine = grid.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)
        height, width = (self._cells(side, info.reduction) for side in x.shape[2:])
        return fine[:, :, :height, :width]


def _pixels(side: int, start: int, length: int, device: torch.device) -> Tensor:
    """Indices (length) of the pixels from `start`, with those outside the image replaced by its border."""
    return (torch.arange(length, device=device) + start).clamp(0, side - 1)


def _uneven(reduction: int) -> ContractError:
    return ContractError(
        f"the cells of the maps at 1/{reduction} do not divide the image evenly, as after convolutions without "
        "padding, so that they cannot be interleaved: choose levels of another reduction"
    )
