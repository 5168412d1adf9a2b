"""Folding of batch norms into the convolutions before them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...tracing.module_trace import ModuleCall, ModuleTrace, Operation

aten = torch.ops.aten
NORMS = (aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default)
NORMS += (aten._native_batch_norm_legit.default, aten.cudnn_batch_norm.default, aten.miopen_batch_norm.default)
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class Pair:
    """A convolution and the batch norm that alone reads its output.

    Attributes:
        conv: Path of the convolution.
        norm: Path of the norm.
        eps: Value added to the norm's variance.
        after: Names of the norm's children that run after the normalization, such as its activation.
    """

    conv: str
    norm: str
    eps: float
    after: tuple[str, ...]


def foldable(trace: ModuleTrace) -> Iterator[Pair]:
    """All pairs that can be folded.

    The convolution and the norm run once. The convolution's output is the norm's input; it is not a map, and no other
    operation reads it. The norm uses its running statistics, and its module only calls children afterwards.
    """
    producers = {id(output): operation for operation in trace.operations for output in operation.outputs[:1]}
    for norm in trace.operations:
        if norm.kind not in NORMS or norm.arguments.get("training", False):
            continue
        conv, after = producers.get(id(norm.arguments["input"])), _children_after(norm, trace)
        if conv is not None and after is not None and _is_foldable_conv(conv, trace):
            eps = norm.arguments.get("eps", norm.arguments.get("epsilon"))
            assert isinstance(eps, float)
            yield Pair(conv.call.path, norm.call.path, eps, after)


def _is_foldable_conv(conv: Operation, trace: ModuleTrace) -> bool:
    """Whether the operation is a convolution with its module's own weights, and nothing else reads these."""
    module, args, (output, *_) = trace.model.get_submodule(conv.call.path), conv.arguments, conv.outputs
    if conv.kind is not aten.convolution.default or not isinstance(module, nn.modules.conv._ConvNd):
        return False
    return (
        all(args[name] is module._parameters.get(name) for name in ("weight", "bias"))
        and all(len(trace.readers(tensor)) == 1 for tensor in (args["weight"], args["bias"], output))
        and not args["transposed"]
        and len(trace.calls[conv.call.path]) == 1
        and not trace.is_returned(output)
    )


def _children_after(norm: Operation, trace: ModuleTrace) -> tuple[str, ...] | None:
    """The children that the norm's module calls on the normalized tensor; None if it computes anything else."""
    call, args, (output, *_) = norm.call, norm.arguments, norm.outputs
    module = trace.model.get_submodule(call.path)
    tensors = {**module._parameters, **module._buffers}
    if any(args[name] is not tensors.get(name) for name in ("weight", "bias", *STATISTICS)):
        return None
    if any(args[name] is None for name in STATISTICS) or len(trace.calls[call.path]) != 1:
        return None
    reading = [operation for operation in trace.operations if operation.call is call and [*operation.read()]]
    if reading != [norm] or len(call.inputs) != 1 or call.inputs[0] is not args["input"]:
        return None
    return _chained_children(call, output)


def _chained_children(call: ModuleCall, x: Any) -> tuple[str, ...] | None:
    """Names of the children that compute the output of the call from `x`, one after another; None if they do not."""
    names = list[str]()
    for inner in call.children:
        owner, _, name = inner.path.rpartition(".")
        if len(inner.inputs) != 1 or inner.inputs[0] is not x or owner != call.path:
            return None
        names.append(name)
        x = inner.output
    return tuple(names) if call.output is x else None


@torch.no_grad()
def fold(model: nn.Module, pairs: Iterable[Pair]) -> None:
    """Fold the norm of each pair into its convolution, in place; the children after a norm are kept."""
    modules = dict(model.named_modules())
    replace(model, {pair.norm: _fold_pair(modules[pair.conv], modules[pair.norm], pair) for pair in pairs})


def _fold_pair(conv: Any, norm: Any, pair: Pair) -> nn.Module:
    """Fold a norm into its convolution in float64, and return the module that replaces the norm."""
    weight, bias = conv.weight, conv.bias
    mean, variance = (getattr(norm, name).double() for name in STATISTICS)
    scale = torch.rsqrt(variance + pair.eps)
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -mean * scale if bias is None else (bias.double() - mean) * scale
    shift = shift if norm.bias is None else shift + norm.bias.double()
    scaled = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
    conv.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
    remainder: nn.Module = nn.Sequential() if pair.after else nn.Identity()
    for name in pair.after:
        remainder.add_module(name, norm.get_submodule(name))
    return remainder


HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
HOOKS += ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


def replace(model: nn.Module, by_path: Mapping[str, nn.Module]) -> None:
    """Replace modules wherever they are registered, in place; the new modules inherit their mode and hooks."""
    modules = dict(model.named_modules())
    replacements = {modules[path]: module for path, module in by_path.items()}
    for old, new in replacements.items():
        new.train(old.training)
        vars(new).update({name: vars(old)[name] for name in HOOKS})
    for parent in modules.values():
        for name, child in parent._modules.items():
            if child in replacements:
                parent._modules[name] = replacements[child]
