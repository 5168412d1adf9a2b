"""The `onednn` runtime: the captured graph on oneDNN's fused kernels, with weights packed once; for CPUs."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Pyramid
from ..errors import ArgumentError, InputError
from ..features import Levels
from ..wrappers import FeatureExtractWrapper
from .capture import Captured, capture
from .fuse import fuse
from .optimized import OptimizedExtractor
from .portions import in_portions, portions_of
from .watch import Seen

KERNELS = ("_convolution_pointwise", "_convolution_pointwise_", "_linear_pointwise", "_reorder_convolution_weight")
DTYPES = (torch.float32, torch.bfloat16)


class OnednnPyramid(Pyramid):
    """The maps of a captured and fused graph. It has no parameters: weights are packed."""

    def __init__(self, captured: Captured, source: FeatureExtractWrapper) -> None:
        super().__init__()
        self.captured, self.graph = captured, captured.graph
        self.pairs = source._output == "tokens"
        ascending = sorted(range(len(source.feature_info)), key=lambda i: source.feature_info.out_indices[i])
        self.feature_info = Levels([source.feature_info[i] for i in ascending])
        self.fixed_size, self.corrections = source._inner.fixed_size, source._inner.corrections
        vars(self).update(size_divisor=source.size_divisor)  # of the class in a family
        if isinstance(source._source, Backbone):
            self.size_rule = source._source.size_rule
        if source.in_chans is not None:
            self.in_chans = source.in_chans
        if source.data_config is not None:
            self.data_config = source.data_config
        self.portions = portions_of(captured)

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        maps = self._run(x)
        return [maps[level] for level in levels]

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        if not self.pairs:
            return super().forward_tokens(x, levels)
        tensors = self._run(x)
        return [(tensors[2 * level], tensors[2 * level + 1]) for level in levels]

    def unused(self, levels: Sequence[int]) -> Sequence[str]:
        """No module, whatever `levels`: the graph computes those it was captured for."""
        del levels
        return ()

    def _run(self, x: Tensor) -> Sequence[Tensor]:
        if not self.captured.takes(tuple(x.shape)):
            built, (height, width) = self.captured, x.shape[2:]
            free = "any batch of" if 0 in built.free else f"batches of {built.shape[0]}"
            sizes = "such sizes" if 2 in built.free else "that size"
            raise InputError(
                f"this was built by runtime='onednn' for {free} images like {built.shape[2]}x{built.shape[3]} pixels, "
                f"got {x.shape[0]} of {height}x{width}, which its graph is not right for: resize them to {sizes}, or "
                "call optimize with example= images of this shape"
            )
        with torch.no_grad():  # the kernels have no gradients
            return in_portions(self.graph, x, self.portions.images(x))


class OnednnExtractor(OptimizedExtractor):
    """An extractor on packed weights, which cannot be moved or converted."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        assert self._dtype is not None
        moved = fn(torch.empty(0, dtype=self._dtype))
        if moved.device.type != "cpu" or moved.dtype != self._dtype:
            raise ArgumentError(
                f"this was built by runtime='onednn' for the CPU and {self._dtype}, and cannot become "
                f"{moved.dtype} on {moved.device}: optimize the original again, with dtype= or runtime='eager'"
            )
        return super()._apply(fn, recurse)


def onednn(
    extractor: FeatureExtractWrapper, dtype: torch.dtype | None, layout: torch.memory_format, seen: Seen
) -> OnednnExtractor:
    """The extractor, whose norms have been folded, on fused kernels; it is used up.

    Raises ArgumentError where oneDNN cannot run it, ContractError for a model that torch.export cannot capture.
    """
    dtype = dtype or seen.images.dtype
    exact = {f"extractor.{name}": value for name, value in extractor.state_dict().items() if name.endswith("bias")}
    extractor.to(dtype=dtype)
    images = seen.images.expand(2, -1, -1, -1).to(dtype=dtype, memory_format=layout)
    captured = capture(extractor, seen, images)
    pyramid = OnednnPyramid(captured, extractor).eval()
    fuse(captured.graph, exact)
    order = [pyramid.feature_info.names().index(name) for name in extractor.feature_info.names()]
    output: Any = extractor._output
    wrapper = FeatureExtractWrapper(pyramid, order, output=output)
    wrapper.feature_info = extractor.feature_info
    extractor.to("meta")  # what is left of it is its rule of sizes
    return OnednnExtractor(wrapper, dtype, layout)


def require_onednn(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Raise ArgumentError, before anything is done, if oneDNN cannot run the model in that dtype here."""
    problem = _problem(model, dtype)
    if problem:
        raise ArgumentError(f"runtime='onednn' cannot be used: {problem}; choose runtime='eager'")


def _problem(model: nn.Module, dtype: torch.dtype | None) -> str | None:
    mkldnn: Any = torch.ops.mkldnn
    devices = {parameter.device.type for parameter in model.parameters()} - {"cpu"}
    if devices:
        return f"it is for CPUs, and the model is on {sorted(devices)}"
    if not torch.backends.mkldnn.is_available() or not all(hasattr(mkldnn, name) for name in KERNELS):
        return "this build of PyTorch lacks oneDNN's kernels (torch.backends.mkldnn)"
    wanted = dtype or next(model.parameters()).dtype
    if wanted not in DTYPES:
        return f"it computes in {DTYPES}, not in {wanted}"
    if wanted is torch.bfloat16 and not mkldnn._is_mkldnn_bf16_supported():
        return "this processor does not compute in bfloat16"
    return None
