"""Runs programs in PyTorch and in ONNX Runtime, to compare them with the modules that they were recorded from."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from featx.runtime.onnx.translation import onnx_model
from featx.tracing.program import PerImage, Program, program_of
from featx.tracing.symbolic_sizes import ModelTensor, SymbolicSize, TracedValue


class Then(nn.Module):
    """A convolution, and what a test does with its map."""

    def __init__(self, then, **modules):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.then = nn.Conv2d(3, 8, 3, 2, 1), then
        self.register_buffer("kept", torch.zeros(8, 1, 1))
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.then(self, self.conv(x)),)


@torch.no_grad()
def run(program: Program, x: Tensor) -> list[Tensor]:
    """What the program returns, by PyTorch's own operations."""
    known: dict[Any, Any] = {**program.constants, TracedValue(-1): x}

    def filled(given: Any) -> Any:
        if isinstance(given, SymbolicSize):
            return known[given.tensor].shape[given.axis]
        if isinstance(given, PerImage):
            return given.times * len(x)
        return known[given] if isinstance(given, TracedValue | ModelTensor) else given

    for call in program.calls:
        target = {"view": torch.ops.aten.reshape.default}.get(call.operation.overloadpacket.__name__, call.operation)
        args, kwargs = tree_map(filled, (call.args, call.kwargs))
        returned = target(*args, **kwargs)
        if isinstance(returned, Tensor):
            known[TracedValue(call.number)] = returned
        else:
            known.update({TracedValue(call.number, place): tensor for place, tensor in enumerate(returned)})
    return [known[name] for name in program.returned]


def in_onnx_runtime(model: nn.Module, *shapes: tuple[int, ...], sizes: bool = True) -> list[tuple[Tensor, Tensor]]:
    """For images of each shape, what ONNX Runtime computes of the model's program, and what the model does."""
    import onnx
    import onnxruntime

    program = program_of(model, torch.randn(2, *shapes[0][1:]), sizes)
    free = (None, 3, None, None) if program.any_size else (None, *shapes[0][1:])
    made = onnx_model(program, ["y"], free)
    onnx.checker.check_model(made, full_check=True)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    pairs = []
    for shape in shapes:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            (expected,) = model(x)
        pairs.append((torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), expected))
    return pairs
