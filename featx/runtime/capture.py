"""The program that computes an extractor's maps, which runs without the model's code, and what is said of it."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ContractError
from ..tracing.forward_trace import UnrecordedError
from ..tracing.module_trace import ModuleTrace
from ..tracing.program import Program, program_of
from ..wrappers import FeatureExtractWrapper
from .description import Description, ShapeGuard, describe

Dynamic = Literal["auto", "size", "batch", "none"]


@dataclass(frozen=True)
class GraphSpec:
    """What a file with an extractor's graph should be.

    computes: the dtype, torch.int8 included; weights are stored in float32, and a runtime computes in what it is told.
    example: images as will be given, or None.
    dynamic: which images it takes beside those: "batch" any number of them, "size" of other sizes, too, "none" no
        others; "auto" what the model allows.
    wanted: the cosine similarity of maps to reach in int8, by keeping layers in float32.
    """

    computes: torch.dtype
    example: Tensor | None
    dynamic: Dynamic = "auto"
    wanted: float = 0.0

    @property
    def maps(self) -> torch.dtype:
        """Of the maps that a user gets."""
        return torch.float32 if self.computes is torch.int8 else self.computes


class MapsOf(nn.Module):
    """(N, in_chans, H, W) to all tensors an extractor returns, in ascending order of levels."""

    def __init__(self, extractor: FeatureExtractWrapper) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        pyramid, levels = self.extractor._inner, self.extractor._ascending
        if self.extractor._output == "tokens":
            return tuple(tensor for pair in pyramid.forward_tokens(x, levels) for tensor in pair)
        return tuple(pyramid.forward_maps(x, levels))


def capture(extractor: FeatureExtractWrapper, seen: ModuleTrace, spec: GraphSpec) -> tuple[Program, Description]:
    """The program of an extractor, whose weights become float32, and the description of the images it takes.

    Raises:
        ContractError: the forward cannot be captured, or not for such images.
    """
    to: Any = extractor.to  # whose types do not know of memory formats beside a dtype
    to(dtype=torch.float32, memory_format=torch.contiguous_format)
    images = seen.images[:1].float().expand(2, -1, -1, -1).contiguous()
    sizes = spec.dynamic in ("auto", "size") and extractor._inner.fixed_size is None
    kind = type(extractor.source).__name__
    try:
        program = program_of(MapsOf(extractor), images, sizes)
    except UnrecordedError as error:
        raise ContractError(f"{kind} cannot be captured ({error}): use runtime='eager'") from error
    if spec.dynamic == "size" and not program.any_size:
        raise ContractError(
            f"{kind} cannot be captured with dynamic='size', because its code depends on the size of images: choose "
            "dynamic='auto'"
        )
    free = () if spec.dynamic == "none" else (0, 2, 3) if program.any_size else (0,)
    number = 1 if spec.example is None else len(spec.example)
    guard = ShapeGuard((number, *images.shape[1:]), frozenset(free))
    computes = f"{spec.computes}".removeprefix("torch.")
    return program, describe(extractor, guard, spec.maps, computes)
