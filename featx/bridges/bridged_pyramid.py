"""A model of another package as a source of maps, which the package's own method gives."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Self

from torch import Tensor, nn

from ..backbone import Pyramid
from ..errors import InputError, in_short
from ..tracing.copies import structural_copy, twin_of
from ..tracing.map_layout import Size
from ..tracing.pruning import prune
from ..tracing.size_rules import Rounding, SizeRule, acceptable, divisor_of, roundings
from ..tracing.survey import Shapes, shapes_if_accepted
from ..tracing.third_party_errors import ThirdPartyError, drop_hooks
from ..wrappers.transparent import Transparent
from .measurement import Facts, images_for
from .timm_reading import TimmReading
from .transformers_reading import Recorded, TransformersReading

Reading = TimmReading | TransformersReading
Read = Callable[[Any, Tensor, Sequence[int]], list[Any]]


class BridgedPyramid(Transparent[nn.Module], Pyramid):
    """Maps of a model as its own package gives them, with levels that have been measured.

    kept: the levels that a copy of the model which has been cut still has; None means all.
    """

    def __init__(self, model: nn.Module, reading: Reading, facts: Facts, kept: Sequence[int] | None = None) -> None:
        super().__init__(model)
        self._reading, self._facts, self._kept = reading, facts, facts.levels.select(kept)
        self.feature_info, self.corrections, self.in_chans = facts.levels, facts.corrections, facts.in_chans
        self.fixed_size = facts.size if facts.fixed else None
        self.maps_are_normed = isinstance(reading, TimmReading) and reading.normed
        self.size_rule = SizeRule(self._roundings)
        if facts.data_config is not None:
            self.data_config = facts.data_config

    @cached_property
    def size_divisor(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The sides of an image must be multiples of it; 1 takes any size."""
        known = self._facts.divisor
        return divisor_of(self._takes, self._facts.size) if known is None else known

    def _roundings(self) -> dict[int, Rounding]:
        once = self._facts.fixed or not self._facts.on_meta
        return roundings(self._trial(), self._kept.reduction(), self._facts.size, once)

    def _trial(self, values: bool = False) -> Callable[[Size], Shapes]:
        """Gives the shapes of its maps for images of a size, without the hooks of users; none if the model refuses it.

        values: compute, for what only shows then, such as an index that is out of range.
        """
        alone = structural_copy(self._inner).eval() if values else twin_of(self._inner)
        drop_hooks(alone, keep=(Recorded,))
        read = partial(self._reading.maps, levels=self._kept.out_indices)
        return lambda size: shapes_if_accepted(alone, read, images_for(alone, self.in_chans, size))

    def _takes(self, size: Size) -> bool:
        return bool(self._trial()(size))

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return self._run(self._reading.maps, x, levels)

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Each map with its prefix tokens; none where the package gives none."""
        return self._run(self._reading.tokens, x, levels)

    def normed(self) -> Pyramid:
        """As in Pyramid: timm's `forward_intermediates(norm=True)`, of vision transformers."""
        if isinstance(self._reading, TransformersReading):
            return super().normed()
        return type(self)(self._inner, self._reading.with_norm(self._inner), self._facts, self._kept.out_indices)

    def unused(self, levels: Sequence[int]) -> Sequence[str]:
        """No module, whatever `levels`: `cut` takes them out, because the package's forward asks for some by name."""
        del levels
        return ()

    def cut(self, levels: Sequence[int]) -> Self:
        """A pyramid of the same parameters that gives `levels` alone, which ascend."""
        copied, excess = structural_copy(self._inner), ()
        reading = self._reading.narrowed(copied, levels)
        if self._facts.on_meta:  # packages leave what leads to no map asked for, such as branches of an HRNet
            images = images_for(copied, self.in_chans, self._facts.size)
            excess = prune(copied, partial(reading.maps, levels=levels), images, (Recorded,))
        cut = type(self)(copied, reading, self._facts, levels)
        cut.excess = excess
        return cut

    def _run(self, read: Read, x: Tensor, levels: Sequence[int]) -> list[Any]:
        size = (x.shape[2], x.shape[3])
        if isinstance(self._reading, TransformersReading):
            self._reading.check_size(self._inner, size)
        if self._facts.resizes and size != self._facts.size:
            raise self._refusal(size, "it would resize them")
        try:
            return read(self._inner, x, levels)
        except ThirdPartyError as error:
            if self._refuses(size, error.original):
                reason = in_short(error.original) if isinstance(self._reading, TimmReading) else f"{error}"
                raise self._refusal(size, reason) from error.original
            raise error.original from error.original.__cause__

    def _refuses(self, size: Size, error: Exception) -> bool:
        """Whether the size of the images is what `error` was raised for: the model alone, without hooks, raises one.

        At its own size it raises nothing.
        """
        if size == self._facts.size:
            return False
        # some look up a table of positions: without values, no index is out of range
        shapes = self._trial(values=isinstance(error, IndexError) or not self._facts.on_meta)
        return not shapes(size) and bool(shapes(self._facts.size))

    def _refusal(self, size: Size, reason: str) -> InputError:
        own = self._facts.size
        rebuilt = self._reading.rebuilt(self._inner, size) if isinstance(self._reading, TimmReading) else ""
        to = self.fixed_size or acceptable(size, divisor_of(self._takes, own), self._takes, own)
        return InputError(
            f"{type(self._inner).__name__} as it was built takes no images of {size[0]}x{size[1]} pixels ({reason}): "
            f"resize them to {to[0]}x{to[1]}{rebuilt}"
        )
