"""The `onednn` runtime: the captured graph on oneDNN's fused kernels, with weights packed once; for CPUs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..wrappers import FeatureExtractWrapper
from .capture import Captured, capture
from .description import describe
from .engine import Engine, EngineExtractor
from .fuse import fuse
from .graph import Wish
from .layout import layout_name
from .portions import in_portions, portions_of
from .watch import Seen


class OnednnEngine(Engine):
    """A captured graph, which is rewritten onto packed layers in place. exact: see `fuse`."""

    runtime = "onednn"

    def __init__(self, captured: Captured, dtype: torch.dtype, exact: Mapping[str, Tensor]) -> None:
        self.dtype, self.portions = dtype, portions_of(captured)
        self.graph = captured.graph
        fuse(self.graph, exact)

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():  # the kernels have no gradients
            return in_portions(self.graph, x, self.portions.images(x))


def onednn(extractor: FeatureExtractWrapper, seen: Seen, wish: Wish) -> EngineExtractor:
    """The extractor, whose norms have been folded, on fused kernels; it is used up.

    Raises ContractError for a model that torch.export cannot capture.
    """
    exact = {f"extractor.{name}": value for name, value in extractor.state_dict().items() if name.endswith("bias")}
    extractor.to(dtype=wish.dtype)
    images = seen.images.expand(2, -1, -1, -1).to(dtype=wish.dtype, memory_format=wish.layout)
    captured = capture(extractor, seen, images)
    said = describe(extractor, captured.taken, (wish.maps, wish.computes), layout_name(wish.layout))
    engine = OnednnEngine(captured, wish.dtype, exact)
    extractor.to("meta")  # what is left of it is its rule of sizes
    return EngineExtractor(engine, said, wish.layout, extractor)
