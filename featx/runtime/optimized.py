"""The extractor that `optimize` returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..image_checks import dtypes_of
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import Maps
from .passes.lowering import MixedPrecision, connect, lower

if TYPE_CHECKING:
    from .auto import Choice


class OptimizedExtractor(FeatureExtractWrapper):
    """An extractor for inference; its maps have one dtype and memory format.

    Its images may have any memory format, and be of float32, bfloat16, float16 or the dtype that it computes in.

    It stays in eval mode whatever `train()` is told, because what it was made from has been fused.

    agreement: in a lower precision than the original's, the cosine similarity of each level's map with the original's.
    choice: what runtime="auto" measured; None if the runtime was named.
    in_float32: names of the first layers that stay in float32 on "eager", where a lower precision loses too much.
    """

    agreement: dict[str, float] | None = None
    choice: Choice | None = None
    in_float32: tuple[str, ...] = ()
    _ends: tuple[str, str] = ("", "")  # paths of the first and the last layer, then

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
        dtype = next(self.parameters()).dtype if self._dtype is None else self._dtype
        if not self.in_float32:
            return super().forward(x.to(dtype=dtype, memory_format=self._layout))
        first, last = (next(self.get_submodule(path).parameters()).dtype for path in self._ends)
        maps: Any = super().forward(x.to(dtype=first, memory_format=self._layout))
        return tree_map(lambda tensor: tensor.to(last), maps)


def eager(
    extractor: FeatureExtractWrapper,
    dtype: torch.dtype | None,
    layout: torch.memory_format,
    mixed: MixedPrecision = MixedPrecision(),
    images: Tensor | None = None,
) -> OptimizedExtractor:
    """The extractor, whose norms have been folded, as PyTorch runs it; it is used up.

    mixed: layers that stay in float32; images, (N, in_chans, H, W), then show where dtypes meet.
    """
    to: Any = extractor.to  # whose types do not know of memory formats beside a dtype
    if not mixed.count:
        return OptimizedExtractor(to(dtype=dtype, memory_format=layout), None, layout)
    assert dtype is not None
    assert images is not None
    to(memory_format=layout)
    lower(extractor, dtype, mixed.exact)
    made = OptimizedExtractor(extractor, None, layout)
    made.in_float32, made._ends = mixed.exact, (mixed.layers[0], mixed.layers[-1])
    connect(made, mixed.layers, images[:1])
    return made
