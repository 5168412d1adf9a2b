"""TimmMapReader: maps from timm's `forward_intermediates`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor, nn

from ..errors import ArgumentError
from ..tracing.map_layout import Size
from .timm_image_size import is_buildable
from .timm_levels import intermediates


@dataclass(frozen=True)
class TimmMapReader:
    """Returns maps from `forward_intermediates`; `normed` stands for timm's `norm=True`."""

    normed: bool = False

    def maps(self, model: Any, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return intermediates(model, x, levels, norm=self.normed)

    def tokens(self, model: Any, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Pairs of prefix tokens and map. There are 0 prefix tokens if the architecture returns none."""
        if not getattr(model, "num_prefix_tokens", 0):
            return [(map_.new_empty(map_.shape[0], 0, map_.shape[1]), map_) for map_ in self.maps(model, x, levels)]
        pairs = intermediates(model, x, levels, norm=self.normed, return_prefix_tokens=True)
        return [(tokens, map_) for map_, tokens in pairs]

    def narrowed(self, model: Any, levels: Sequence[int]) -> Self:
        """A reader of `levels` only. timm removes layers that they do not need from the model, in place."""
        model.prune_intermediate_layers(list(levels), prune_norm=not self.normed, prune_head=True)
        return self

    def with_norm(self, model: Any) -> Self:
        """A reader of maps that pass through the model's last norm. ArgumentError if the model has none."""
        norm = getattr(model, "norm", None)
        if not hasattr(model, "num_prefix_tokens") or not isinstance(norm, nn.Module) or not [*norm.parameters()]:
            raise ArgumentError(f"{type(model).__name__} of timm has no last norm of tokens that maps can pass through")
        return replace(self, normed=True)

    def without_norm(self, model: Any) -> Self:
        """A reader of maps as they are before the last norm."""
        del model
        return replace(self, normed=False)

    def is_normed(self, model: Any) -> bool:
        """Whether maps pass through the last norm."""
        del model
        return self.normed

    def rebuilding_hint(self, model: Any, size: Size) -> str:
        """The end of a sentence on how to build the architecture for images of that size; "" if that is impossible."""
        name = getattr(model, "pretrained_cfg", {}).get("architecture")
        if name is None or not is_buildable(size, name, model):
            return ""
        return f", or build it with create_model({f'timm/{name}'!r}, image_size={size})"
