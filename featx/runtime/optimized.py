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
    """An extractor for inference; its maps have one dtype and memory format.

    Images may have any memory format, and be float32, bfloat16, float16 or of the dtype that it computes in. It stays
    in eval mode after `train()`, because its layers are fused.

    Attributes:
        agreement: in a lower precision than the original's, the cosine similarity of each level's map with the
            original's.
        choice: the measurement of runtime="auto"; None if the runtime was named.
        in_float32: paths of the layers that stay in float32 because a lower precision would change maps too much.
    """

    agreement: dict[str, float] | None = None
    choice: Choice | None = None
    in_float32: tuple[str, ...] = ()

    @property
    def runtime(self) -> str:
        """What runs it: "eager", "onnxruntime" or "openvino"; as `runtime=` it makes the same again."""
        return "eager"

    def __init__(
        self, extractor: FeatureExtractWrapper, dtype: torch.dtype | None, layout: torch.memory_format
    ) -> None:
        divisor = extractor.size_divisor
        vars(self).update(vars(extractor))
        self._divisor, self._dtype, self._layout = divisor, dtype, layout

    @property
    def size_divisor(self) -> int:
        """The sides of an image must be multiples of it; 1 takes any size."""
        return self._divisor

    def extra_repr(self) -> str:
        """Shown when the extractor is printed."""
        worst = None if self.agreement is None else min(self.agreement.values())
        return "" if worst is None else f"cosine similarity of maps with the original's >= {worst:.4f}"

    def train(self, mode: bool = True) -> Self:
        del mode
        return self

    def _dtypes(self) -> tuple[torch.dtype, ...]:
        own = dtypes_of(self) if self._dtype is None else (self._dtype,)
        return (torch.float32, torch.bfloat16, torch.float16, *own)

    def forward(self, x: Tensor) -> Maps:
        """(N, in_chans, H, W) to one map per level (N, chs, H / reduction, W / reduction), in the order asked for."""
        self._check(x)
        if self._dtype is None and self.in_float32:  # whose layers convert what they are given
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
    """The extractor, whose norms have been folded, as PyTorch runs it; it is used up.

    in_float32: paths of the layers that are not converted to the dtype.
    """
    to: Any = extractor.to  # whose types do not know of memory formats beside a dtype
    if dtype is None or not in_float32:
        return OptimizedExtractor(to(dtype=dtype, memory_format=layout), None, layout)
    lower(to(memory_format=layout), dtype, in_float32)
    made = OptimizedExtractor(extractor, None, layout)
    made.in_float32 = in_float32
    return made
