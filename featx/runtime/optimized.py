"""The extractor that `optimize` returns."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..image_checks import dtypes_of
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import Maps
from .passes.lowering import lower, lowest_dtype

if TYPE_CHECKING:
    from .auto import Choice


class OptimizedExtractor(FeatureExtractWrapper):
    """An extractor for inference, whose maps all have the same dtype and memory format.

    Images may have any memory format, and be float32, bfloat16, float16 or of the dtype in which it computes. `train()`
    has no effect: it stays in eval mode, because its layers are fused.

    Attributes:
        agreement: In a lower precision than the original's, the cosine similarity of each level's map with the
            original's; else None.
        choice: The measurement of runtime="auto"; None if the runtime was named.
        in_float32: Paths of the layers that stay in float32, because a lower precision would change maps too much.
    """

    agreement: dict[str, float] | None = None
    choice: Choice | None = None
    in_float32: tuple[str, ...] = ()

    @property
    def runtime(self) -> str:
        """The runtime that computes the maps, as the argument `runtime` of `optimize`."""
        return "eager"

    def __init__(
        self, extractor: FeatureExtractWrapper, dtype: torch.dtype | None, layout: torch.memory_format
    ) -> None:
        divisor = extractor.size_divisor
        vars(self).update(vars(extractor))
        self._divisor, self._dtype, self._layout = divisor, dtype, layout

    @property
    def size_divisor(self) -> int:
        """The number of which image sides must be multiples; 1 if any size is supported."""
        return self._divisor

    def extra_repr(self) -> str:
        """The agreement with the original, which is shown when the extractor is printed."""
        worst = None if self.agreement is None else min(self.agreement.values())
        return "" if worst is None else f"cosine similarity of maps with the original's >= {worst:.4f}"

    def train(self, mode: bool = True) -> Self:
        """Return the extractor, which stays in eval mode."""
        del mode
        return self

    def _dtypes(self) -> tuple[torch.dtype, ...]:
        own = dtypes_of(self) if self._dtype is None else (self._dtype,)
        return (torch.float32, torch.bfloat16, torch.float16, *own)

    def forward(self, x: Tensor) -> Maps:
        """(N, in_chans, H, W) to one map per level (N, chs, H / reduction, W / reduction), in the requested order."""
        self._check(x)
        if self._dtype is None and self.in_float32:  # its layers convert their inputs
            maps: Any = super().forward(x.to(memory_format=self._layout))
            return tree_map(partial(Tensor.to, dtype=lowest_dtype(self)), maps)
        dtype = next(self.parameters()).dtype if self._dtype is None else self._dtype
        return super().forward(x.to(dtype=dtype, memory_format=self._layout))


def eager(
    extractor: FeatureExtractWrapper,
    dtype: torch.dtype | None,
    layout: torch.memory_format,
    in_float32: tuple[str, ...] = (),
) -> OptimizedExtractor:
    """Convert a prepared extractor, in place, and return it as an OptimizedExtractor that PyTorch runs.

    Args:
        extractor: A copy with folded norms, which must not be used afterwards.
        dtype: The dtype of weights and maps; None keeps it.
        layout: The memory format.
        in_float32: Paths of the layers that are not converted to the dtype.
    """
    to: Any = extractor.to  # PyTorch's annotations do not allow a memory format together with a dtype
    if dtype is None or not in_float32:
        return OptimizedExtractor(to(dtype=dtype, memory_format=layout), None, layout)
    lower(to(memory_format=layout), dtype, in_float32)
    optimized = OptimizedExtractor(extractor, None, layout)
    optimized.in_float32 = in_float32
    return optimized
