"""What the operations of one forward read, and in which module each ran: seen on a copy."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import ContractError
from ..tracing.copies import structural_copy
from ..tracing.execution_order import channels_of
from ..tracing.third_party_errors import REFUSED, passed_on, third_party
from ..wrappers import FeatureExtractWrapper

# The side of an image that shows as much as a larger one.
SMALL = (128, 128)


@dataclass(slots=True)
class Operation:
    """One operation: its arguments by name, the first tensor it returned, the innermost module that it ran in."""

    kind: Any
    arguments: dict[str, Any]
    output: Tensor | None
    module: nn.Module


@dataclass(slots=True)
class Call:
    """One call of a module, and the calls of its children, in order."""

    module: nn.Module
    given: tuple[Any, ...]
    output: Any = None
    inner: "list[Call]" = field(default_factory=list)


@dataclass
class ForwardTrace:
    """A forward of `model`, which has the modules of what is to be optimised, under the same names.

    images: one, of the size that the extractor will be given.
    """

    model: nn.Module
    operations: list[Operation]
    calls: dict[nn.Module, list[Call]]
    returned: list[Tensor]
    images: Tensor

    def __post_init__(self) -> None:
        self._paths = {module: path for path, module in self.model.named_modules()}
        self._readers: dict[int, list[Operation]] = {}
        self._inside: dict[nn.Module, list[Operation]] = {}
        for operation in self.operations:
            storages = {storage_of(tensor) for tensor in _tensors(operation.arguments)}
            if storages:
                self._inside.setdefault(operation.module, []).append(operation)
            for storage in storages:
                self._readers.setdefault(storage, []).append(operation)

    def path(self, module: nn.Module) -> str:
        return self._paths[module]

    def readers(self, tensor: Tensor) -> list[Operation]:
        """The operations that read the tensor, or any view of it."""
        return self._readers.get(storage_of(tensor), [])

    def reading_in(self, module: nn.Module) -> list[Operation]:
        """The operations of the module itself, not of its children, that read a tensor."""
        return self._inside.get(module, [])

    def is_returned(self, tensor: Tensor) -> bool:
        """Whether a map is the tensor itself, or a view of it."""
        return storage_of(tensor) in {storage_of(map_) for map_ in self.returned}


def watch(extractor: FeatureExtractWrapper, example: Tensor | None) -> ForwardTrace:
    """A forward of a copy, for one image: the example's first, or a black one, small if the model takes small ones.

    With values, because shapes alone would take PyTorch longer: seconds to import what finds them. Raises ContractError
    if the model does not run.
    """
    if example is not None:
        return _tried(extractor, example[:1])
    images = _black(extractor, own_size(extractor))
    if extractor._inner.fixed_size is None and own_size(extractor) > SMALL:
        try:
            return replace(_run(extractor, _black(extractor, SMALL)), images=images)
        except REFUSED:
            pass  # too small, or no multiple of what it takes
    return _tried(extractor, images)


def own_size(extractor: FeatureExtractWrapper) -> tuple[int, int]:
    """The only (height, width) it takes, or the one its weights were made for."""
    stated = extractor.data_config
    return extractor._inner.fixed_size or (stated.size if stated is not None else (224, 224))


def _tried(extractor: FeatureExtractWrapper, images: Tensor) -> ForwardTrace:
    try:
        return _run(extractor, images)
    except REFUSED as error:
        raise ContractError(
            f"{type(extractor.source).__name__} does not run on images {tuple(images.shape)} ({error}): "
            "pass example=, images that it takes"
        ) from error


def _black(extractor: FeatureExtractWrapper, size: tuple[int, int]) -> Tensor:
    weight = next(extractor.parameters())
    return torch.zeros(1, channels_of(extractor), *size, device=weight.device, dtype=weight.dtype)


def copy_of(extractor: FeatureExtractWrapper, *, shares: bool = False) -> FeatureExtractWrapper:
    """A copy whose tensors want no gradient: its own, or those of the extractor if it `shares` them."""

    def unwanting(tensor: Tensor) -> Tensor:
        values = tensor.detach() if shares else tensor.detach().clone()
        return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values

    return structural_copy(extractor, unwanting)


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _run(extractor: FeatureExtractWrapper, images: Tensor) -> ForwardTrace:
    """Convolutions without a bias are given one, to see whether they would use it."""
    twin = copy_of(extractor)
    weight = next(twin.parameters())
    images = images.to(weight.device, weight.dtype)
    for module in twin.modules():
        if isinstance(module, nn.modules.conv._ConvNd) and module.bias is None:
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels), requires_grad=False)
    calls: dict[nn.Module, list[Call]] = {}
    stack = [Call(twin, (images,))]

    def enter(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        made = Call(module, (*given, *named.values()))
        stack[-1].inner.append(made)
        calls.setdefault(module, []).append(made)
        stack.append(made)

    def leave(_module: nn.Module, _given: Any, output: Any) -> None:
        stack.pop().output = output

    for module in twin.modules():
        module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        module.register_forward_hook(leave, prepend=True)  # before hooks that take maps
    flow = _Record(stack)
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]), flow:
        returned = third_party(twin, images)
    return ForwardTrace(twin, flow.operations, calls, list(_tensors(returned)), images)


class _Record(TorchDispatchMode):
    """Keeps every operation, with the module that is on top of the stack of calls."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """What PyTorch asks before it imports its compiler, for seconds, to keep it away from such a mode."""
        return False

    def __init__(self, stack: list[Call]) -> None:
        super().__init__()
        self.stack = stack
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        output = passed_on(func, *args, **kwargs)
        names = [argument.name for argument in func._schema.arguments]
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        first = next(_tensors(output), None)
        self.operations.append(Operation(func, arguments, first, self.stack[-1].module))
        return output


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
