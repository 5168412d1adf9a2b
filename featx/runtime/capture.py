"""The operations that compute an extractor's maps, as a graph that runs without the model's code."""

import threading
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen

from ..errors import ContractError
from ..wrappers import FeatureExtractWrapper
from ..wrappers.refusals import REFUSED, third_party
from .record import UnrecordedError
from .recorded import recorded
from .taken import Axis, InexpressibleError, Taken, taken
from .watch import Seen

# Operations of models that are captured for images of any size. For others, such as those that attend to patches,
# PyTorch may take minutes to find which sizes the graph is right for.
SIZELESS = {
    *("convolution", "native_batch_norm", "empty", "clone", "cat", "copy_", "mean", "_adaptive_avg_pool2d"),
    *("add", "add_", "mul", "mul_", "sub", "div", "clamp", "max_pool2d_with_indices", "avg_pool2d"),
    *("relu", "relu_", "hardtanh", "hardtanh_", "silu", "silu_", "gelu", "hardswish", "hardswish_", "leaky_relu"),
    *("hardsigmoid", "sigmoid", "tanh", "elu", "softplus", "upsample_nearest2d", "slice", "detach", "alias"),
    *("permute", "transpose", "t", "view", "_unsafe_view", "unsqueeze", "squeeze", "native_layer_norm", "addmm", "sum"),
    *("_softmax", "new_zeros", "new_empty"),
}

# torch.export and torch.compile patch modules of PyTorch while they trace: one thread at a time.
TRACING = threading.RLock()

SIDES = {0: "n", 2: "h", 3: "w"}  # axes that may be free, and what their lengths are called


@dataclass(frozen=True)
class Captured:
    """A graph from images to maps, the images it is right for, and how it was captured (see Description)."""

    graph: fx.GraphModule
    taken: Taken
    capture: str
    fallbacks: tuple[str, ...] = ()


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


def capture(extractor: FeatureExtractWrapper, seen: Seen, images: Tensor) -> Captured:
    """The graph for images like these two, in any number, and of any size if that is found quickly.

    Where the user gave an example, one for its size alone will do. Raises ContractError for a model that torch.export
    cannot capture, which is asked where recording what the model does is not enough.
    """
    try:
        graph, any_size = recorded(MapsOf(extractor), images, extractor._inner.fixed_size is None)
    except UnrecordedError as error:
        return _by_export(extractor, seen, images, f"recorder: {error}")
    if any_size or seen.example or not sizeless(seen):
        free = {axis: Axis(name, 1, None) for axis, name in SIDES.items() if any_size or axis == 0}
        return Captured(graph, Taken(tuple(images.shape), free, ()), "recorder")
    return _by_export(extractor, seen, images, "recorder: its graph is for images of one size alone")


def _by_export(extractor: FeatureExtractWrapper, seen: Seen, images: Tensor, why: str) -> Captured:
    import torch.export

    free = torch.export.Dim.AUTO  # as far as the model leaves it free
    errors: list[Exception] = []
    for axes in ((0, 2, 3), (0,), ()) if sizeless(seen) else ((0,), ()):
        try:
            program = exported(MapsOf(extractor), images, {"x": dict.fromkeys(axes, free)} if axes else None)
            fallbacks = (why, *(f"torch.export: {first_line(error)}" for error in errors))
            return Captured(module_of(program), taken(program, images.shape), "torch.export", fallbacks)
        except (*REFUSED, InexpressibleError) as error:
            errors.append(error)
    raise ContractError(
        f"{type(extractor._source).__name__} cannot be captured by torch.export ({first_line(errors[0])}): use "
        "runtime='eager'"
    ) from errors[0]


def first_line(error: Exception) -> str:
    """The first line of what an error says; its class if it says nothing."""
    return f"{error}".strip().partition("\n")[0] or type(error).__name__


def sizeless(seen: Seen) -> bool:
    """Whether the model can be captured for images of any size in little time."""
    return {operation.kind._schema.name.removeprefix("aten::") for operation in seen.operations} <= SIZELESS


def exported(model: nn.Module, images: Tensor, dynamic: Any) -> Any:
    """The model's torch.export.ExportedProgram, in inference. dynamic: the axes of its input that are free, if any.

    Raises ThirdPartyError if PyTorch cannot make one.
    """
    with TRACING, torch.inference_mode(False), torch.no_grad():
        return third_party(torch.export.export, model, (images,), dynamic_shapes=dynamic, strict=False)


def module_of(program: Any) -> fx.GraphModule:
    """The program's graph on the program's own tensors, without checks of the input, which are made outside."""
    has_checks = "check_guards" in signature(program.module).parameters  # since PyTorch 2.9
    unlifted = program.module(check_guards=False) if has_checks else program.module()
    unlifted.graph.set_codegen(CodeGen())  # a tensor in, tensors out
    return fx.GraphModule(unlifted, unlifted.graph)  # which can be copied, and put in eval mode
