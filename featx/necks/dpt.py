"""DPT's neck: a pyramid from several blocks of a plain ViT, and its fusion (https://arxiv.org/abs/2103.13413).

Parameter names and outputs are those of `DPTNeck` in transformers, whose checkpoints have the tensors of `Reassemble`
under `neck.reassemble_stage.` and those of `FeatureFusion` under `neck.`.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError, ContractError, InputError
from ..features import Levels
from .base import Neck, levels_from, levels_of, pyramid_of
from .simple_feature_pyramid import require_halving, strides_at

Readout = Literal["ignore", "add", "project"]
READOUTS: tuple[Readout, ...] = ("ignore", "add", "project")
CHANNELS = (96, 192, 384, 768)  # of ViT-B in the paper; ViT-L has (256, 512, 1024, 1024)
FACTORS = (4.0, 2.0, 1.0, 0.5)


class Reassemble(Neck):
    """Maps of several blocks of a plain ViT to a pyramid: one map per stride, each from another block.

    Each map gets a 1x1 convolution and then a transposed convolution (finer cells) or a strided one (coarser cells).

    Args:
        feature_info: levels of one reduction, shallow to deep, such as four blocks of a ViT.
        chs: channels of each output map.
        scale_factors: sides of each output map relative to its input map, each half of the previous one: for a patch of
            16 pixels, 4, 2, 1 and 0.5 give strides of 4, 8, 16 and 32.
        readout: how the class token reaches the maps: "ignore"; "add" it to each cell; "project" each cell and the
            token, concatenated, by a linear layer and GELU. "add" and "project" need an extractor with
            `output="tokens"`.

    Raises:
        ArgumentError: `chs` or `scale_factors` do not match the levels, or `readout` is unknown.
        ContractError: the levels have several reductions, or strides are not whole pixels.
        InputError: when called with `readout` other than "ignore" on maps without prefix tokens.
    """

    def __init__(
        self,
        feature_info: object,
        chs: Sequence[int] = CHANNELS,
        *,
        scale_factors: Sequence[float] = FACTORS,
        readout: Readout = "ignore",
    ) -> None:
        levels = levels_of(feature_info, "Reassemble")
        _require_counts(levels, chs, scale_factors)
        if readout not in READOUTS:
            raise ArgumentError(f"readout={readout!r}: choose one of {READOUTS}")
        strides = strides_at(levels[0].reduction, scale_factors)
        super().__init__(levels)
        self.scale_factors, self.readout, self.takes_tokens = tuple(scale_factors), readout, readout != "ignore"
        self.feature_info = levels_from(
            (c, s, f"layers.{i}") for i, (c, s) in enumerate(zip(chs, strides, strict=True))
        )
        if readout == "project":
            self.readout_projects = nn.ModuleList(
                nn.Sequential(nn.Linear(2 * level.chs, level.chs), nn.GELU()) for level in levels
            )
        self.layers = nn.ModuleList(
            ReassembleLayer(level.chs, width, factor)
            for level, width, factor in zip(levels, chs, scale_factors, strict=True)
        )

    def forward(self, maps: Sequence[Tensor] | Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Maps, or with a readout pairs of prefix tokens and map, to maps; see `Neck.forward`."""
        if not self.takes_tokens:
            return super().forward(cast(Sequence[Tensor], maps))
        if not all(isinstance(item, tuple) and item[0].ndim == 3 and item[0].shape[1] for item in maps):
            raise InputError(
                f'readout="{self.readout}" takes pairs of prefix tokens (N, tokens, chs) and map: build the extractor '
                'of a ViT with a class token and output="tokens", or use readout="ignore"'
            )
        return super().forward([self._read(i, *cast(tuple[Tensor, Tensor], pair)) for i, pair in enumerate(maps)])

    def _read(self, position: int, prefix: Tensor, map_: Tensor) -> Tensor:
        """The map (N, chs, h, w) with the class token, the first prefix token, in each cell."""
        token = prefix[:, :1]  # (N, 1, chs)
        if self.readout == "add":
            return map_ + token.transpose(1, 2).unsqueeze(-1)
        cells = map_.flatten(2).transpose(1, 2)  # (N, h * w, chs)
        project = self.readout_projects[position]
        return project(torch.cat([cells, token.expand_as(cells)], -1)).transpose(1, 2).unflatten(2, map_.shape[2:])

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        return [layer(map_) for layer, map_ in zip(self.layers, maps, strict=True)]

    def cells(self, cells: Sequence[int]) -> list[int]:
        pairs = zip(cells, self.scale_factors, strict=True)
        return [-(-count // int(1 / factor)) if factor < 1 else count * int(factor) for count, factor in pairs]


def _require_counts(levels: Levels, chs: Sequence[int], scale_factors: Sequence[float]) -> None:
    """Raise ContractError for levels of several reductions, ArgumentError unless there is one value for each level."""
    require_halving(scale_factors)
    if len({*levels.reduction()}) != 1:
        raise ContractError(
            f"Reassemble takes levels of one reduction, such as four blocks of a ViT, got\n{levels}\nA model whose "
            "levels are a pyramid already needs FPN instead"
        )
    if not len(levels) == len(chs) == len(scale_factors):
        raise ArgumentError(
            f"{len(levels)} levels, {len(chs)} chs and {len(scale_factors)} scale_factors: expected one of each for "
            f"each level; choose {len(scale_factors)} levels with out_indices"
        )


class ReassembleLayer(nn.Sequential):
    """A 1x1 convolution, and a convolution that scales the sides of the map."""

    def __init__(self, in_chs: int, chs: int, factor: float) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_chs, chs, 1)
        if factor > 1:
            self.resize = nn.ConvTranspose2d(chs, chs, int(factor), int(factor))
        elif factor == 1:
            self.resize = nn.Identity()
        else:
            self.resize = nn.Conv2d(chs, chs, 3, int(1 / factor), 1)


class FeatureFusion(Neck):
    """RefineNet's fusion as in DPT: from the deepest map to the shallowest, each sum twice as large as its maps.

    transformers returns these maps from the deepest to the shallowest. Where sides are not multiples, a fused map is
    resized to the next map, and not the next map to it, so that cells keep their places.

    Args:
        feature_info: levels whose reductions double.
        chs: channels of the output maps.

    Raises:
        ContractError: reductions do not double, or the first is odd, so that its half is not a whole number.
    """

    def __init__(self, feature_info: object, chs: int = 256) -> None:
        levels = pyramid_of(feature_info, "FeatureFusion")
        if levels[0].reduction % 2:
            raise ContractError(
                f"FeatureFusion halves the stride of {levels[0].reduction} pixels, which is odd:\n{levels}\nPut "
                "featx.necks.Resample(feature_info, 16) before the pyramid"
            )
        super().__init__(levels)
        last = len(levels) - 1
        self.feature_info = levels_from(
            (chs, level.reduction // 2, f"fusion_stage.layers.{last - i}") for i, level in enumerate(levels)
        )
        self.convs = nn.ModuleList(nn.Conv2d(level.chs, chs, 3, padding=1, bias=False) for level in levels)
        self.fusion_stage = nn.ModuleDict(
            {"layers": nn.ModuleList(FusionLayer(chs, skip=i > 0) for i in range(len(levels)))}
        )
        self.register_load_state_dict_pre_hook(_drop_unused)

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        projected = [conv(map_) for conv, map_ in zip(self.convs, maps, strict=True)]
        fused: list[Tensor] = []
        layers = cast(nn.ModuleList, self.fusion_stage["layers"])
        for position, layer in zip(reversed(range(len(maps))), layers, strict=True):
            height, width = maps[position].shape[2:]
            size = maps[position - 1].shape[2:] if position else (2 * height, 2 * width)
            skip = projected[position] if fused else None
            fused.append(layer(fused[-1] if fused else projected[position], skip, size))
        return fused[::-1]

    def cells(self, cells: Sequence[int]) -> list[int]:
        return [2 * cells[0], *cells[:-1]]


def _drop_unused(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Remove the first layer's residual block of a next map: transformers has it without using it."""
    for name in [name for name in state if name.startswith(f"{prefix}fusion_stage.layers.0.residual_layer1.")]:
        del state[name]


class FusionLayer(nn.Module):
    """Adds a residual block of the next map, applies another one, resizes, and applies a 1x1 convolution.

    Args:
        chs: channels of all maps.
        skip: whether there is a next map.
    """

    def __init__(self, chs: int, skip: bool) -> None:
        super().__init__()
        self.projection = nn.Conv2d(chs, chs, 1)
        self.residual_layer1 = ResidualConvUnit(chs) if skip else None
        self.residual_layer2 = ResidualConvUnit(chs)

    def forward(self, x: Tensor, skip: Tensor | None, size: Sequence[int]) -> Tensor:
        """(N, chs, h, w) to (N, chs, *size)."""
        if self.residual_layer1 is not None and skip is not None:
            x = x + self.residual_layer1(skip)
        x = self.residual_layer2(x)
        return self.projection(F.interpolate(x, list(size), mode="bilinear", align_corners=True))


class ResidualConvUnit(nn.Module):
    """Two 3x3 convolutions after ReLUs, added to the input."""

    def __init__(self, chs: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(chs, chs, 3, padding=1)
        self.convolution2 = nn.Conv2d(chs, chs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolution2(F.relu(self.convolution1(F.relu(x))))
