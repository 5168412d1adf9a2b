"""The operations of a forward, written down while it runs.

PyTorch's compiler would do so for every model, and prove more, but to import it takes seconds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .composite_ops import written_as
from .symbolic_sizes import ModelTensor, Name, SymbolicSize, TracedSize, TracedValue
from .third_party_errors import REFUSED, passed_on, third_party

aten = torch.ops.aten

# Operations, and methods, that read values or addresses of memory: these differ from run to run.
VALUES = (aten._local_scalar_dense, aten.nonzero, aten.equal, aten._unique2, aten.unique_dim)
ADDRESSES = (aten.as_strided, aten.as_strided_, aten.empty_strided, aten.new_empty_strided, aten.set_)
LOOKING = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.data_ptr)
INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
SIZES = (torch.Tensor.numel, torch.Tensor.nelement, torch.Tensor.stride, torch.Tensor.storage_offset)


class UnrecordedError(Exception):
    """The forward does what cannot be written down as operations on tensors, or not twice the same."""


@dataclass(frozen=True, slots=True)
class Step:
    """An operation. In its arguments, tensors are `TracedValue` and `ModelTensor`.

    returned: what it returned, without values. also_changed: other views of the memory that it wrote to.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    returned: tuple[Tensor, ...]
    also_changed: tuple[TracedValue, ...]

    @property
    def several(self) -> bool:
        """Whether it returns a sequence of tensors."""
        declared = self.operation._schema.returns
        return len(declared) > 1 or not isinstance(declared[0].type, torch.TensorType)


@dataclass
class Recording:
    """The steps of a forward of `images`, and what it returned.

    literals: tensors that the code makes of Python's numbers.
    asked: lengths of axes, or of all axes but the first of a tensor, that its code decided on or computed with.
    """

    images: Tensor
    steps: list[Step] = field(default_factory=list)
    returned: list[Name] = field(default_factory=list)
    literals: dict[Name, Tensor] = field(default_factory=dict)
    asked: dict[TracedValue | SymbolicSize, Any] = field(default_factory=dict)


def record(model: nn.Module, images: Tensor) -> Recording:
    """What `model(images)`, a tuple of tensors, computes; UnrecordedError if that is not all that it does."""
    made = Recording(_without_values(images))
    operations = _Operations(made, model, images)
    try:
        with torch.inference_mode(False), torch.no_grad(), _Functions(operations), operations:
            returned = third_party(model, images)
    except REFUSED as error:
        raise UnrecordedError(f"its forward fails while it is written down: {error}") from error
    made.returned = [operations.known(tensor) for tensor in returned]
    return made


class _Operations(TorchDispatchMode):
    """Writes down every operation that reaches a kernel, unless it is part of one that is written down as a whole.

    sides: lengths that the function was given which is running.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """What PyTorch asks before it imports its compiler to keep it away from such a mode."""
        return False

    def __init__(self, made: Recording, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.made, self.within, self.sides = made, False, list[TracedSize]()
        own = list(tensors_of(model))
        self._kept = [tensor for _, tensor in own]  # else another tensor could get the identity of one that is replaced
        self._own = {id(tensor): ModelTensor(path) for path, tensor in own}
        self._made: dict[int, tuple[Callable[[], Any], TracedValue]] = {}
        self._name(images, TracedValue(-1))

    def known(self, tensor: Tensor) -> Name:
        """What the tensor is called; UnrecordedError if no step made it."""
        if id(tensor) in self._own:
            return self._own[id(tensor)]
        alive, name = self._made.get(id(tensor), (lambda: None, None))
        if name is None or alive() is not tensor:
            raise UnrecordedError("a tensor comes from elsewhere")
        return name

    def keep(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Write it down; UnrecordedError if to repeat it could give something else."""
        arguments = operation._schema.arguments
        names = [argument.name for argument in arguments]
        given = {argument.name: argument.default_value for argument in arguments}
        given |= {**dict(zip(names, args, strict=False)), **kwargs}
        written = [given[argument.name] for argument in arguments if _is_written(argument)]
        changed = any(id(tensor) in self._own for tensor in written)
        if changed or _is_random(operation, given) or operation.overloadpacket in (*VALUES, *ADDRESSES):
            raise UnrecordedError(f"{operation} may give something else when it is repeated")
        outputs = (output,) if isinstance(output, Tensor) else tuple(output)
        args, kwargs = self._named((args, kwargs))
        others = tuple(name for tensor in written if isinstance(tensor, Tensor) for name in self._views(tensor))
        for place, tensor in enumerate(outputs):
            self._name(tensor, TracedValue(len(self.made.steps), None if isinstance(output, Tensor) else place))
        self.made.steps.append(Step(operation, args, kwargs, tuple(map(_without_values, outputs)), others))

    def _views(self, written: Tensor) -> Iterator[TracedValue]:
        """What other tensors in the same memory are called."""
        for alive, name in self._made.values():
            tensor = alive()
            if tensor is not None and tensor is not written and _storage(tensor) == _storage(written):
                yield name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        output = passed_on(func, *args, **(kwargs or {}))
        if func is aten.lift_fresh.default and id(args[0]) not in self._made:
            self._keep_literal(output)
        elif not self.within:
            self.keep(func, args, kwargs or {}, output)
        return output

    def _keep_literal(self, tensor: Tensor) -> None:
        name = ModelTensor(f"literal_{len(self.made.literals)}")
        self.made.literals[name] = tensor
        self._own[id(tensor)] = name

    def _name(self, tensor: Tensor, name: TracedValue) -> None:
        self._made[id(tensor)] = ref(tensor), name

    def _named(self, arguments: Any) -> Any:
        sides = list(self.sides)

        def name(given: Any) -> Any:
            if isinstance(given, Tensor):
                return self.known(given)
            same = [side for side in sides if _is_number(given) and int.__eq__(side, given)]
            if len(same) > 1:  # images are often squares: they are taken in their order
                sides.remove(same[0])
            return same[0].of if same else given

        return tree_map(name, arguments)


class _Functions(TorchFunctionMode):
    """Has some functions written down whole, and notices where code asks for sizes or looks at values."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if func in LOOKING:
            raise UnrecordedError(f"{func.__name__} looks at values")
        if func is torch.Tensor.__getitem__ and _is_slicing(args[1]):
            return self._sliced(*args)
        if func in INDEXING and any(isinstance(part, slice) for part in _parts(args[1])):
            self._ask(args[0])
        operations = self.operations
        operations.sides = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, TracedSize) and leaf.of]
        whole = written_as(func, args, kwargs)
        operations.within = whole is not None
        try:
            output = passed_on(func, *args, **kwargs)
        finally:
            operations.within = False
        if whole is not None:
            operations.keep(*whole, output)
        elif func in SIZES:
            self._ask(args[0])
        elif isinstance(output, torch.Size):
            return tuple(self._side(args[0], axis) for axis in range(len(output)))
        elif func is torch.Tensor.size:
            return self._side(args[0], next(iter((*args[1:], *kwargs.values()))) % args[0].ndim)
        return output

    def _sliced(self, tensor: Tensor, index: Any) -> Tensor:
        """The same by operations that are written down, even where, for this size, they are not needed."""
        parts = list(_parts(index))
        if Ellipsis in parts:
            place = parts.index(Ellipsis)
            parts[place : place + 1] = [slice(None)] * (tensor.ndim - len(parts) + 1)
        for axis, part in enumerate(parts):
            if part.start is not None or part.stop is not None:
                self.operations.sides = [
                    side for side in (part.start, part.stop) if isinstance(side, TracedSize) and side.of
                ]
                tensor = passed_on(aten.slice.Tensor, tensor, axis, part.start, part.stop)
        return tensor

    def _side(self, tensor: Tensor, axis: int) -> int:
        """The length of an axis. The first counts images, which code may compute with, but not decide on."""
        with torch._C.DisableTorchFunction():
            length = tensor.shape[axis]
        name = self.operations.known(tensor)
        if isinstance(name, ModelTensor):
            return length
        if axis == 0:
            return TracedSize.of_axis(length, None, self._refuse, lambda: None)
        of = SymbolicSize(name, axis, length)
        ask = partial(self.operations.made.asked.__setitem__, of, length)
        return TracedSize.of_axis(length, of, ask, ask)

    def _ask(self, tensor: Tensor) -> None:
        name = self.operations.known(tensor)
        if isinstance(name, TracedValue):
            with torch._C.DisableTorchFunction():
                self.operations.made.asked[name] = tuple(tensor.shape[1:])

    def _refuse(self) -> None:
        raise UnrecordedError("it decides on the number of images")


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _is_slicing(index: Any) -> bool:
    """Whether an index only narrows axes, and narrows any."""
    parts = _parts(index)
    slices = [part for part in parts if isinstance(part, slice) and part.step is None]
    return bool(slices) and len(slices) + sum(part is Ellipsis for part in parts) == len(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_random(operation: Any, given: dict[str, Any]) -> bool:
    """Whether it draws numbers; dropout does not, where its probability is 0 or it is told not to train."""
    return (
        torch.Tag.nondeterministic_seeded in operation.tags
        and given.get("dropout_p", 1) != 0
        and given.get("train", True) is not False
    )


def _storage(tensor: Tensor) -> int:
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _without_values(tensor: Tensor) -> Tensor:
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a module has as an attribute, or in a sequence or dictionary that is one, by its path."""
    for prefix, module in model.named_modules():
        for kept in (module, *stood_in_for(module)):
            for name, value in (*kept._parameters.items(), *kept._buffers.items(), *vars(kept).items()):
                path = f"{prefix}.{name}" if prefix else name
                if isinstance(value, Tensor):
                    yield path, value
                elif isinstance(value, dict | list | tuple) and not name.startswith("_"):
                    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                        if isinstance(inner, Tensor):
                            yield f"{path}[{key}]", inner


def stood_in_for(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that an extractor runs in the place of, which are no children of it."""
    inner: Any = module
    while (held := vars(inner).get("_held")) is not None:
        (inner,) = held
        yield inner
