"""The proof of place: where pixels change, the cell that covers them changes, and no other cell changes more.

Trained values do not show this: a class token, a pooled gate or one loud channel may carry a change further than to the
pixels' own cell. So the proof is about the architecture, and runs on a copy with weights drawn so that places stay
visible. A convolution keeps the taps at the middle of its kernel and little of the others, which shrinks its receptive
field to the point that paddings and strides give it. Linear layers are small, so that a residual stream keeps what a
token was. Batch norms have the statistics of what they normalise.
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

PATCHES = 8  # at most, of one reduction and size
TRIALS = 5  # draws of weights and pixels whose evidence is added up; one is enough for most models
WEAKEST = 0.25  # of the strongest change of any cell: that of the patch's own
OFF_CENTRE = 1e-4  # energy of a kernel's other taps, over that of the taps at its middle
SMALLEST = 32  # pixels: half the side of the square image, which leaves a ViT of patch 16 with 4x4 cells
SHAPES = ((2, 2), (2, 3), (3, 2))  # square, wide and tall


def proof_sizes(extractor: FeatureExtractWrapper) -> list[Size]:
    """A square, a wide and a tall size (height, width) in pixels at which places can be compared with the image.

    They are the smallest multiples of all reductions at which each map has at least two cells along a side, and no cell
    beyond the image. A model that takes none of them is tried at its own size and its multiples, one that takes a
    single size is run at that.
    """
    fixed = extractor.fixed_size
    unit = lcm(*extractor.feature_info.reduction(), extractor.size_divisor)
    unit *= -(-SMALLEST // unit)
    units = [(unit, unit), (2 * unit, 2 * unit)]
    if extractor.data_config is not None and not any(side % 2 for side in extractor.data_config.size):
        units.append((extractor.data_config.size[0] // 2, extractor.data_config.size[1] // 2))
    found: list[Size] = []
    for height, width in units if fixed is None else []:
        sizes = [(rows * height, columns * width) for rows, columns in SHAPES]
        taken = [size for size in sizes if _takes(extractor, size)]
        found = max(found, taken, key=len)
        if len(found) == len(SHAPES):
            break
    return found if fixed is None else [fixed]


def _takes(extractor: FeatureExtractWrapper, size: Size) -> bool:
    try:
        maps = maps_in(run_on_meta(extractor, meta_images(extractor, size)))
    except (ContractError, InputError):  # of a model that runs out of pixels too
        return False
    return all(
        2 <= cells <= side // level.reduction
        for level, map_ in zip(extractor.feature_info, maps, strict=True)
        for side, cells in zip(size, map_.shape[2:], strict=True)
    )


@torch.no_grad()
def misplaced(extractor: FeatureExtractWrapper, sizes: Sequence[Size]) -> list[str]:
    """A sentence for each level and size (height, width) at which a map changes elsewhere than the image does.

    Deterministic. The extractor and PyTorch's generators stay as they are.
    """
    left = {(size, level): _Evidence(size, level.reduction) for size in sizes for level in extractor.feature_info}
    for seed in range(TRIALS):
        if not left:
            break
        drawn, generator = _drawn(extractor, sizes[0], seed), torch.Generator().manual_seed(seed)
        for size, reduction in dict.fromkeys((size, level.reduction) for size, level in left):
            for level, change in _changes(drawn, size, reduction, generator):
                if (size, level) in left:
                    left[size, level].add(change)
        left = {key: evidence for key, evidence in left.items() if evidence.wrong()}
    return list(_described(left))


def _described(left: "dict[tuple[Size, FeatureInfo], _Evidence]") -> Iterator[str]:
    """One sentence per size: the levels out of place there, and what the first of them showed."""
    for size in dict.fromkeys(size for size, _ in left):
        found = {level.name: evidence for (other, level), evidence in left.items() if other == size}
        name, evidence = next(iter(found.items()))
        wrong = evidence.wrong()
        pixels, cell = wrong[0]
        yield (
            f"cells do not lie as the pixels do at {size[0]}x{size[1]} in {', '.join(found)}: pixels of cell {pixels} "
            f"change cell {cell} of {name} most, and {len(wrong)} of {len(evidence.cells)} patches a cell elsewhere"
        )


class _Evidence:
    """How strongly each cell of a map changes when one patch of the image does, over several trials.

    Two measures are kept, and a patch is in place if one of them says so: the change itself, and the change over what
    is typical of the cell, which takes away what global mixing does to a loud cell whatever the patch.
    """

    def __init__(self, size: Size, reduction: int) -> None:
        self.cells, self.grid = patches(size, reduction), (size[0] // reduction, size[1] // reduction)
        self.plain, self.unusual = torch.zeros(()), torch.zeros(())

    def add(self, change: Tensor) -> None:
        """Take in one trial: (patches, h, w), 0 or more."""
        typical = change.median(0).values + 0.1 * change.amax((1, 2)).median()
        self.plain = self.plain + _over_strongest(change)
        self.unusual = self.unusual + _over_strongest(change / typical)

    def wrong(self) -> list[tuple[Cell, Cell]]:
        """Patches whose own cell changes too little, each with the cell that changes most.

        A map with fewer cells than the image has patches, from convolutions without padding, may start anywhere inside.
        """
        height, width = self.plain.shape[1:]
        shifts = [(y, x) for y in range(self.grid[0] - height + 1) for x in range(self.grid[1] - width + 1)]
        return min((self._wrong(shift) for shift in shifts), key=len)

    def _wrong(self, shift: Cell) -> list[tuple[Cell, Cell]]:
        found = []
        height, width = self.plain.shape[1:]
        for index, (row, column) in enumerate(self.cells):
            y, x = row - shift[0], column - shift[1]
            measures = (self.plain[index], self.unusual[index])
            if not (0 <= y < height and 0 <= x < width) or any(m[y, x] >= WEAKEST * m.max() > 0 for m in measures):
                continue
            found.append(((row, column), divmod(int(self.plain[index].argmax()), width)))
        return found


def _over_strongest(change: Tensor) -> Tensor:
    """(patches, h, w), the strongest of each patch 1; zeros where nothing changed or values are not finite."""
    return (change / change.amax((1, 2), keepdim=True)).nan_to_num(0, 0, 0)


def patches(size: Size, reduction: int) -> list[Cell]:
    """(row, column) of the cells whose pixels are changed: all if they are few, or the corners and some of the rest."""
    height, width = size[0] // reduction, size[1] // reduction
    corners = dict.fromkeys((row, column) for row in (0, height - 1) for column in (0, width - 1))
    order = torch.randperm(height * width, generator=torch.Generator().manual_seed(height)).tolist()
    return list({**corners, **dict.fromkeys(divmod(cell, width) for cell in order)})[:PATCHES]


def _changes(
    drawn: FeatureExtractWrapper, size: Size, reduction: int, generator: torch.Generator
) -> list[tuple[FeatureInfo, Tensor]]:
    """Of each level of 1/`reduction`, how far each cell moves when the pixels of one do: (patches, h, w)."""
    image = _images(drawn, 1, size, generator)
    other = image + 2 * _images(drawn, 1, size, generator).sign()  # as far for every pixel
    images = [image]
    for row, column in patches(size, reduction):
        rows, columns = (slice(start * reduction, (start + 1) * reduction) for start in (row, column))
        images.append(image.clone())
        images[-1][..., rows, columns] = other[..., rows, columns]
    levels = dict(zip(drawn.feature_info.out_indices, drawn.feature_info, strict=True))
    asked = sorted(place for place, level in levels.items() if level.reduction == reduction)
    maps = [
        map_.double() for map_ in pyramid_of(drawn).forward_maps(torch.cat(images), asked)
    ]  # ends at the deepest asked
    return [(levels[place], (map_[1:] - map_[:1]).norm(dim=1).cpu()) for place, map_ in zip(asked, maps, strict=True)]


def _images(extractor: FeatureExtractWrapper, count: int, size: Size, generator: torch.Generator) -> Tensor:
    device = next((parameter.device for parameter in extractor.parameters()), None)
    return torch.randn(count, channels_of(extractor), *size, generator=generator).to(device)


def _drawn(extractor: FeatureExtractWrapper, size: Size, seed: int) -> FeatureExtractWrapper:
    """A copy in single precision and evaluation, with the weights that the module's docstring describes."""
    copied, generator = copy.deepcopy(extractor).float().eval(), torch.Generator().manual_seed(seed)
    for name, parameter in copied.named_parameters():
        drawn = _weights(name.rpartition(".")[2], parameter.shape, generator)
        if drawn is not None and parameter.is_floating_point():
            parameter.copy_(drawn)
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
    """Values of a parameter; None for one that stays as it is, such as positions and scales of residual branches."""
    if len(shape) == 4:
        return torch.randn(*shape, generator=generator) * _centred(shape[2], shape[3]) * (2 / shape[1]) ** 0.5
    if len(shape) == 2:
        return torch.randn(*shape, generator=generator) * 0.5 * shape[1] ** -0.5
    if len(shape) == 1 and name == "weight":
        return torch.rand(*shape, generator=generator) + 0.5
    return torch.randn(*shape, generator=generator) * 0.1 if len(shape) == 1 and name == "bias" else None


def _centred(height: int, width: int) -> Tensor:
    """Scales of a kernel's taps: of energy 1 the middle ones, which are two along an even side, OFF_CENTRE the rest."""
    rows, columns = ((torch.arange(side) - (side - 1) / 2).abs() <= 0.5 for side in (height, width))
    middle = (rows[:, None] & columns).float()
    rest = 1 - middle
    return middle / middle.sum().sqrt() + rest * (OFF_CENTRE / rest.sum().clamp(min=1)).sqrt()
