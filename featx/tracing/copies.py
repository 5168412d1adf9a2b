"""Copies of a model's modules that share its tensors, or hold others in their place."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import ContractError
from .third_party_errors import ThirdPartyError, third_party

Module = TypeVar("Module", bound=nn.Module)

# Attributes in which modules keep values they computed from parameters, some of which cannot be copied.
CACHES = ("attention_bias_cache",)


@torch.inference_mode(False)  # whose tensors can neither want gradients nor count their changes
def structural_copy(module: Module, of: Callable[[Tensor], Tensor] | None = None, keep: Iterable[Any] = ()) -> Module:
    """A copy of `module` that shares every tensor with it, or holds `of(tensor)` instead, and shares what to `keep`.

    What modules keep of their last run is empty in it. Raises ContractError for a module that cannot be copied so.
    """
    memo: dict[int, Any] = {id(thing): thing for thing in keep}
    for tensor in _tensors(module):
        memo[id(tensor)] = of(tensor) if of else tensor
    for part in module.modules():  # each has several empty tables, which deepcopy would take to pieces
        memo.update((id(v), type(v)()) for v in vars(part).values() if type(v) in (dict, set, OrderedDict) and not v)
        memo.update((id(cache), {}) for name in CACHES if (cache := vars(part).get(name)) is not None)
    alive = list(memo.values())  # an id must not be reused while the memo is
    try:
        copied = third_party(copy.deepcopy, module, memo)
    except ThirdPartyError as error:
        raise ContractError(f"{type(module).__name__} cannot be copied: {error}") from error
    if of is None and {id(p) for p in copied.parameters()} != {id(p) for p in module.parameters()}:
        raise ContractError(
            f"{type(module).__name__} makes new parameters when it is copied: its copy cannot share them"
        )
    del alive
    return copied


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        for value in vars(part).values():
            held = value.values() if type(value) is dict else (value,)
            yield from (tensor for tensor in held if isinstance(tensor, Tensor))


def without_values(tensor: Tensor) -> Tensor:
    """A tensor or parameter on the meta device, like the given one."""
    empty = tensor.detach().to("meta", copy=True)  # empty_like takes PyTorch 20 times as long there
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def with_own_buffers(tensor: Tensor) -> Tensor:
    """A parameter itself, any other tensor cloned."""
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def twin_of(model: Module, of: Callable[[Tensor], Tensor] = without_values) -> Module:
    """A copy to run, in eval mode, on the meta device or with `of(tensor)` in the place of each tensor."""
    twin = structural_copy(model, of).eval()
    for module in twin.modules():
        if "grad_checkpointing" in vars(module):  # PyTorch would warn that there are no gradients
            vars(module).update(grad_checkpointing=False)
    return twin
