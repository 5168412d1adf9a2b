"""The extractor that `optimize` returns."""

from typing import Any, Self

import torch
from torch import Tensor

from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import Maps


class OptimizedExtractor(FeatureExtractWrapper):
    """An extractor for inference; its images may have any dtype and memory format, its maps have one of each.

    It stays in eval mode whatever `train()` is told, because what it was made from has been fused.
    """

    def __init__(
        self, extractor: FeatureExtractWrapper, dtype: torch.dtype | None, layout: torch.memory_format
    ) -> None:
        divisor = extractor.size_divisor
        vars(self).update(vars(extractor))
        self._divisor, self._layout = divisor, layout
        to: Any = self.to  # whose types do not know of memory formats beside a dtype
        to(dtype=dtype, memory_format=layout)

    @property
    def size_divisor(self) -> int:
        """The sides of an image must be multiples of it; 1 takes any size."""
        return self._divisor

    def train(self, mode: bool = True) -> Self:
        del mode
        return self

    def forward(self, x: Tensor) -> Maps:
        """(N, in_chans, H, W) to one map per level (N, chs, H / reduction, W / reduction), in the order asked for."""
        self._check(x)
        weight = next(self.parameters(), x)
        return super().forward(x.to(dtype=weight.dtype, memory_format=self._layout))
