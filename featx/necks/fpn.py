"""Feature pyramids: FPN (https://arxiv.org/abs/1612.03144) as in torchvision, and PAFPN with a bottom-up path.

PAFPN is from PANet, https://arxiv.org/abs/1803.01534.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import ArgumentError
from ..features import Levels
from .base import Neck, extend_by_halving, init_xavier, levels_from, pyramid_of, resize, sequential

if TYPE_CHECKING:
    from torchvision.ops.feature_pyramid_network import ExtraFPNBlock


class FPN(Neck):
    """FPN: maps of doubling reductions to maps of `chs` channels and the same sizes, with a top-down path.

    Layers and parameter names are those of torchvision's FeaturePyramidNetwork. With the same weights, which
    torchvision's detectors have under `backbone.fpn.`, the outputs are equal. Any image size is accepted: deeper maps
    are resized to the size of the shallower ones.

    Args:
        feature_info: the levels of the input maps.
        chs: channels of the output maps.
        extra_blocks: torchvision's LastLevelMaxPool() or LastLevelP6P7(in_channels, chs), for one or two coarser maps.
        norm: the norm after each convolution, which then has no bias; None for no norm.

    Raises:
        ArgumentError: `extra_blocks` is of another class or does not fit.
        ContractError: reductions do not double.
    """

    def __init__(
        self,
        feature_info: object,
        chs: int = 256,
        *,
        extra_blocks: "ExtraFPNBlock | None" = None,
        norm: Callable[..., nn.Module] | None = None,
    ) -> None:
        from torchvision.ops import FeaturePyramidNetwork

        levels = pyramid_of(feature_info, "FPN")
        super().__init__(levels)
        names = [*(f"layer_blocks.{i}" for i in range(len(levels))), *_extra_names(extra_blocks, chs, levels)]
        self.feature_info = levels_from((chs, levels[0].reduction << i, name) for i, name in enumerate(names))
        built = FeaturePyramidNetwork(levels.channels(), chs, extra_blocks, norm)
        self.inner_blocks, self.layer_blocks = built.inner_blocks, built.layer_blocks
        self.extra_blocks = extra_blocks
        self.register_load_state_dict_pre_hook(_with_current_names)

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        laterals = [block(map_) for block, map_ in zip(self.inner_blocks, maps, strict=True)]
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + resize(laterals[i + 1], laterals[i])
        results = [block(lateral) for block, lateral in zip(self.layer_blocks, laterals, strict=True)]
        if self.extra_blocks is not None:
            results, _ = self.extra_blocks(results, maps, self.takes.names())
        return results

    def cells(self, cells: Sequence[int]) -> list[int]:
        return extend_by_halving(cells, len(self.feature_info))


def _extra_names(block: object, chs: int, levels: Levels) -> list[str]:
    """Paths of the modules that compute the extra maps. ArgumentError for a block that does not fit."""
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

    if block is None:
        return []
    if isinstance(block, LastLevelMaxPool):
        return ["extra_blocks"]
    if not isinstance(block, LastLevelP6P7):
        raise ArgumentError(
            f"extra_blocks={block!r}: expected torchvision's LastLevelMaxPool or LastLevelP6P7; put other coarser maps "
            "after it with ExtraLevels"
        )
    in_channels, expected = block.p6.in_channels, chs if block.use_P5 else levels[-1].chs
    if in_channels != expected or block.p7.out_channels != chs:
        raise ArgumentError(
            f"LastLevelP6P7({in_channels}, {block.p7.out_channels}) does not fit: expected ({chs}, {chs}), or "
            f"({levels[-1].chs}, {chs}) to take the deepest map of the backbone"
        )
    return ["extra_blocks.p6", "extra_blocks.p7"]


def _with_current_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Rename, in place, keys of older torchvision versions, in which convolutions were not wrapped in blocks."""
    for name, _layer in list(module.named_parameters()):
        blocks, *rest = name.split(".0.")  # inner_blocks.<i>.0.weight was inner_blocks.<i>.weight
        old = f"{prefix}{blocks}.{rest[0]}" if rest else ""
        if old in state:
            state[prefix + name] = state.pop(old)


class PAFPN(Neck):
    """PAFPN: maps of doubling reductions to maps of `chs` channels and the same sizes, top-down and then bottom-up.

    Layers, parameter names and outputs are those of mmdetection's PAFPN without extra levels. It differs from the paper
    in two ways: the sum before a level's last convolution is passed to the deeper level, and no activation follows a
    convolution. Any image size is accepted: maps are resized before they are added.

    Args:
        feature_info: the levels of the input maps.
        chs: channels of the output maps.

    Raises:
        ContractError: reductions do not double.
    """

    def __init__(self, feature_info: object, chs: int = 256) -> None:
        levels = pyramid_of(feature_info, "PAFPN")
        super().__init__(levels)
        deeper = range(len(levels) - 1)
        names = ["fpn_convs.0", *(f"pafpn_convs.{i}" for i in deeper)]
        self.feature_info = levels_from((chs, *row) for row in zip(levels.reduction(), names, strict=True))
        self.lateral_convs = nn.ModuleList(_conv(level.chs, chs, 1) for level in levels)
        self.fpn_convs = nn.ModuleList(_conv(chs, chs, 3) for _ in levels)
        self.downsample_convs = nn.ModuleList(_conv(chs, chs, 3, stride=2) for _ in deeper)
        self.pafpn_convs = nn.ModuleList(_conv(chs, chs, 3) for _ in deeper)

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        laterals = [conv(map_) for conv, map_ in zip(self.lateral_convs, maps, strict=True)]
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + resize(laterals[i + 1], laterals[i])
        sums = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals, strict=True)]
        for i, conv in enumerate(self.downsample_convs):
            sums[i + 1] = sums[i + 1] + resize(conv(sums[i]), sums[i + 1])
        return [sums[0], *(conv(map_) for conv, map_ in zip(self.pafpn_convs, sums[1:], strict=True))]


def _conv(in_chs: int, chs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_chs, chs, kernel, stride, kernel // 2)
    init_xavier(conv)
    return sequential(conv=conv)
