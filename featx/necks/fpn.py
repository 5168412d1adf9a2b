"""FPN: torchvision's feature pyramid network on the levels of a backbone (https://arxiv.org/abs/1612.03144)."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import ArgumentError
from ..features import Levels
from .base import Neck, described, halved, pyramid_of, resize

if TYPE_CHECKING:
    from torchvision.ops.feature_pyramid_network import ExtraFPNBlock


class FPN(Neck):
    """Maps of doubling reductions to maps of `chs` channels and the same sizes, each with what the deeper ones saw.

    It is made of the layers of torchvision's FeaturePyramidNetwork, under the same names: with the same weights, those
    of its detectors under `backbone.fpn.`, it gives the same numbers. Any sizes fit: deeper maps are resized to the
    shallower's.

    extra_blocks: torchvision's LastLevelMaxPool() or LastLevelP6P7(in_channels, chs), for one or two coarser maps.
    norm: of each convolution, which then has no bias; None for none.

    Raises ContractError if reductions do not double, ArgumentError for other extra blocks.
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
        self.feature_info = described((chs, levels[0].reduction << i, name) for i, name in enumerate(names))
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
        return halved(cells, len(self.feature_info))


def _extra_names(block: object, chs: int, levels: Levels) -> list[str]:
    """Paths of the modules that make the extra maps; ArgumentError for a block that does not fit."""
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
    given, expected = block.p6.in_channels, chs if block.use_P5 else levels[-1].chs
    if given != expected or block.p7.out_channels != chs:
        raise ArgumentError(
            f"LastLevelP6P7({given}, {block.p7.out_channels}) does not fit: expected ({chs}, {chs}), or "
            f"({levels[-1].chs}, {chs}) to take the deepest map of the backbone"
        )
    return ["extra_blocks.p6", "extra_blocks.p7"]


def _with_current_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Rename, in place, what torchvision wrote before each convolution stood in a block of its own."""
    for name, _layer in list(module.named_parameters()):
        blocks, *rest = name.split(".0.")  # inner_blocks.<i>.0.weight was inner_blocks.<i>.weight
        old = f"{prefix}{blocks}.{rest[0]}" if rest else ""
        if old in state:
            state[prefix + name] = state.pop(old)
