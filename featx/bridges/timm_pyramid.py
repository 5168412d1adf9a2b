"""A model of timm as a source of maps."""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Self

from torch import Tensor, nn

from ..backbone import Pyramid
from ..errors import ArgumentError, ContractError, InputError, in_short
from ..preprocessing import DataConfig, from_hub
from ..tracing.copies import meta_twin, structural_copy
from ..tracing.pruning import prune
from ..tracing.size_rules import Rounding, SizeRule, acceptable, divisor_of, roundings
from ..tracing.third_party_errors import REFUSED, ThirdPartyError, drop_hooks
from ..wrappers.transparent import Transparent
from .timm_intermediates import images_for, intermediates, tried
from .timm_levels import Measured, measure
from .timm_sizes import buildable

METHODS = ("forward_intermediates", "prune_intermediate_layers", "feature_info")


class TimmPyramid(Transparent[nn.Module], Pyramid):
    """Maps from timm's own `forward_intermediates`, with levels that have been measured.

    measured: what a run without computing showed, with a sentence for each fact that timm declares otherwise.
    kept: the levels that a copy of the model which has been cut still has; None means all.
    maps_are_normed: whether maps and prefix tokens go through the last norm, as with timm's `norm=True`.

    Raises ContractError if the model has no such method or runs at no size.
    """

    def __init__(
        self,
        model: nn.Module,
        measured: Measured | None = None,
        kept: Sequence[int] | None = None,
        maps_are_normed: bool = False,
    ) -> None:
        _require_methods(model)
        super().__init__(model)
        config = _input_config(model)
        self.measured = measured or measure(model)
        self.feature_info, self.corrections = self.measured.levels, self.measured.corrections
        self.fixed_size = self.measured.size if self.measured.fixed else None
        self.size_rule = SizeRule(self._roundings)
        self._kept, self.maps_are_normed = self.feature_info.select(kept), maps_are_normed
        self.in_chans = config["input_size"][0]
        published: dict[str, Any] = getattr(model, "pretrained_cfg", {})
        self.data_config = from_hub({**published, "input_size": config["input_size"]}, DataConfig())

    def _roundings(self) -> dict[int, Rounding]:
        once = self.measured.fixed or not self.measured.on_meta
        shapes = partial(_shapes, meta_twin(self._inner), self._kept.out_indices)
        return roundings(shapes, self._kept.reduction(), self.measured.size, once)

    @cached_property
    def size_divisor(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The sides of an image must be multiples of it, as runs without computing show; 1 takes any size."""
        return 1 if self.measured.fixed or not self.measured.on_meta else divisor_of(self._takes, self.measured.size)

    def _takes(self, size: tuple[int, int]) -> bool:
        return bool(_shapes(meta_twin(self._inner), self._kept.out_indices, size))

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return self._run(x, levels)

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Each map with its prefix tokens; none where `forward_intermediates` of the architecture gives none."""
        if not getattr(self._inner, "num_prefix_tokens", 0):
            return super().forward_tokens(x, levels)
        return [(tokens, map_) for map_, tokens in self._run(x, levels, return_prefix_tokens=True)]

    def cut(self, levels: Sequence[int]) -> Self:
        """A pyramid of the same parameters that ends at the deepest of `levels`, which ascend."""
        copied: Any = structural_copy(self._inner)
        copied.prune_intermediate_layers(list(levels), prune_norm=not self.maps_are_normed, prune_head=True)
        excess: tuple[str, ...] = ()
        if self.measured.on_meta:  # timm leaves what leads to no map asked for, such as branches of an HRNet
            read = partial(intermediates, levels=levels, norm=self.maps_are_normed)
            excess = prune(copied, read, images_for(copied, self.measured.size))
        pyramid = type(self)(copied, self.measured, levels, self.maps_are_normed)
        pyramid.excess = excess
        return pyramid

    def normed(self) -> Self:
        """As in Pyramid: timm's `forward_intermediates(norm=True)`, of vision transformers."""
        norm = getattr(self._inner, "norm", None)
        if not hasattr(self._inner, "num_prefix_tokens") or not isinstance(norm, nn.Module) or not [*norm.parameters()]:
            raise ArgumentError(
                f"{type(self._inner).__name__} of timm has no last norm of tokens to send its maps through"
            )
        return type(self)(self._inner, self.measured, self._kept.out_indices, maps_are_normed=True)

    def unused(self, levels: Sequence[int]) -> Sequence[str]:
        """No module, whatever `levels`: `cut` takes them out, because timm's forward asks for some by name."""
        del levels
        return ()

    def _run(self, x: Tensor, levels: Sequence[int], **options: bool) -> list[Any]:
        if self.measured.resizes and tuple(x.shape[2:]) != self.measured.size:
            raise self._refusal(x, "it would resize them")
        try:
            return intermediates(self._inner, x, levels, norm=self.maps_are_normed, **options)
        except ThirdPartyError as error:
            original = error.original
            if tuple(x.shape[2:]) != self.measured.size and self._refuses(x, levels, original):
                raise self._refusal(x, original) from original
            raise original from original.__cause__

    def _refuses(self, x: Tensor, levels: Sequence[int], error: Exception) -> bool:
        """Whether the size of the images is what `error` was raised for: the model alone, without hooks, raises one.

        At its own size it raises nothing.
        """
        height, width = x.shape[2:]
        if not self.measured.on_meta:
            return isinstance(error, AssertionError | ValueError)
        if not self._takes((height, width)):
            return self._takes(self.measured.size)
        # some look up a table of positions: without values, no index is out of range
        alone = structural_copy(self._inner)
        drop_hooks(alone)
        black = partial(_shapes, alone, levels)
        return isinstance(error, IndexError) and not black((height, width)) and bool(black(self.measured.size))

    def _refusal(self, x: Tensor, why: Exception | str) -> InputError:
        height, width = x.shape[2:]
        fixed, own = self.measured.fixed, self.measured.size
        to = own if fixed else acceptable((height, width), self.size_divisor, self._takes, own)
        reason = in_short(why) if isinstance(why, Exception) else why
        return InputError(
            f"{type(self._inner).__name__} as it was built takes no images of {height}x{width} pixels ({reason}): "
            f"resize them to {to[0]}x{to[1]}{self._rebuilt((height, width))}"
        )

    def _rebuilt(self, size: tuple[int, int]) -> str:
        """How to build the architecture for images of that size; nothing if it cannot be."""
        name = getattr(self._inner, "pretrained_cfg", {}).get("architecture")
        if name is None or not buildable(size, name, self._inner):
            return ""
        return f", or build it with create_model({f'timm/{name}'!r}, image_size={size})"


def _shapes(model: nn.Module, levels: Sequence[int], size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Of the maps of `levels` for images of that size; none if the model refuses it."""
    try:
        return [tuple(map_.shape) for map_ in tried(model, size, levels)]
    except REFUSED:
        return []


def _input_config(model: nn.Module) -> dict[str, Any]:
    from timm.models import get_model_input_config

    return get_model_input_config(model)


def _require_methods(model: nn.Module) -> None:
    missing = [name for name in METHODS if not hasattr(model, name)]
    if missing:
        raise ContractError(
            f"{type(model).__name__} of timm has no {', '.join(missing)}: wrap the model that timm.create_model "
            "returns without features_only=True, of timm 1.0.31 or later"
        )
