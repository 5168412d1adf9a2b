"""Recording of the operations of a forward.

PyTorch's compiler records more models, with guards, but its import takes seconds.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .composite_ops import as_composite
from .symbolic_sizes import ModelTensor, Name, SymbolicSize, TracedSize, TracedValue
from .third_party_errors import REFUSED, passed_on, third_party

aten = torch.ops.aten

# Operations and methods that depend on values or memory layouts, which differ from run to run.
DATA_DEPENDENT = (aten._local_scalar_dense, aten.nonzero, aten.equal, aten._unique2, aten.unique_dim)
LAYOUT_DEPENDENT = (aten.as_strided, aten.as_strided_, aten.empty_strided, aten.new_empty_strided, aten.set_)
READING_VALUES = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.data_ptr)
INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
SIZES = (torch.Tensor.numel, torch.Tensor.nelement, torch.Tensor.stride, torch.Tensor.storage_offset)


class UnrecordedError(Exception):
    """The forward cannot be recorded as operations on tensors that can be repeated."""


@dataclass(frozen=True, slots=True)
class Step:
    """A recorded operation. In its arguments, TracedValue and ModelTensor stand for tensors.

    Attributes:
        returned: the tensors that it returned, on the meta device.
        also_changed: other views of the memory that it wrote to.
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
    """The steps of a forward of `images`, and the tensors that it returned.

    Attributes:
        literals: tensors that the code creates from Python numbers.
        guards: the sizes that the code branched on or computed with: of an axis, or of all axes but the first.
    """

    images: Tensor
    steps: list[Step] = field(default_factory=list)
    returned: list[Name] = field(default_factory=list)
    literals: dict[Name, Tensor] = field(default_factory=dict)
    guards: dict[TracedValue | SymbolicSize, Any] = field(default_factory=dict)


def record(model: nn.Module, images: Tensor) -> Recording:
    """Record `model(images)`, which returns a tuple of tensors. UnrecordedError if it cannot be repeated."""
    recording = Recording(_without_values(images))
    operations = _Operations(recording, model, images)
    try:
        with torch.inference_mode(False), torch.no_grad(), _Functions(operations), operations:
            returned = third_party(model, images)
    except REFUSED as error:
        raise UnrecordedError(f"its forward fails during the recording: {error}") from error
    recording.returned = [operations.name_of(tensor) for tensor in returned]
    return recording


class _Operations(TorchDispatchMode):
    """Records every operation that reaches a kernel, unless it is part of a composite operation.

    Attributes:
        recording: what has been recorded.
        in_composite: whether a composite operation is running.
        sizes: the traced sizes among the arguments of the running function.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, so that PyTorch does not import its compiler in order to disable it for this mode."""
        return False

    def __init__(self, recording: Recording, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.recording, self.in_composite, self.sizes = recording, False, list[TracedSize]()
        named = list(tensors_of(model))
        self._alive = [tensor for _, tensor in named]  # so that no new tensor gets the id of one that is replaced
        self._model_tensors = {id(tensor): ModelTensor(path) for path, tensor in named}
        self._traced: dict[int, tuple[Callable[[], Any], TracedValue]] = {}
        self._name(images, TracedValue(-1))

    def name_of(self, tensor: Tensor) -> Name:
        """The reference to a tensor. UnrecordedError if it is neither the model's nor the result of a step."""
        if id(tensor) in self._model_tensors:
            return self._model_tensors[id(tensor)]
        referent, name = self._traced.get(id(tensor), (lambda: None, None))
        if name is None or referent() is not tensor:
            raise UnrecordedError("a tensor comes from elsewhere")
        return name

    def add(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Record an operation. UnrecordedError if it cannot be repeated with the same result."""
        schema = operation._schema.arguments
        arguments = {argument.name: argument.default_value for argument in schema}
        arguments |= {**dict(zip(arguments, args, strict=False)), **kwargs}
        written = [arguments[argument.name] for argument in schema if _is_written(argument)]
        changes_model = any(id(tensor) in self._model_tensors for tensor in written)
        varies = operation.overloadpacket in (*DATA_DEPENDENT, *LAYOUT_DEPENDENT) or _is_random(operation, arguments)
        if changes_model or varies:
            raise UnrecordedError(f"{operation} may return something else when it is repeated")
        outputs = (output,) if isinstance(output, Tensor) else tuple(output)
        args, kwargs = self._symbolic((args, kwargs))
        others = tuple(name for tensor in written if isinstance(tensor, Tensor) for name in self._views(tensor))
        for place, tensor in enumerate(outputs):
            self._name(tensor, TracedValue(len(self.recording.steps), None if isinstance(output, Tensor) else place))
        self.recording.steps.append(Step(operation, args, kwargs, tuple(map(_without_values, outputs)), others))

    def _views(self, written: Tensor) -> Iterator[TracedValue]:
        """References to other tensors in the same memory."""
        for referent, name in self._traced.values():
            tensor = referent()
            if tensor is not None and tensor is not written and _storage(tensor) == _storage(written):
                yield name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        output = passed_on(func, *args, **(kwargs or {}))
        if func is aten.lift_fresh.default and id(args[0]) not in self._traced:
            name = ModelTensor(f"literal_{len(self.recording.literals)}")
            self.recording.literals[name] = output
            self._model_tensors[id(output)] = name
        elif not self.in_composite:
            self.add(func, args, kwargs or {}, output)
        return output

    def _name(self, tensor: Tensor, name: TracedValue) -> None:
        self._traced[id(tensor)] = ref(tensor), name

    def _symbolic(self, arguments: Any) -> Any:
        """The arguments with references in place of tensors and traced sizes."""
        sizes = list(self.sizes)

        def reference(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self.name_of(value)
            equal = [size for size in sizes if _is_number(value) and int.__eq__(size, value)]
            if len(equal) > 1:  # as for square images: use equal sizes in their order
                sizes.remove(equal[0])
            return equal[0].of if equal else value

        return tree_map(reference, arguments)


class _Functions(TorchFunctionMode):
    """Records composite operations, traces sizes, and refuses functions that read values."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if func in READING_VALUES:
            raise UnrecordedError(f"{func.__name__} reads values")
        if func is torch.Tensor.__getitem__ and _is_slicing(args[1]):
            return self._slice(*args)
        if func in INDEXING and any(isinstance(part, slice) for part in _index_parts(args[1])):
            self._guard(args[0])
        operations = self.operations
        operations.sizes = _traced_sizes(tree_leaves((args, kwargs)))
        composite = as_composite(func, args, kwargs)
        operations.in_composite = composite is not None
        try:
            output = passed_on(func, *args, **kwargs)
        finally:
            operations.in_composite = False
        if composite is not None:
            operations.add(*composite, output)
        elif func in SIZES:
            self._guard(args[0])
        elif isinstance(output, torch.Size):
            return tuple(self._size(args[0], axis) for axis in range(len(output)))
        elif func is torch.Tensor.size:
            return self._size(args[0], next(iter((*args[1:], *kwargs.values()))) % args[0].ndim)
        return output

    def _slice(self, tensor: Tensor, index: Any) -> Tensor:
        """The slice, by operations that are recorded even if they change nothing at this size."""
        parts = list(_index_parts(index))
        if Ellipsis in parts:
            place = parts.index(Ellipsis)
            parts[place : place + 1] = [slice(None)] * (tensor.ndim - len(parts) + 1)
        for axis, part in enumerate(parts):
            if part.start is not None or part.stop is not None:
                self.operations.sizes = _traced_sizes((part.start, part.stop))
                tensor = passed_on(aten.slice.Tensor, tensor, axis, part.start, part.stop)
        return tensor

    def _size(self, tensor: Tensor, axis: int) -> int:
        """The length of an axis. Code may compute with the batch size, which is axis 0, but not branch on it."""
        with torch._C.DisableTorchFunction():
            length = tensor.shape[axis]
        name = self.operations.name_of(tensor)
        if isinstance(name, ModelTensor):
            return length
        if axis == 0:
            return TracedSize.of_axis(length, None, self._refuse, lambda: None)
        of = SymbolicSize(name, axis, length)
        guard = partial(self.operations.recording.guards.__setitem__, of, length)
        return TracedSize.of_axis(length, of, guard, guard)

    def _guard(self, tensor: Tensor) -> None:
        name = self.operations.name_of(tensor)
        if isinstance(name, TracedValue):
            with torch._C.DisableTorchFunction():
                self.operations.recording.guards[name] = tuple(tensor.shape[1:])

    def _refuse(self) -> None:
        raise UnrecordedError("it branches on the batch size")


def _traced_sizes(values: Iterable[Any]) -> list[TracedSize]:
    return [value for value in values if isinstance(value, TracedSize) and value.of]


def _index_parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _is_slicing(index: Any) -> bool:
    """Whether an index consists of slices without a step."""
    parts = _index_parts(index)
    slices = [part for part in parts if isinstance(part, slice) and part.step is None]
    return bool(slices) and len(slices) + sum(part is Ellipsis for part in parts) == len(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_random(operation: Any, arguments: dict[str, Any]) -> bool:
    """Whether the operation draws random numbers. Dropout with a probability of 0 or with train=False does not."""
    return (
        torch.Tag.nondeterministic_seeded in operation.tags
        and arguments.get("dropout_p", 1) != 0
        and arguments.get("train", True) is not False
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
    """Path and tensor of each tensor attribute of the modules, including those in public sequences and dictionaries."""
    for prefix, module in model.named_modules():
        for owner in (module, *wrapped_modules(module)):
            for name, value in (*owner._parameters.items(), *owner._buffers.items(), *vars(owner).items()):
                path = f"{prefix}.{name}" if prefix else name
                if isinstance(value, Tensor):
                    yield path, value
                elif isinstance(value, dict | list | tuple) and not name.startswith("_"):
                    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                        if isinstance(inner, Tensor):
                            yield f"{path}[{key}]", inner


def wrapped_modules(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a Transparent module wraps, from the outermost inward; they are not its children."""
    inner: Any = module
    while (held := vars(inner).get("_held")) is not None:
        (inner,) = held
        yield inner
