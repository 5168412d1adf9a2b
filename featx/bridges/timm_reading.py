"""Maps as timm's own models return them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor, nn

from ..errors import ArgumentError
from ..tracing.map_layout import Size
from .timm_levels import intermediates
from .timm_sizes import buildable


@dataclass(frozen=True)
class TimmReading:
    """Maps from `forward_intermediates`, with timm's `norm=True` if they are `normed`."""

    normed: bool = False

    def maps(self, model: Any, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return intermediates(model, x, levels, norm=self.normed)

    def tokens(self, model: Any, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Each map with its prefix tokens; none where `forward_intermediates` of the architecture gives none."""
        if not getattr(model, "num_prefix_tokens", 0):
            return [(map_.new_empty(map_.shape[0], 0, map_.shape[1]), map_) for map_ in self.maps(model, x, levels)]
        pairs = intermediates(model, x, levels, norm=self.normed, return_prefix_tokens=True)
        return [(tokens, map_) for map_, tokens in pairs]

    def narrowed(self, model: Any, levels: Sequence[int]) -> Self:
        """How `levels` are had of the model, from which timm takes what it knows that they do not need, in place."""
        model.prune_intermediate_layers(list(levels), prune_norm=not self.normed, prune_head=True)
        return self

    def with_norm(self, model: Any) -> Self:
        """Of maps that go through the model's last norm; ArgumentError if it has none."""
        norm = getattr(model, "norm", None)
        if not hasattr(model, "num_prefix_tokens") or not isinstance(norm, nn.Module) or not [*norm.parameters()]:
            raise ArgumentError(f"{type(model).__name__} of timm has no last norm of tokens to send its maps through")
        return replace(self, normed=True)

    def rebuilt(self, model: Any, size: Size) -> str:
        """How to build the architecture for images of that size, as the end of a sentence; nothing if it cannot be."""
        name = getattr(model, "pretrained_cfg", {}).get("architecture")
        if name is None or not buildable(size, name, model):
            return ""
        return f", or build it with create_model({f'timm/{name}'!r}, image_size={size})"
