"""The `onednn` runtime: the captured graph on oneDNN's fused kernels, with weights packed once; for CPUs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

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

SEVERAL = 8  # images at once, where none were given as an example


class OnednnEngine(Engine):
    """A captured graph, which is rewritten onto packed layers in place. exact: see `fuse`."""

    runtime = "onednn"
    hides_nan = True

    def __init__(self, captured: Captured, wish: Wish, exact: Mapping[str, Tensor]) -> None:
        self.dtype, self.portions = wish.dtype, portions_of(captured)
        self.graph = captured.graph
        fuse(self.graph, exact, self._at_once(captured, wish))

    def _at_once(self, captured: Captured, wish: Wish) -> int | None:
        """See `fuse`."""
        if wish.layout is not torch.channels_last:
            return None
        given = SEVERAL if wish.example is None else len(wish.example)
        return min(given, self.portions.images(*captured.taken.shape[2:]))

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():  # the kernels have no gradients
            return in_portions(self.graph, x, self.portions.images(*x.shape[2:]))


def onednn(extractor: FeatureExtractWrapper, seen: Seen, wish: Wish) -> EngineExtractor:
    """The extractor, whose norms have been folded, on fused kernels; it is used up.

    Raises ContractError for a model that torch.export cannot capture.
    """
    exact = {f"extractor.{name}": value for name, value in extractor.state_dict().items() if name.endswith("bias")}
    extractor.to(dtype=wish.dtype)
    images = seen.images.expand(2, -1, -1, -1).to(dtype=wish.dtype, memory_format=wish.layout)
    captured = capture(extractor, seen, images)
    said = describe(extractor, captured.taken, (wish.maps, wish.computes), layout_name(wish.layout))
    said = replace(said, capture=captured.capture, fallbacks=captured.fallbacks)
    engine = OnednnEngine(captured, wish, exact)
    extractor.to("meta")  # what is left of it is its rule of sizes
    return EngineExtractor(engine, said, wish.layout, extractor)
