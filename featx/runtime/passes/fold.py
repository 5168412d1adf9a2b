"""Folds batch norms into the convolutions before them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...tracing.module_trace import ModuleCall, ModuleTrace, Operation

aten = torch.ops.aten
NORMS = (aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default)
NORMS += (aten._native_batch_norm_legit.default, aten.cudnn_batch_norm.default, aten.miopen_batch_norm.default)
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class Pair:
    """Paths of a convolution and of the norm that alone reads its output, what to add to the norm's variance.

    after: names of the norm's children that run after the norm itself, such as its activation.
    """

    conv: str
    norm: str
    eps: float
    after: tuple[str, ...]


def pairs(seen: ModuleTrace) -> Iterator[Pair]:
    """All that can be folded.

    A convolution and a norm that run once; the output of the one goes into the other, and is neither read by another
    operation nor a map. The norm uses its running statistics, and does nothing but to call children after.
    """
    made_by = {id(output): operation for operation in seen.operations for output in operation.outputs[:1]}
    for norm in seen.operations:
        if norm.kind not in NORMS or norm.arguments.get("training", False):
            continue
        before, after = made_by.get(id(norm.arguments["input"])), _after(norm, seen)
        if before is not None and after is not None and _folds(before, seen):
            eps = norm.arguments.get("eps", norm.arguments.get("epsilon"))
            assert isinstance(eps, float)
            yield Pair(before.call.path, norm.call.path, eps, after)


def _folds(conv: Operation, seen: ModuleTrace) -> bool:
    """Whether the operation is a convolution by its module's own weights, which nothing else needs as they are."""
    module, given, (output, *_) = seen.model.get_submodule(conv.call.path), conv.arguments, conv.outputs
    if conv.kind is not aten.convolution.default or not isinstance(module, nn.modules.conv._ConvNd):
        return False
    return (
        all(given[name] is module._parameters.get(name) for name in ("weight", "bias"))
        and all(len(seen.readers(tensor)) == 1 for tensor in (given["weight"], given["bias"], output))
        and not given["transposed"]
        and len(seen.calls[conv.call.path]) == 1
        and not seen.is_returned(output)
    )


def _after(norm: Operation, seen: ModuleTrace) -> tuple[str, ...] | None:
    """The children that the norm's module calls on what the norm returned; None if it does anything else."""
    call, given, (output, *_) = norm.call, norm.arguments, norm.outputs
    module = seen.model.get_submodule(call.path)
    own = {**module._parameters, **module._buffers}
    if any(given[name] is not own.get(name) for name in ("weight", "bias", *STATISTICS)):
        return None
    if any(given[name] is None for name in STATISTICS) or len(seen.calls[call.path]) != 1:
        return None
    reading = [operation for operation in seen.operations if operation.call is call and [*operation.read()]]
    if reading != [norm] or len(call.inputs) != 1 or call.inputs[0] is not given["input"]:
        return None
    return _in_turn(call, output)


def _in_turn(call: ModuleCall, x: Any) -> tuple[str, ...] | None:
    """Names of the children that turn `x` into what the call returned, one after another; None if they do not."""
    names = list[str]()
    for inner in call.children:
        owner, _, name = inner.path.rpartition(".")
        if len(inner.inputs) != 1 or inner.inputs[0] is not x or owner != call.path:
            return None
        names.append(name)
        x = inner.output
    return tuple(names) if call.output is x else None


@torch.no_grad()
def fold(model: nn.Module, found: Iterable[Pair]) -> None:
    """Fold the norm of each pair into its convolution, in place; what a norm's module did besides stays."""
    modules = dict(model.named_modules())
    left = {pair.norm: _folded(modules[pair.conv], modules[pair.norm], pair) for pair in found}
    replace(model, left)


def _folded(conv: Any, norm: Any, pair: Pair) -> nn.Module:
    """Fold one, and return what is left of the norm."""
    weight, bias = conv.weight, conv.bias
    mean, variance = (_exact(getattr(norm, name)) for name in STATISTICS)
    scale = torch.rsqrt(variance + pair.eps)
    scale = scale if norm.weight is None else scale * _exact(norm.weight)
    shift = -mean * scale if bias is None else (_exact(bias) - mean) * scale
    shift = shift if norm.bias is None else shift + _exact(norm.bias)
    scaled = _exact(weight) * scale.view(-1, *[1] * (weight.ndim - 1))
    conv.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
    left: nn.Module = nn.Sequential() if pair.after else nn.Identity()
    for name in pair.after:
        left.add_module(name, norm.get_submodule(name))
    return left


def _exact(tensor: Tensor) -> Tensor:
    return tensor.double()


HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
HOOKS += ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


def replace(model: nn.Module, by_path: Mapping[str, nn.Module]) -> None:
    """Put modules in the places of others, wherever these are registered, in place; they take over their hooks."""
    modules = dict(model.named_modules())
    instead = {modules[path]: module for path, module in by_path.items()}
    for old, new in instead.items():
        new.train(old.training)
        vars(new).update({name: vars(old)[name] for name in HOOKS})
    for parent in modules.values():
        for name, child in parent._modules.items():
            if child in instead:
                parent._modules[name] = instead[child]
