"""ViT-Adapter: a pyramid from a plain ViT and a small convolutional network (https://arxiv.org/abs/2205.08534).

Parameter names and outputs are those of the published ViT-Adapter, and of the adapter of DINOv3's segmentation
(https://arxiv.org/abs/2508.10104). The maps of the two meet in deformable attention. Sides that are not multiples of 32
pixels, which both programs refuse or misplace, have partial cells at the right and bottom.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ..backbone import Pyramid
from ..errors import ContractError
from ..features import FeatureInfo, Levels
from ..models.layers.conv_norm import init_by_fan_out
from ..models.vit import ViT
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import maps_in
from ..wrappers.transparent import without
from .deformable_attention import DeformableAttention
from .vit_adapter_layers import (
    STRIDES,
    DeformableConfig,
    Extractor,
    Grids,
    Injector,
    Interaction,
    SpatialPrior,
    as_cells,
    as_maps,
    cropped,
    grids_of,
    resampled,
)


class AdapterPyramid(Pyramid):
    """What both adapters share: maps of strides 4, 8, 16 and 32 from those of a ViT and of a SpatialPrior.

    Attributes:
        backbone: the ViT or its extractor.
        feature_info: four levels with the channels of the ViT; a map is the output of one of the norms.
    """

    def __init__(
        self, backbone: nn.Module, level: FeatureInfo, prior_chs: int, interactions: Sequence[Interaction]
    ) -> None:
        super().__init__()
        dim, self.patch = level.chs, level.reduction
        self.in_chans = getattr(backbone, "in_chans", None) or 3
        self.backbone = backbone
        self.level_embed = nn.Parameter(torch.randn(len(STRIDES), dim))
        self.spm = SpatialPrior(self.in_chans, prior_chs, dim)
        self.interactions = nn.Sequential(*interactions)
        self.up = nn.ConvTranspose2d(dim, dim, 2, 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.BatchNorm2d(dim) for _ in range(4))
        self.initialize_adapter()
        self.feature_info = Levels(FeatureInfo(dim, 4 * 2**i, f"norm{i + 1}") for i in range(4))
        if (config := getattr(backbone, "data_config", None)) is not None:
            self.data_config = config
        self.load_report = getattr(backbone, "load_report", None)

    def initialize_adapter(self) -> None:
        """Initialize all but the ViT in place, as the published programs."""
        for part in (self.spm, self.interactions):
            init_by_fan_out(part, _trunc_normal)
        for name, parameter in self.up.named_parameters():
            nn.init.normal_(parameter, std=(2 / (4 * self.up.out_channels)) ** 0.5 if name == "weight" else 0.0)
        for module in self.interactions.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()

    def _priors(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The convolutional map of stride 4, and those of STRIDES with their level's embedding."""
        first, *maps = self.spm(x)
        return first, [map_ + embed[:, None, None] for map_, embed in zip(maps, self.level_embed, strict=True)]

    def _pyramid(self, first: Tensor, cells: Tensor, vit_maps: Sequence[Tensor], grids: Grids) -> list[Tensor]:
        """The maps of all levels, from the cells after the last interaction."""
        maps = as_maps(cells, grids.sizes)
        finest = cropped(self.up(maps[0]), first) + first
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        rows = zip(norms, [finest, *maps], vit_maps, (4, *STRIDES), strict=True)
        return [norm(map_ + resampled(vit_map, self.patch, map_, stride)) for norm, map_, vit_map, stride in rows]


class DINOv3Adapter(AdapterPyramid):
    """The adapter of DINOv3's segmentation: the ViT runs as it is, usually frozen, and extractors read its maps.

    Wrap it to get an extractor: `FeatureExtractWrapper(DINOv3Adapter(extractor))`.

    Args:
        extractor: an extractor of four levels of a plain ViT of any package. DINOv3 uses normed maps: build it with
            `norm_maps=True`. Call `featx.training.freeze(adapter.backbone)` to train the adapter alone.
        attention: deformable attention of the extractors. Published: 16 heads and ratio=0.5.
        prior_chs: channels of the first convolutions.
        ffn_ratio: hidden channels of the feed-forward networks, relative to those of the ViT.
        drop_path_rate: stochastic depth rate of the feed-forward networks.

    Raises:
        ContractError: `extractor` is not an extractor of four levels of one reduction.
        ArgumentError: channels are not a multiple of the heads.
    """

    def __init__(
        self,
        extractor: FeatureExtractWrapper,
        attention: DeformableConfig = DeformableConfig(16, ratio=0.5),
        *,
        prior_chs: int = 64,
        ffn_ratio: float = 0.25,
        drop_path_rate: float = 0.3,
    ) -> None:
        levels = _require_four(extractor)
        build = partial(Extractor, levels[0].chs, attention, ffn_ratio, drop_path_rate)
        super().__init__(extractor, levels[0], prior_chs, [Interaction(None, row) for row in _extractors(build)])
        self.fixed_size, self.corrections = extractor.fixed_size, extractor.corrections

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        vit_maps = maps_in(self.backbone(x))
        first, priors = self._priors(x)
        grids, cells = grids_of(priors, vit_maps[0], self.patch), as_cells(priors)
        for interaction, map_ in zip(self.interactions, vit_maps, strict=True):
            cells = cast(Interaction, interaction).extract(cells, as_cells([map_]), grids)
        maps = self._pyramid(first, cells, vit_maps, grids)
        return [maps[level] for level in levels]


class ViTAdapter(AdapterPyramid):
    """ViT-Adapter: injectors add the convolutional maps to the ViT's tokens before each of four groups of its blocks.

    Wrap it to get an extractor: `FeatureExtractWrapper(ViTAdapter(vit))`. Names of the ViT's tensors begin with
    `backbone.`; published checkpoints have them without a prefix: pass their tensors through `convert_state_dict`.

    Args:
        vit: a native ViT, `create_model("vit_base_patch16_224")`. Its blocks are divided into four equal groups.
            Published adapters have a ViT without class token: `class_token=False`.
        attention: deformable attention. Published: 6 heads for ViT-T and ViT-S, 12 for B and 16 for L, with ratio=0.5
            for B and L.
        prior_chs: channels of the first convolutions.
        ffn_ratio: hidden channels of the feed-forward networks, relative to those of the ViT.
        drop_path_rate: stochastic depth rate of the feed-forward networks.

    Raises:
        ContractError: `vit` is not a native ViT, or its number of blocks is not a multiple of four.
        ArgumentError: channels are not a multiple of the heads.
    """

    backbone: ViT

    def __init__(
        self,
        vit: ViT,
        attention: DeformableConfig = DeformableConfig(6),
        *,
        prior_chs: int = 64,
        ffn_ratio: float = 0.25,
        drop_path_rate: float = 0.0,
    ) -> None:
        _require_groups(vit)
        dim = vit.feature_info[0].chs
        build = partial(Extractor, dim, attention, ffn_ratio, drop_path_rate)
        interactions = [Interaction(Injector(dim, attention), row) for row in _extractors(build)]
        blocks_only = without(vit.raw(), vit.raw().unused([len(vit.blocks) - 1]))
        super().__init__(blocks_only, vit.feature_info[0], prior_chs, interactions)

    def convert_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a published checkpoint under the names of this module.

        Positions of prefix tokens that the ViT does not have are left out: published adapters never read them.
        """
        vit = self.backbone.state_dict()
        state = {f"backbone.{name}" if name in vit else name: tensor for name, tensor in state.items()}
        positions = state.get("backbone.pos_embed")
        if positions is not None and not self.backbone.num_prefix_tokens:
            state["backbone.pos_embed"] = positions[:, -self.backbone.pos_embed.shape[1] :]
        return state

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        vit = self.backbone
        patches = vit.patch_embed(x)
        first, priors = self._priors(x)
        grids, cells = grids_of(priors, patches, self.patch), as_cells(priors)
        prefix, tokens = _split(vit._tokens(patches), vit.num_prefix_tokens)
        vit_maps: list[Tensor] = []
        group = len(vit.blocks) // len(self.interactions)
        for position, interaction in enumerate(cast("Sequence[Interaction]", self.interactions)):
            assert interaction.injector is not None
            tokens = interaction.injector(tokens, cells, grids)
            run = vit.blocks[position * group : (position + 1) * group]
            prefix, tokens = _split(run(torch.cat([prefix, tokens], 1)), vit.num_prefix_tokens)
            cells = interaction.extract(cells, tokens, grids)
            vit_maps += as_maps(tokens, [grids.vit])
        maps = self._pyramid(first, cells, vit_maps, grids)
        return [maps[level] for level in levels]


def _trunc_normal(layer: nn.Linear) -> None:
    nn.init.trunc_normal_(layer.weight, std=0.02)


def _split(tokens: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Prefix tokens and patch tokens."""
    return tokens[:, :prefix], tokens[:, prefix:]


def _extractors(build: Callable[[], Extractor]) -> list[list[Extractor]]:
    """Extractors of the four interactions: the last one has three."""
    return [[build() for _ in range(count)] for count in (1, 1, 1, 3)]


def _require_four(extractor: object) -> Levels:
    """Levels of an extractor; ContractError unless there are four of one reduction."""
    if not isinstance(extractor, FeatureExtractWrapper):
        raise ContractError(
            f"DINOv3Adapter takes an extractor, got {type(extractor).__name__}: create_model(..., features_only=True, "
            "out_indices=[...]) with four levels"
        )
    levels = extractor.feature_info
    if len(levels) != 4 or len({(level.chs, level.reduction) for level in levels}) != 1:
        raise ContractError(
            f"DINOv3Adapter takes four levels of one reduction, such as blocks of a ViT, got\n{levels}\nChoose four "
            "with out_indices; a model whose levels are a pyramid already needs FPN instead"
        )
    return levels


def _require_groups(vit: object) -> None:
    """Raise ContractError unless `vit` is a native ViT with a multiple of four blocks."""
    if not isinstance(vit, ViT):
        raise ContractError(
            f"ViTAdapter takes a native ViT, whose blocks it runs in groups, got {type(vit).__name__}: use "
            "DINOv3Adapter, which takes an extractor of any ViT"
        )
    if len(vit.blocks) % 4:
        raise ContractError(
            f"ViTAdapter divides the blocks of the ViT into four equal groups, and {vit.architecture} has "
            f"{len(vit.blocks)}: use DINOv3Adapter, or a depth that is a multiple of 4"
        )
