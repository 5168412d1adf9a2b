"""A hash that identifies the forward of an extractor: of its weights, its code and, if necessary, a recorded forward.

Weights and class names do not suffice: two models with the same weights may differ in a stride, an activation or a
global function. If every class and attribute comes from a released package, these and the versions of the packages
identify the forward. Otherwise the operations of a forward are recorded with all their arguments, at the requested
size and at an odd one, at which rules of rounding and padding have an effect.
"""

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .. import tracing
from ..features import Levels
from ..tracing.forward_trace import UnrecordedError, record, tensors_of, wrapped_modules
from ..tracing.size_rules import SizeRule
from ..tracing.symbolic_sizes import ModelTensor, SymbolicSize, TracedValue
from ..wrappers import FeatureExtractWrapper
from .agreement import smooth_noise
from .available import version
from .capture import MapsOf
from .sample_trace import black_image, default_size, inference_copy

# Packages whose version identifies their code; classes of other modules are identified by their source.
RELEASED = ("featx", "torch", "torchvision", "timm", "transformers")
VALUE_TYPES = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
VALUE_TYPES += (TracedValue, ModelTensor, SymbolicSize)
COMMON_ATTRIBUTES = frozenset(vars(nn.Module()))


class UnidentifiedError(Exception):
    """The forward cannot be identified, for example because the source of a class is not available."""


def fingerprint(extractor: FeatureExtractWrapper, example: Tensor | None) -> str | None:
    """SHA-256 of everything that determines the maps of an extractor; None if its forward cannot be identified.

    example: images (N, in_chans, H, W), of which only the height and the width are used; None is the size that the
        weights were trained for.
    """
    digest = hashlib.sha256()
    size = default_size(extractor) if example is None else (example.shape[2], example.shape[3])
    modules = [inner for module in extractor.modules() for inner in (module, *wrapped_modules(module))]
    try:
        for fact in (_properties(extractor), [*_code(extractor)], _versions(extractor)):
            digest.update(f"{fact}\n".encode())
        _add_weights(digest, extractor)
        if _are_released(modules):
            digest.update(f"{size}".encode())
        else:
            twin = inference_copy(extractor, shares=True)  # attention capture of the extractor ignores its forwards
            for number, sides in enumerate((size, *_odd_sizes(extractor))):
                digest.update("\n".join(_operations(twin, sides, required=not number)).encode())
    except UnidentifiedError:
        return None
    return digest.hexdigest()


def _properties(extractor: FeatureExtractWrapper) -> list[object]:
    """Levels, output type, size rules and preprocessing of the extractor."""
    rules = (extractor.size_divisor, extractor._inner.fixed_size, extractor._smallest, extractor.in_chans)
    levels = extractor.feature_info
    return [list(levels.info), levels.out_indices, extractor._output, rules, extractor.data_config]


def _code(extractor: FeatureExtractWrapper) -> Iterator[object]:
    """Class and attributes of every module, then a hash of the source of each class outside the released packages."""
    classes: dict[type, None] = {}
    for path, module in extractor.named_modules():
        for inner in (module, *wrapped_modules(module)):
            classes.update(dict.fromkeys(type(inner).__mro__))
            yield path, _name(type(inner)), [text for text in _attributes(inner) if text is not None]
    for cls in classes:
        if _package(cls) not in (*RELEASED, "builtins", "abc", "typing", "collections"):
            yield _name(cls), _source_digest(cls)


def _are_released(modules: list[nn.Module]) -> bool:
    """Whether all classes and attributes come from released packages, and no module has hooks."""
    classes = {cls for module in modules for cls in type(module).__mro__} - {object}
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    return not hooked and all(map(_is_released_class, classes)) and all(None not in _attributes(one) for one in modules)


def _is_released_class(cls: type) -> bool:
    """Whether a class and its methods come from a released package or the standard library."""
    members = [getattr(value, "__func__", getattr(value, "fget", value)) for value in vars(cls).values()]
    return _text(cls) is not None and all(_is_released(member) for member in members if callable(member))


def _is_released(code: Any) -> bool:
    """Whether code is of a released package or the standard library.

    The code is a class, a function with all functions it wraps, or any other callable, of which the class counts.
    """
    if not isinstance(code, FunctionType | BuiltinFunctionType | type):
        code = type(code)
    wrapped = getattr(code, "__wrapped__", None)
    is_released = _package(code) in (*RELEASED, *sys.stdlib_module_names)
    return is_released and (wrapped is None or _is_released(wrapped))


def _package(code: Any) -> str:
    """The package that defines the code; of a function its globals decide, because `wraps` changes `__module__`."""
    module = code.__globals__["__name__"] if isinstance(code, FunctionType) else code.__module__
    return (module or "").partition(".")[0]


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _attributes(module: nn.Module) -> Iterator[str | None]:
    """The attributes of a module, except those of every module, as text; None for one that text cannot identify."""
    for name, value in sorted(vars(module).items()):
        if name not in COMMON_ATTRIBUTES and name != "_held":  # a module, which is hashed separately
            text = "a tensor" if isinstance(value, Tensor) else _text(value)  # tensors are hashed with the weights
            yield None if text is None else f"{name}={text}"


def _text(value: Any) -> str | None:
    """A text that identifies a value; None if no text does."""
    if type(value) in VALUE_TYPES:
        return repr(value)
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        is_named = _is_released(value) and "<" not in value.__qualname__
        return f"{value.__module__}.{value.__qualname__}" if is_named else None
    parts = _parts(value)
    texts = None if parts is None else [_text(part) for part in parts]
    return None if texts is None or None in texts else f"{_name(type(value))}{texts}"


def _parts(value: Any) -> list[Any] | None:
    """The parts that identify a value of a known type; None for other types."""
    if isinstance(value, SizeRule):
        return []  # it is derived from the model
    if isinstance(value, Enum):
        return [value.name]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, Levels):
        return [list(value.info), value.out_indices]
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, list | tuple):
        return list(value)
    if is_dataclass(value) and _package(type(value)) == "featx":
        return [getattr(value, field.name) for field in fields(value)]
    return None


def _source_digest(cls: type) -> str:
    """SHA-256 of the file that defines a class, or of its own source if there is no file, as in notebooks."""
    try:
        file = Path(inspect.getfile(cls))
        source = file.read_bytes() if file.is_file() else inspect.getsource(cls).encode()
    except (OSError, TypeError) as error:
        raise UnidentifiedError(f"{_name(cls)} has no source") from error
    return hashlib.sha256(source).hexdigest()


def _versions(extractor: FeatureExtractWrapper) -> list[str]:
    """Versions of the packages that define the modules and write graphs, of Python, and of featx's code."""
    used = {type(module).__module__.partition(".")[0] for module in extractor.modules()} & set(RELEASED)
    packages = [f"{name} {version(name)}" for name in sorted({*used, "torch", "featx", "onnx"})]
    return [*packages, sys.version.partition(" ")[0], _own_code()]


@cache
def _own_code() -> str:
    """SHA-256 of the code that captures and writes graphs, because it also changes between releases."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(tracing.__path__[0])):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def digest_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's values, dtype and shape; UnidentifiedError if its values cannot be read."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    _add_values(digest, tensor)
    return digest.hexdigest()


def _add_values(digest: Any, tensor: Tensor) -> None:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta or tensor.layout is not torch.strided:
        raise UnidentifiedError(f"a {type(tensor).__name__} has no values to read")
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _add_weights(digest: Any, extractor: FeatureExtractWrapper) -> None:
    for name, tensor in sorted(tensors_of(extractor), key=itemgetter(0)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}\n".encode())
        _add_values(digest, tensor)


def _odd_sizes(extractor: FeatureExtractWrapper) -> Iterator[tuple[int, int]]:
    """A small (height, width) of odd sides, rounded up to the size divisor; none if the extractor has a fixed size."""
    if extractor._inner.fixed_size is None:
        least, step = max(extractor._smallest, *extractor.feature_info.reduction()), extractor.size_divisor
        yield -(-(2 * least + 1) // step) * step, -(-(3 * least + 3) // step) * step


def _operations(extractor: FeatureExtractWrapper, size: tuple[int, int], required: bool) -> list[str]:
    """The operations of a forward, one per line; a single line if the forward of a size that is not required fails."""
    try:
        recording = record(MapsOf(extractor), smooth_noise(black_image(extractor, size)))
    except UnrecordedError as error:
        if required:
            raise UnidentifiedError(f"{error}") from error
        return [f"{size} refused"]
    lines = [f"{size}", *map(digest_of, recording.literals.values())]
    for step in recording.steps:
        if not all(isinstance(leaf, VALUE_TYPES) for leaf in tree_leaves((step.args, step.kwargs))):
            raise UnidentifiedError(f"{step.operation} has an argument that no text identifies")
        lines.append(f"{step.operation}{step.args}{step.kwargs}")
    return [*lines, f"{recording.returned}"]
