"""Capture of an extractor's forward as a program that runs without the model's code."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ContractError
from ..tracing.forward_trace import UnrecordedError
from ..tracing.module_trace import ModuleTrace
from ..tracing.program import Program, program_of
from ..wrappers import FeatureExtractWrapper
from .description import Description, ShapeGuard

Dynamic = Literal["auto", "size", "batch", "none"]


@dataclass(frozen=True)
class GraphSpec:
    """Specification of the file of an extractor's graph.

    Attributes:
        computes: The dtype in which a runtime computes; torch.int8 is allowed. Other graphs store float32 weights.
        example: Images (N, in_chans, H, W) of the shape that will be used, or None.
        dynamic: The images that the graph accepts besides those of the example's shape: "batch" any batch size, "size"
            also other image sizes, "none" no others; "auto" whatever the model supports.
        target_similarity: In int8, the cosine similarity of maps to reach by keeping layers in float32.
    """

    computes: torch.dtype
    example: Tensor | None
    dynamic: Dynamic = "auto"
    target_similarity: float = 0.0

    @property
    def maps(self) -> torch.dtype:
        """The dtype of the maps that a user gets."""
        return torch.float32 if self.computes is torch.int8 else self.computes


class MapsOf(nn.Module):
    """(N, in_chans, H, W) to all tensors that an extractor returns, in ascending order of levels."""

    def __init__(self, extractor: FeatureExtractWrapper) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        pyramid, levels = self.extractor._inner, self.extractor._ascending
        if self.extractor._output == "tokens":
            return tuple(tensor for pair in pyramid.forward_tokens(x, levels) for tensor in pair)
        return tuple(pyramid.forward_maps(x, levels))


def capture(extractor: FeatureExtractWrapper, trace: ModuleTrace, spec: GraphSpec) -> tuple[Program, Description]:
    """The program of an extractor, whose weights are converted to float32 in place, and its description.

    Raises:
        ContractError: The forward cannot be captured, or not with the `dynamic` of the specification.
    """
    to: Any = extractor.to  # PyTorch's annotations do not allow a memory format together with a dtype
    to(dtype=torch.float32, memory_format=torch.contiguous_format)
    images = trace.images[:1].float().expand(2, -1, -1, -1).contiguous()
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
    batch = 1 if spec.example is None else len(spec.example)
    guard = ShapeGuard((batch, *images.shape[1:]), frozenset(free))
    return program, Description(
        extractor.feature_info,
        extractor._output,
        extractor.in_chans,
        extractor.size_divisor,
        extractor._inner.fixed_size,
        extractor.data_config,
        guard,
        spec.maps,
        f"{spec.computes}".removeprefix("torch."),
        smallest=extractor._smallest,
    )
