"""Copies of models that share the original's tensors, or hold converted tensors in their place."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import ContractError
from .third_party_errors import ThirdPartyError, third_party

Module = TypeVar("Module", bound=nn.Module)

# Attributes in which modules cache values computed from parameters, some of which cannot be copied.
CACHES = ("attention_bias_cache",)


@torch.inference_mode(False)  # inference tensors have no gradients and no version counter
def structural_copy(
    module: Module, convert: Callable[[Tensor], Tensor] | None = None, keep: Iterable[Any] = ()
) -> Module:
    """A copy of `module` that shares its tensors, with empty caches.

    Args:
        module: the module.
        convert: returns the tensor that the copy holds instead of a tensor of `module`.
        keep: objects that the copy shares instead of copying them.

    Raises:
        ContractError: the module cannot be copied, or its copy cannot share the parameters.
    """
    memo: dict[int, Any] = {id(shared): shared for shared in keep}
    for tensor in _tensors(module):
        memo[id(tensor)] = convert(tensor) if convert else tensor
    for child in module.modules():  # each has several empty dictionaries, which deepcopy copies slowly
        memo.update((id(v), type(v)()) for v in vars(child).values() if type(v) in (dict, set, OrderedDict) and not v)
        memo.update((id(cache), {}) for name in CACHES if (cache := vars(child).get(name)) is not None)
    alive = list(memo.values())  # keeps ids from being reused during the copy
    try:
        copied = third_party(copy.deepcopy, module, memo)
    except ThirdPartyError as error:
        raise ContractError(f"{type(module).__name__} cannot be copied: {error}") from error
    if convert is None and {id(p) for p in copied.parameters()} != {id(p) for p in module.parameters()}:
        raise ContractError(
            f"{type(module).__name__} makes new parameters when it is copied: its copy cannot share them"
        )
    del alive
    return copied


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    for child in module.modules():
        for value in vars(child).values():
            held = value.values() if type(value) is dict else (value,)
            yield from (tensor for tensor in held if isinstance(tensor, Tensor))


def without_values(tensor: Tensor) -> Tensor:
    """A copy of a tensor or parameter on the meta device."""
    empty = tensor.detach().to("meta", copy=True)  # 20 times as fast as empty_like
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def with_own_buffers(tensor: Tensor) -> Tensor:
    """The parameter itself, or a clone of any other tensor."""
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def twin_of(model: Module, convert: Callable[[Tensor], Tensor] = without_values) -> Module:
    """A copy in eval mode to run trials on, with `convert(tensor)` in place of each tensor: on the meta device."""
    twin = structural_copy(model, convert).eval()
    for module in twin.modules():
        if "grad_checkpointing" in vars(module):  # PyTorch would warn about missing gradients
            vars(module).update(grad_checkpointing=False)
    return twin
