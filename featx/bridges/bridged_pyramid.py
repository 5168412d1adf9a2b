"""BridgedPyramid: maps of another package's model, computed by the package's own forward."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Self

from torch import Tensor, nn

from ..backbone import Pyramid
from ..errors import InputError, in_short
from ..load_report import LoadReport
from ..tracing.copies import structural_copy, twin_of
from ..tracing.map_layout import Size
from ..tracing.pruning import prune
from ..tracing.size_rules import Rounding, SizeRule, acceptable, divisor_of, roundings
from ..tracing.survey import Shapes, shapes_if_accepted
from ..tracing.third_party_errors import ThirdPartyError, drop_hooks
from ..wrappers.transparent import Transparent, innermost
from .measurement import Measurement, images_for
from .timm_map_reader import TimmMapReader
from .transformers_map_reader import RecordingHook, TransformersMapReader

MapReader = TimmMapReader | TransformersMapReader
Read = Callable[[Any, Tensor, Sequence[int]], list[Any]]


class BridgedPyramid(Transparent[nn.Module], Pyramid):
    """Maps of another package's model, with measured levels.

    Args:
        model: the model.
        reader: returns the model's maps.
        measured: the model's levels and image sizes.
        kept: the levels that a cut model still has; None for all.
    """

    def __init__(
        self, model: nn.Module, reader: MapReader, measured: Measurement, kept: Sequence[int] | None = None
    ) -> None:
        super().__init__(model)
        self._reader, self._measured, self._kept = reader, measured, measured.levels.select(kept)
        self.feature_info, self.corrections, self.in_chans = measured.levels, measured.corrections, measured.in_chans
        self.fixed_size = measured.size if measured.fixed else None
        self.maps_are_normed = reader.is_normed(model)
        self.size_rule = SizeRule(self._roundings)
        if measured.data_config is not None:
            self.data_config = measured.data_config

    @property
    def load_report(self) -> LoadReport | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The report on loading the weights; None if a checkpoint was not loaded."""
        return getattr(innermost(self), "load_report", None)

    @cached_property
    def size_divisor(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Pixels that the sides of images must be multiples of; 1 for any size."""
        divisor = self._measured.divisor
        return divisor_of(self._accepts, self._measured.size) if divisor is None else divisor

    def _roundings(self) -> dict[int, Rounding]:
        fixed = self._measured.fixed or not self._measured.on_meta
        return roundings(self._trial(), self._kept.reduction(), self._measured.size, fixed)

    def _trial(self, values: bool = False) -> Callable[[Size], Shapes]:
        """A function that returns the shapes of the maps for an image size; none if the model refuses it.

        It runs a copy without users' hooks: on the meta device, or with `values`, which some errors depend on, such as
        an index out of range.
        """
        twin = structural_copy(self._inner).eval() if values else twin_of(self._inner)
        drop_hooks(twin, keep=(RecordingHook,))
        read = partial(self._reader.maps, levels=self._kept.out_indices)
        return lambda size: shapes_if_accepted(twin, read, images_for(twin, self.in_chans, size))

    def _accepts(self, size: Size) -> bool:
        return bool(self._trial()(size))

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return self._run(self._reader.maps, x, levels)

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Pairs of prefix tokens and map. There are 0 prefix tokens if the package returns none."""
        return self._run(self._reader.tokens, x, levels)

    def normed(self) -> Pyramid:
        """A pyramid whose maps pass through the last norm, as in timm's `forward_intermediates(norm=True)`."""
        inner = self._to_change()
        return type(self)(inner, self._reader.with_norm(inner), self._measured, self._kept.out_indices)

    def raw(self) -> Pyramid:
        """A pyramid whose maps are those before the last norm."""
        inner = self._to_change()
        return type(self)(inner, self._reader.without_norm(inner), self._measured, self._kept.out_indices)

    def _to_change(self) -> nn.Module:
        """The model, or a copy that shares its tensors if its configuration may change."""
        return self._inner if isinstance(self._reader, TimmMapReader) else structural_copy(self._inner)

    def unused(self, levels: Sequence[int]) -> Sequence[str]:
        """No modules: the package's forward accesses modules by name, so that `cut` replaces them by placeholders."""
        del levels
        return ()

    def cut(self, levels: Sequence[int]) -> Self:
        """A pyramid that returns only `levels`, which are in ascending order, and shares the parameters."""
        copied, excess = structural_copy(self._inner), ()
        reader = self._reader.narrowed(copied, levels)
        if self._measured.on_meta:  # packages keep some unneeded modules, such as branches of an HRNet
            images = images_for(copied, self.in_chans, self._measured.size)
            excess = prune(copied, partial(reader.maps, levels=levels), images, (RecordingHook,))
        cut = type(self)(copied, reader, self._measured, levels)
        cut.excess = excess
        return cut

    def _run(self, read: Read, x: Tensor, levels: Sequence[int]) -> list[Any]:
        size = (x.shape[2], x.shape[3])
        if isinstance(self._reader, TransformersMapReader):
            self._reader.check_size(self._inner, size)
        if self._measured.resizes and size != self._measured.size:
            raise self._refusal(size, "it would resize them")
        try:
            return read(self._inner, x, levels)
        except ThirdPartyError as error:
            if self._is_due_to_size(error.original, size):
                reason = in_short(error.original) if isinstance(self._reader, TimmMapReader) else f"{error}"
                raise self._refusal(size, reason) from error.original
            raise error.original from error.original.__cause__

    def _is_due_to_size(self, error: Exception, size: Size) -> bool:
        """Whether the model without hooks fails at this size and runs at its own size."""
        if size == self._measured.size:
            return False
        # an index out of range of a position table raises no error on the meta device
        shapes = self._trial(values=isinstance(error, IndexError) or not self._measured.on_meta)
        return not shapes(size) and bool(shapes(self._measured.size))

    def _refusal(self, size: Size, reason: str) -> InputError:
        own_size = self._measured.size
        hint = self._reader.rebuilding_hint(self._inner, size) if isinstance(self._reader, TimmMapReader) else ""
        to = self.fixed_size or acceptable(size, divisor_of(self._accepts, own_size), self._accepts, own_size)
        return InputError(
            f"{type(self._inner).__name__} as it was built takes no images of {size[0]}x{size[1]} pixels ({reason}): "
            f"resize them to {to[0]}x{to[1]}{hint}"
        )
