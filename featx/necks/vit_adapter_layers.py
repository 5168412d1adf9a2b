"""Layers of ViT-Adapter: a convolutional network, and deformable attention between its maps and those of a ViT."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.layers.drop_path import drop_path
from .deformable_attention import DeformableAttention, Size

STRIDES = (8, 16, 32)  # of the maps that take part in attention; the map of stride 4 is made from that of 8


@dataclass(frozen=True, slots=True)
class DeformableConfig:
    """The deformable attention of an adapter.

    Attributes:
        heads: attention heads.
        points: points per head and map.
        ratio: channels inside, relative to those of the ViT.
    """

    heads: int
    points: int = 4
    ratio: float = 1.0

    def build(self, dim: int, levels: int) -> DeformableAttention:
        """The attention of queries of `dim` channels to a number of maps."""
        return DeformableAttention(dim, levels, self.heads, self.points, self.ratio)


@dataclass(frozen=True, slots=True)
class Grids:
    """Where the cells of the convolutional maps and of the ViT lie in each other.

    Attributes:
        sizes: height and width of the convolutional maps.
        vit: height and width of the ViT's map.
        cells_in_vit: (cells, 1, 2), x and y of the center of each convolutional cell in the ViT's map, from 0 to 1.
        vit_in_cells: (h * w, 3, 2), x and y of the center of each cell of the ViT in the convolutional maps.
    """

    sizes: list[Size]
    vit: Size
    cells_in_vit: Tensor
    vit_in_cells: Tensor


def grids_of(maps: Sequence[Tensor], vit_map: Tensor, patch: int) -> Grids:
    """Grids of convolutional maps (N, dim, h, w) of STRIDES and of a ViT's map whose cells have `patch` pixels."""
    sizes, vit = [size_of(map_) for map_ in maps], size_of(vit_map)
    rows = list(zip(maps, sizes, STRIDES, strict=True))
    cells_in_vit = torch.cat([centers_in(map_, stride, vit, patch) for map_, _, stride in rows])
    vit_in_cells = torch.stack([centers_in(vit_map, patch, size, stride) for _, size, stride in rows], 1)
    return Grids(sizes, vit, cells_in_vit[:, None], vit_in_cells)


def centers_in(map_: Tensor, stride: int, size: Size, cell: int) -> Tensor:
    """(h * w, 2), x and y of the centers of the cells of a map, from 0 to 1 in another map.

    Args:
        map_: (N, dim, h, w), whose cells have `stride` pixels.
        stride: see above.
        size: height and width of the other map.
        cell: pixels per cell of the other map.
    """
    y, x = (
        stride * (torch.arange(side, dtype=torch.float32, device=map_.device) + 0.5) / (other * cell)
        for side, other in zip(size_of(map_), size, strict=True)
    )
    return torch.stack([x.expand(y.shape[0], -1), y[:, None].expand(-1, x.shape[0])], -1).flatten(0, 1)


def size_of(map_: Tensor) -> Size:
    """Height and width of a map (N, dim, h, w)."""
    return map_.shape[2], map_.shape[3]


class SpatialPrior(nn.Module):
    """Images to convolutional maps of strides 4, 8, 16 and 32, all with `dim` channels."""

    def __init__(self, in_chs: int, chs: int, dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_conv(in_chs, chs, 2), *_conv(chs, chs, 1), *_conv(chs, chs, 1), nn.MaxPool2d(3, 2, 1)
        )
        self.conv2 = nn.Sequential(*_conv(chs, 2 * chs, 2))
        self.conv3 = nn.Sequential(*_conv(2 * chs, 4 * chs, 2))
        self.conv4 = nn.Sequential(*_conv(4 * chs, 4 * chs, 2))
        self.fc1, self.fc2 = nn.Conv2d(chs, dim, 1), nn.Conv2d(2 * chs, dim, 1)
        self.fc3, self.fc4 = nn.Conv2d(4 * chs, dim, 1), nn.Conv2d(4 * chs, dim, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_chs, H, W) to four maps (N, dim, H / stride, W / stride), sides rounded up."""
        first = self.stem(x)
        second = self.conv2(first)
        third = self.conv3(second)
        fourth = self.conv4(third)
        return [self.fc1(first), self.fc2(second), self.fc3(third), self.fc4(fourth)]


def _conv(in_chs: int, chs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(in_chs, chs, 3, stride, 1, bias=False), nn.BatchNorm2d(chs), nn.ReLU(inplace=True)]


class ConvFFN(nn.Module):
    """A feed-forward network on the cells of several maps, with a depthwise convolution of each map inside."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(dim, hidden), nn.Linear(hidden, dim), nn.GELU()
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)})

    def forward(self, cells: Tensor, sizes: Sequence[Size]) -> Tensor:
        """(N, cells, dim) to (N, cells, dim); `sizes` are height and width of each map."""
        maps = [self.dwconv["dwconv"](map_) for map_ in as_maps(self.fc1(cells), sizes)]
        return self.fc2(self.act(as_cells(maps)))


class Extractor(nn.Module):
    """Attention from the cells of the convolutional maps to those of the ViT, and a ConvFFN."""

    def __init__(self, dim: int, attention: DeformableConfig, ffn_ratio: float, rate: float) -> None:
        super().__init__()
        self.query_norm, self.feat_norm = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn = attention.build(dim, 1)
        self.ffn, self.ffn_norm = ConvFFN(dim, int(dim * ffn_ratio)), nn.LayerNorm(dim, 1e-6)
        self.drop_path = drop_path(rate)

    def forward(self, cells: Tensor, tokens: Tensor, grids: Grids) -> Tensor:
        """Cells (N, cells, dim) of the convolutional maps to the same, from tokens (N, h * w, dim) of the ViT."""
        cells = cells + self.attn(self.query_norm(cells), grids.cells_in_vit, self.feat_norm(tokens), [grids.vit])
        return cells + self.drop_path(self.ffn(self.ffn_norm(cells), grids.sizes))


class Injector(nn.Module):
    """Attention from the tokens of the ViT to the cells of the convolutional maps, scaled per channel."""

    def __init__(self, dim: int, attention: DeformableConfig) -> None:
        super().__init__()
        self.query_norm, self.feat_norm = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn = attention.build(dim, len(STRIDES))
        self.gamma = nn.Parameter(torch.zeros(dim))  # training starts from the plain ViT

    def forward(self, tokens: Tensor, cells: Tensor, grids: Grids) -> Tensor:
        """Tokens (N, h * w, dim) of the ViT to the same, from cells (N, cells, dim) of the convolutional maps."""
        found = self.attn(self.query_norm(tokens), grids.vit_in_cells, self.feat_norm(cells), grids.sizes)
        return tokens + self.gamma * found


class Interaction(nn.Module):
    """A group of the ViT's blocks between an injector, if any, and extractors."""

    def __init__(self, injector: Injector | None, extractors: Sequence[Extractor]) -> None:
        super().__init__()
        self.injector = injector
        self.extractor, *others = extractors
        self.extra_extractors = nn.Sequential(*others) if others else None

    def extract(self, cells: Tensor, tokens: Tensor, grids: Grids) -> Tensor:
        """Cells (N, cells, dim) after all extractors, from tokens (N, h * w, dim) of the ViT."""
        cells = self.extractor(cells, tokens, grids)
        for extractor in self.extra_extractors or ():
            cells = extractor(cells, tokens, grids)
        return cells


def as_cells(maps: Sequence[Tensor]) -> Tensor:
    """Maps (N, dim, h, w) to their cells (N, cells, dim), one map after another."""
    return torch.cat([map_.flatten(2) for map_ in maps], 2).transpose(1, 2)


def as_maps(cells: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """The inverse of `as_cells`."""
    parts = cells.transpose(1, 2).split([height * width for height, width in sizes], 2)
    return [part.reshape(*part.shape[:2], *size) for part, size in zip(parts, sizes, strict=True)]


def resampled(map_: Tensor, patch: int, like: Tensor, stride: int) -> Tensor:
    """A map whose cells have `patch` pixels, bilinearly at the cells of `like`, which have `stride` pixels."""
    centers = centers_in(like, stride, size_of(map_), patch)
    grid = (2 * centers - 1).to(map_.dtype).reshape(1, *size_of(like), 2).expand(map_.shape[0], -1, -1, -1)
    return F.grid_sample(map_, grid, padding_mode="border", align_corners=False)


def cropped(map_: Tensor, like: Tensor) -> Tensor:
    """The first rows and columns of a map, as many as `like` has. Exporters cannot prove that a slice has as many."""
    height, width = (torch.arange(side, device=map_.device) for side in size_of(like))
    return map_.index_select(2, height).index_select(3, width)
