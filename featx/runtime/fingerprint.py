"""What identifies an extractor's forward: its weights, its code, and the operations that it was seen to run.

Weights and class names do not: two models of the same weights may differ in a stride, an activation or a function that
neither of them holds. Where every class and attribute is of a released package, these and the package's version say it
all. Else the operations of a forward are recorded, with all their arguments, at the size asked for and at an odd one,
where rules of rounding and padding show.
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
from ..tracing.execution_order import channels_of
from ..tracing.forward_trace import UnrecordedError, record, tensors_of, wrapped_modules
from ..tracing.size_rules import SizeRule
from ..tracing.symbolic_sizes import ModelTensor, SymbolicSize, TracedValue
from ..wrappers import FeatureExtractWrapper
from .agreement import smooth_noise
from .available import version
from .capture import MapsOf
from .watch import copy_of, own_size

# Packages whose code their version identifies; of other modules' classes the source does.
RELEASED = ("featx", "torch", "torchvision", "timm", "transformers")
PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
PLAIN += (TracedValue, ModelTensor, SymbolicSize)
OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class UnidentifiedError(Exception):
    """A forward that nothing identifies, such as one of a class without source."""


def fingerprint(extractor: FeatureExtractWrapper, example: Tensor | None) -> str | None:
    """SHA-256 of all that decides an extractor's maps of images like the example; None if that cannot be told.

    example: images (N, in_chans, H, W), of which the shape counts; None stands for the size that the weights expect.
    """
    digest = hashlib.sha256()
    size = own_size(extractor) if example is None else (example.shape[2], example.shape[3])
    modules = [inner for module in extractor.modules() for inner in (module, *wrapped_modules(module))]
    try:
        for fact in (_facts(extractor), [*_code(extractor)], _versions(extractor)):
            digest.update(f"{fact}\n".encode())
        _add_weights(digest, extractor)
        if _are_released(modules):
            digest.update(f"{size}".encode())
        else:
            twin = copy_of(extractor, shares=True)  # which no capture of attention sees
            for number, sides in enumerate((size, *_odd(extractor))):
                digest.update("\n".join(_operations(twin, sides, required=not number)).encode())
    except UnidentifiedError:
        return None
    return digest.hexdigest()


def _facts(extractor: FeatureExtractWrapper) -> list[object]:
    """What the extractor says of itself."""
    rules = (extractor.size_divisor, extractor._inner.fixed_size, extractor._smallest, extractor.in_chans)
    levels = extractor.feature_info
    return [list(levels.info), levels.out_indices, extractor._output, rules, extractor.data_config]


def _code(extractor: FeatureExtractWrapper) -> Iterator[object]:
    """The class and the attributes of every module, then the source of classes that no release identifies."""
    kinds: dict[type, None] = {}
    for path, module in extractor.named_modules():
        for inner in (module, *wrapped_modules(module)):
            kinds.update(dict.fromkeys(type(inner).__mro__))
            yield path, _name(type(inner)), [text for text in _attributes(inner) if text is not None]
    for kind in kinds:
        if _package(kind) not in (*RELEASED, "builtins", "abc", "typing", "collections"):
            yield _name(kind), _source(kind)


def _are_released(modules: list[nn.Module]) -> bool:
    """Whether all classes and attributes are of released packages, so that nothing else can be in the forward."""
    kinds = {kind for module in modules for kind in type(module).__mro__} - {object}
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    return not hooked and all(map(_is_published, kinds)) and all(None not in _attributes(one) for one in modules)


def _is_published(kind: type) -> bool:
    """Whether a class and its methods are code of a released package, or of Python."""
    bare = [getattr(value, "__func__", getattr(value, "fget", value)) for value in vars(kind).values()]
    return _text(kind) is not None and all(_is_known(value) for value in bare if callable(value))


def _is_known(part: Any) -> bool:
    """Whether a class, a function with all that it wraps, or a callable's class is of a released package or Python."""
    if not isinstance(part, FunctionType | BuiltinFunctionType | type):
        part = type(part)
    wrapped = getattr(part, "__wrapped__", None)
    is_known = _package(part) in (*RELEASED, *sys.stdlib_module_names)
    return is_known and (wrapped is None or _is_known(wrapped))


def _package(part: Any) -> str:
    """The package that the code is in, whatever a function says of itself that replaces another."""
    module = part.__globals__["__name__"] if isinstance(part, FunctionType) else part.__module__
    return (module or "").partition(".")[0]


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _attributes(module: nn.Module) -> Iterator[str | None]:
    """The attributes of a module that other modules have not, as text; None for one that has no text."""
    for name, value in sorted(vars(module).items()):
        if name not in OF_EVERY_MODULE and name != "_held":  # which is a module of its own
            text = "a tensor" if isinstance(value, Tensor) else _text(value)  # which counts with the weights
            yield None if text is None else f"{name}={text}"


def _text(value: Any) -> str | None:
    """What a value is, as text; None where that may leave something out."""
    if type(value) in PLAIN:
        return repr(value)
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        is_named = _is_known(value) and "<" not in value.__qualname__
        return f"{value.__module__}.{value.__qualname__}" if is_named else None
    parts = _parts(value)
    texts = None if parts is None else [_text(part) for part in parts]
    return None if texts is None or None in texts else f"{_name(type(value))}{texts}"


def _parts(value: Any) -> list[Any] | None:
    """What a value of a plain kind consists of; None for other kinds."""
    if isinstance(value, SizeRule):
        return []  # it follows from the model
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


def _source(kind: type) -> str:
    """The file that a class is written in, or its own source where that is no file, as in notebooks."""
    try:
        file = Path(inspect.getfile(kind))
        text = file.read_bytes() if file.is_file() else inspect.getsource(kind).encode()
    except (OSError, TypeError) as error:
        raise UnidentifiedError(f"{_name(kind)} has no source") from error
    return hashlib.sha256(text).hexdigest()


def _versions(extractor: FeatureExtractWrapper) -> list[str]:
    """Versions of what the modules are of and of what writes graphs."""
    used = {type(module).__module__.partition(".")[0] for module in extractor.modules()} & set(RELEASED)
    told = [f"{name} {version(name)}" for name in sorted({*used, "torch", "featx", "onnx"})]
    return [*told, sys.version.partition(" ")[0], _own_code()]


@cache
def _own_code() -> str:
    """SHA-256 of the code that decides what is written, which changes between releases too."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(tracing.__path__[0])):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def digest_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's values, dtype and shape."""
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


def _odd(extractor: FeatureExtractWrapper) -> Iterator[tuple[int, int]]:
    """A small size of odd sides, if the extractor takes several sizes."""
    if extractor._inner.fixed_size is None:
        cell, step = max(extractor._smallest, *extractor.feature_info.reduction()), extractor.size_divisor
        yield -(-(2 * cell + 1) // step) * step, -(-(3 * cell + 3) // step) * step


def _operations(extractor: FeatureExtractWrapper, size: tuple[int, int], required: bool) -> list[str]:
    """The operations of a forward, a line each; one line if the extractor refuses the size and it is not required."""
    weight = next(extractor.parameters())
    image = smooth_noise(torch.empty(1, channels_of(extractor), *size, dtype=weight.dtype, device=weight.device))
    try:
        recording = record(MapsOf(extractor), image)
    except UnrecordedError as error:
        if required:
            raise UnidentifiedError(f"{error}") from error
        return [f"{size} refused"]
    lines = [f"{size}", *map(digest_of, recording.literals.values())]
    for step in recording.steps:
        if not all(isinstance(leaf, PLAIN) for leaf in tree_leaves((step.args, step.kwargs))):
            raise UnidentifiedError(f"{step.operation} was given what has no text")
        lines.append(f"{step.operation}{step.args}{step.kwargs}")
    return [*lines, f"{recording.returned}"]
