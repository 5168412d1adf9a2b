"""Proof of spatial alignment: changed pixels change the cell that covers them, and no other cell more.

Trained weights do not show this: a class token, a pooled gate or a channel of large values may spread a change beyond
its cell. The proof concerns the architecture, and runs on a copy with random weights that preserve positions. The
center taps of a convolution dominate the others, so that its receptive field shrinks to the point that padding and
stride determine. Linear layers have small weights, so that the residual stream preserves tokens. Batch norms have the
statistics of their inputs.
"""

import copy
from collections.abc import Iterator, Sequence
from math import lcm

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import ContractError, InputError
from .features import FeatureInfo
from .tracing.execution_order import channels_of, meta_images, run_on_meta
from .wrappers import FeatureExtractWrapper
from .wrappers.extractor import maps_in, pyramid_of

Size = tuple[int, int]
Cell = tuple[int, int]

PATCHES = 8  # largest number of patches per reduction and size
TRIALS = 5  # random draws of weights and pixels whose evidence is summed; one is enough for most models
WEAKEST = 0.25  # smallest change of a patch's own cell, relative to the strongest change of any cell
OFF_CENTER = 1e-4  # energy of a kernel's other taps, relative to its center taps
SMALLEST = 32  # pixels: half the side of the square image, in which a ViT of patch 16 has 4x4 cells
CELLS = 5  # of the deepest map along a side of the images in which the centers of cells are measured
DRAWS = 8  # such images, each with a random direction of the cell's channels
SHAPES = ((2, 2), (2, 3), (3, 2))  # square, wide and tall


def proof_sizes(extractor: FeatureExtractWrapper) -> list[Size]:
    """A square, a wide and a tall image size (height, width) in pixels for the proof.

    They are the smallest multiples of all reductions at which each map has at least two cells along a side, and no cell
    beyond the image. For a model that accepts none of them, its own size and multiples of that are tried. A fixed size
    is returned alone.
    """
    fixed = extractor.fixed_size
    unit = lcm(*extractor.feature_info.reduction(), extractor.size_divisor)
    unit *= -(-SMALLEST // unit)
    units = [(unit, unit), (2 * unit, 2 * unit)]
    if extractor.data_config is not None and not any(side % 2 for side in extractor.data_config.size):
        units.append((extractor.data_config.size[0] // 2, extractor.data_config.size[1] // 2))
    accepted: list[Size] = []
    for height, width in units if fixed is None else []:
        sizes = [(rows * height, columns * width) for rows, columns in SHAPES]
        accepted = max(accepted, [size for size in sizes if _accepts(extractor, size)], key=len)
        if len(accepted) == len(SHAPES):
            break
    return accepted if fixed is None else [fixed]


def _accepts(extractor: FeatureExtractWrapper, size: Size) -> bool:
    try:
        maps = maps_in(run_on_meta(extractor, meta_images(extractor, size)))
    except (ContractError, InputError):  # also raised by a model for which the images are too small
        return False
    return all(
        2 <= cells <= side // level.reduction
        for level, map_ in zip(extractor.feature_info, maps, strict=True)
        for side, cells in zip(size, map_.shape[2:], strict=True)
    )


@torch.no_grad()
def misplaced(extractor: FeatureExtractWrapper, sizes: Sequence[Size]) -> list[str]:
    """Sentences on the levels and sizes (height, width) at which a map changes elsewhere than the image.

    Deterministic. The extractor and PyTorch's random generators do not change.
    """
    pending = {(size, level): _Evidence(size, level.reduction) for size in sizes for level in extractor.feature_info}
    for seed in range(TRIALS):
        if not pending:
            break
        randomized, generator = _randomized(extractor, sizes[0], seed), torch.Generator().manual_seed(seed)
        for size, reduction in dict.fromkeys((size, level.reduction) for size, level in pending):
            for level, change in _changes(randomized, size, reduction, generator):
                if (size, level) in pending:
                    pending[size, level].add(change)
        pending = {key: evidence for key, evidence in pending.items() if evidence.wrong()}
    return list(_problems(pending))


@torch.inference_mode(False)  # gradients are needed
def cell_centers(extractor: FeatureExtractWrapper) -> list[tuple[float, float]]:
    """The place that the cells of each level look at, (down, across) in pixels from the first pixel of the cell.

    It is the median of the squared gradient of a cell in the middle of images, with the weights of the proof: half the
    reduction for patches, and about 0.5 for padded convolutions with a stride. Half the reduction is also returned
    if the extractor accepts no size for the measurement.
    """
    levels = extractor.feature_info
    unit = lcm(*levels.reduction(), extractor.size_divisor)
    sizes = [(CELLS * unit, CELLS * unit)]
    if extractor.fixed_size is not None or not _accepts(extractor, sizes[0]):
        sizes = proof_sizes(extractor)[:1]
    if not sizes:
        return [(level.reduction / 2, level.reduction / 2) for level in levels]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        twin = _randomized(extractor, sizes[0], 0).requires_grad_(False)
    x = _images(twin, DRAWS, sizes[0], generator).requires_grad_()
    maps = zip(levels, maps_in(twin(x)), strict=True)
    return [_center(map_, x, level.reduction, generator) for level, map_ in maps]


def _center(map_: Tensor, x: Tensor, reduction: int, generator: torch.Generator) -> tuple[float, float]:
    """The place that the middle cell of the map looks at, in half pixels from the first pixel of the cell."""
    cell = map_.shape[2] // 2, map_.shape[3] // 2
    directions = torch.randn(map_.shape[:2], generator=generator).to(map_)
    value = (map_[:, :, cell[0], cell[1]] * directions).sum()
    (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
    energy = gradient.double().square().sum((0, 1))
    down, across = (_median(energy.sum(1 - axis)) - reduction * cell[axis] for axis in (0, 1))
    # outside of the cell it is a coarser branch, or global mixing, that changes the cell most
    down, across = (min(max(round(2 * place) / 2, 0.0), float(reduction)) for place in (down, across))
    return down, across


def _median(weights: Tensor) -> float:
    """The place that halves the sum of the weights of pixels, each of which is spread over its pixel."""
    total, sums = float(weights.sum()), weights.cumsum(0)
    pixel = int((sums < total / 2).sum())
    return pixel + 1 - (float(sums[pixel]) - total / 2) / float(weights[pixel])


def _problems(failed: "dict[tuple[Size, FeatureInfo], _Evidence]") -> Iterator[str]:
    """One sentence per size: the misaligned levels, and the evidence of the first one."""
    for size in dict.fromkeys(size for size, _ in failed):
        levels = {level.name: evidence for (other, level), evidence in failed.items() if other == size}
        name, evidence = next(iter(levels.items()))
        wrong = evidence.wrong()
        pixels, cell = wrong[0]
        yield (
            f"cells do not lie as the pixels do at {size[0]}x{size[1]} in {', '.join(levels)}: pixels of cell {pixels} "
            f"change cell {cell} of {name} most, and {len(wrong)} of {len(evidence.cells)} patches a cell elsewhere"
        )


class _Evidence:
    """How strongly each cell of a map changes when one patch of the image changes, summed over trials.

    Two measures are kept, and a patch is aligned if one of them confirms it: the change itself, and the change relative
    to the cell's typical change, which removes the effect of global mixing on cells that change for every patch.
    """

    def __init__(self, size: Size, reduction: int) -> None:
        self.cells, self.grid = patches(size, reduction), (size[0] // reduction, size[1] // reduction)
        self.plain, self.unusual = torch.zeros(()), torch.zeros(())

    def add(self, change: Tensor) -> None:
        """Add the changes of one trial: (patches, h, w), 0 or more."""
        typical = change.median(0).values + 0.1 * change.amax((1, 2)).median()
        self.plain = self.plain + _over_strongest(change)
        self.unusual = self.unusual + _over_strongest(change / typical)

    def wrong(self) -> list[tuple[Cell, Cell]]:
        """Patches whose own cell changes too little, each with the cell that changes most.

        A map with fewer cells than the image has patches, from convolutions without padding, may have any offset.
        """
        height, width = self.plain.shape[1:]
        shifts = [(y, x) for y in range(self.grid[0] - height + 1) for x in range(self.grid[1] - width + 1)]
        return min((self._wrong(shift) for shift in shifts), key=len)

    def _wrong(self, shift: Cell) -> list[tuple[Cell, Cell]]:
        failures = []
        height, width = self.plain.shape[1:]
        for index, (row, column) in enumerate(self.cells):
            y, x = row - shift[0], column - shift[1]
            measures = (self.plain[index], self.unusual[index])
            if not (0 <= y < height and 0 <= x < width) or any(m[y, x] >= WEAKEST * m.max() > 0 for m in measures):
                continue
            failures.append(((row, column), divmod(int(self.plain[index].argmax()), width)))
        return failures


def _over_strongest(change: Tensor) -> Tensor:
    """Scale (patches, h, w) to a maximum of 1 per patch; zeros where nothing changed or values are not finite."""
    return (change / change.amax((1, 2), keepdim=True)).nan_to_num(0, 0, 0)


def patches(size: Size, reduction: int) -> list[Cell]:
    """(row, column) of the cells whose pixels are changed: all, or the corners and a random sample."""
    height, width = size[0] // reduction, size[1] // reduction
    corners = dict.fromkeys((row, column) for row in (0, height - 1) for column in (0, width - 1))
    order = torch.randperm(height * width, generator=torch.Generator().manual_seed(height)).tolist()
    return list({**corners, **dict.fromkeys(divmod(cell, width) for cell in order)})[:PATCHES]


def _changes(
    extractor: FeatureExtractWrapper, size: Size, reduction: int, generator: torch.Generator
) -> list[tuple[FeatureInfo, Tensor]]:
    """For each level of 1/`reduction`, the change of each cell per changed patch: (patches, h, w)."""
    image = _images(extractor, 1, size, generator)
    other = image + 2 * _images(extractor, 1, size, generator).sign()  # the same distance for every pixel
    images = [image]
    for row, column in patches(size, reduction):
        rows, columns = (slice(start * reduction, (start + 1) * reduction) for start in (row, column))
        images.append(image.clone())
        images[-1][..., rows, columns] = other[..., rows, columns]
    levels = dict(zip(extractor.feature_info.out_indices, extractor.feature_info, strict=True))
    indices = sorted(index for index, level in levels.items() if level.reduction == reduction)
    # forward_maps stops at the deepest of these levels
    maps = [map_.double() for map_ in pyramid_of(extractor).forward_maps(torch.cat(images), indices)]
    return [(levels[index], (map_[1:] - map_[:1]).norm(dim=1).cpu()) for index, map_ in zip(indices, maps, strict=True)]


def _images(extractor: FeatureExtractWrapper, count: int, size: Size, generator: torch.Generator) -> Tensor:
    device = next((parameter.device for parameter in extractor.parameters()), None)
    return torch.randn(count, channels_of(extractor), *size, generator=generator).to(device)


def _randomized(extractor: FeatureExtractWrapper, size: Size, seed: int) -> FeatureExtractWrapper:
    """A copy in float32 and evaluation mode, with the random weights that the module's docstring describes."""
    copied, generator = copy.deepcopy(extractor).float().eval(), torch.Generator().manual_seed(seed)
    for name, parameter in copied.named_parameters():
        values = _weights(name.rpartition(".")[2], parameter.shape, generator)
        if values is not None and parameter.is_floating_point():
            parameter.copy_(values)
    for name, buffer in copied.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.fill_(name.endswith("var"))
    norms = [module for module in copied.modules() if isinstance(module, _BatchNorm)]
    norms = [norm for norm in norms if norm.running_mean is not None and not isinstance(norm, nn.SyncBatchNorm)]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        copied(_images(copied, 4, size, generator))
    return copied.eval()


def _weights(name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor | None:
    """Random values of a parameter; None to keep its values, as for positions and scales of residual branches."""
    if len(shape) == 4:
        return torch.randn(*shape, generator=generator) * _tap_scales(shape[2], shape[3]) * (2 / shape[1]) ** 0.5
    if len(shape) == 2:
        return torch.randn(*shape, generator=generator) * 0.5 * shape[1] ** -0.5
    if len(shape) == 1 and name == "weight":
        return torch.rand(*shape, generator=generator) + 0.5
    return torch.randn(*shape, generator=generator) * 0.1 if len(shape) == 1 and name == "bias" else None


def _tap_scales(height: int, width: int) -> Tensor:
    """Scales of a kernel's taps: energy 1 for the center taps, two along an even side, and OFF_CENTER for the rest."""
    rows, columns = ((torch.arange(side) - (side - 1) / 2).abs() <= 0.5 for side in (height, width))
    center = (rows[:, None] & columns).float()
    rest = 1 - center
    return center / center.sum().sqrt() + rest * (OFF_CENTER / rest.sum().clamp(min=1)).sqrt()
