"""Folds batch norms into the convolutions before them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..watch import Call, ForwardTrace, Operation

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


def pairs(seen: ForwardTrace) -> Iterator[Pair]:
    """All that can be folded.

    A convolution and a norm that run once; the output of the one goes into the other, and is neither read by another
    operation nor a map. The norm uses its running statistics, and does nothing but to call children after.
    """
    made_by = {id(operation.output): operation for operation in seen.operations if operation.output is not None}
    for operation in seen.operations:
        if operation.kind not in NORMS or operation.arguments.get("training", False):
            continue
        before = made_by.get(id(operation.arguments["input"]))
        after = _after(operation, seen)
        if before is not None and after is not None and _folds(before, seen):
            eps = operation.arguments.get("eps", operation.arguments.get("epsilon"))
            assert isinstance(eps, float)
            yield Pair(seen.path(before.module), seen.path(operation.module), eps, after)


def _folds(conv: Operation, seen: ForwardTrace) -> bool:
    """Whether the operation is a convolution by its module's own weights, which nothing else needs as they are."""
    module, given = conv.module, conv.arguments
    if conv.kind is not aten.convolution.default or not isinstance(module, nn.modules.conv._ConvNd):
        return False
    assert conv.output is not None
    own = {name: given[name] is module._parameters.get(name) for name in ("weight", "bias")}
    once = len(seen.readers(given["weight"])) == len(seen.readers(given["bias"])) == 1 if all(own.values()) else False
    return (
        once
        and not given["transposed"]
        and len(seen.calls[module]) == 1
        and len(seen.readers(conv.output)) == 1
        and not seen.is_returned(conv.output)
    )


def _after(norm: Operation, seen: ForwardTrace) -> tuple[str, ...] | None:
    """The children that the norm's module calls on what the norm returned; None if it does anything else."""
    module, given = norm.module, norm.arguments
    calls = seen.calls.get(module, [])
    own = {**module._parameters, **module._buffers}
    if len(calls) != 1 or any(given[name] is not own.get(name) for name in ("weight", "bias", *STATISTICS)):
        return None
    if any(given[name] is None for name in STATISTICS):
        return None
    if seen.reading_in(module) != [norm] or len(calls[0].given) != 1 or calls[0].given[0] is not given["input"]:
        return None
    return _in_turn(calls[0], norm.output)


def _in_turn(call: Call, x: Any) -> tuple[str, ...] | None:
    """Names of the children that turn `x` into what the call returned, one after another; None if they do not."""
    names = {child: name for name, child in call.module.named_children()}
    for inner in call.inner:
        if len(inner.given) != 1 or inner.given[0] is not x or inner.module not in names:
            return None
        x = inner.output
    return tuple(names[inner.module] for inner in call.inner) if call.output is x else None


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
