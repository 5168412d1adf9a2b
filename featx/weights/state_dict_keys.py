"""State dict keys: extract a state dict from a checkpoint, remove wrapper modules, and rename keys by rules.

Every function is pure and returns a new dictionary. A RenamePair gives a rule for each direction.
"""

import re
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..arguments import wrong
from ..errors import CheckpointError, names_in, shortened
from .npz import ALWAYS_ALLOWED, MAX_EXPANSION, MAX_MEMBERS

StateDict = dict[str, Tensor]
State = Mapping[str, Tensor]  # read-only
# From native module paths to those of another program.
ModuleTable = dict[str, str]

LONGEST_NAME = 1024
CONTAINERS = ("state_dict", "model")
DEEPEST_CONTAINER = 4
# What a checkpoint may hold beside its tensors without being damaged, such as an epoch or the options of a run.
METADATA = (str, bytes, bool, int, float, type(None), Mapping, list, tuple, Namespace)
# Modules that FSDP, activation checkpointing and torch.compile put around any module of a network.
WRAPPERS = re.compile(r"(?<![^.])(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")

# A pattern and its replacement, as in re.sub.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]
# A part of a program's key and the native part that replaces it. ^ is the start of the key, # a number that is kept.
RenamePair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Contents:
    """Named tensors in a checkpoint. others: names of its other entries beside them."""

    state: StateDict
    others: tuple[str, ...] = ()


def extract_state_dict(checkpoint: Any, container: str | None = None) -> Contents:
    """The named tensors in a loaded checkpoint. Names of tensors in nested dictionaries are joined with dots.

    Args:
        checkpoint: the object that the file stored.
        container: key of the state dict, such as "model_ema" or "teacher", or the first parts of its names, such as
            "backbone.body". By default the state dict is the checkpoint itself or its entry `state_dict` or `model`.

    Raises:
        CheckpointError: it is not a dictionary of tensors with printable names, or has too many entries.
    """
    entries = _open_container(checkpoint, container)
    if not isinstance(entries, Mapping):
        raise CheckpointError(f"expected named tensors, got a {type(entries).__name__}")
    if len(entries) > MAX_MEMBERS:
        raise CheckpointError(f"expected the tensors of a network, at most {MAX_MEMBERS}, got {len(entries)} entries")
    state = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in entries.items() if not isinstance(value, Tensor)}
    unknown = others if not state else {name: v for name, v in others.items() if not isinstance(v, METADATA)}
    if unknown or not state:
        listed = (f"{name!r}: {type(value).__name__!r}" for name, value in unknown.items())
        raise CheckpointError(
            f"expected tensors by name, or a dictionary with them under one of {CONTAINERS}; got also "
            f"{{{', '.join(shortened(listed))}}}"
        )
    if invalid := [name for name in state if not name.isprintable() or len(name) > LONGEST_NAME]:
        raise CheckpointError(
            f"expected names of at most {LONGEST_NAME} characters that can be printed; these {len(invalid)} cannot be: "
            f"{names_in(invalid)}"
        )
    return Contents(state, tuple(others))


def plain_tensors(state: Mapping[str, Tensor]) -> StateDict:
    """The tensors without attributes, gradients, Parameter class, and lazy conjugation or negation.

    They share memory with the originals unless they were lazily conjugated or negated.
    """
    detached = {name: Tensor.detach(tensor) for name, tensor in state.items()}
    return {name: tensor.resolve_conj().resolve_neg() for name, tensor in detached.items()}


def require_values(state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless all tensors are dense and their storages have about the size that the shapes need.

    A file of a kilobyte can describe a tensor of terabytes with stride 0, all of whose values share one address.
    """
    kinds = {"without values": lambda t: t.is_meta, "sparse": lambda t: t.layout is not torch.strided}
    kinds["quantized"] = lambda t: t.is_quantized
    kinds["of less than a byte"] = lambda t: "float4" in str(t.dtype)
    problems = [
        f"{name!r}: {kind!r}" for name, tensor in state.items() for kind, applies in kinds.items() if applies(tensor)
    ]
    if problems:
        raise CheckpointError(f"expected plain tensors, but these are others: {{{', '.join(shortened(problems))}}}")
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    stored = sum(storages.values())
    needed = sum(tensor.nbytes for tensor in state.values())
    if needed > max(MAX_EXPANSION * stored, ALWAYS_ALLOWED):
        raise CheckpointError(
            f"the tensors' shapes ask for {needed} bytes, but there are only {stored} bytes of values"
        )


def _open_container(checkpoint: Any, container: str | None) -> Any:
    """The entries of the container, and of `state_dict` or `model` around or inside it."""
    if container is None:
        return _joined(_unwrap(checkpoint))
    if not isinstance(container, str):
        raise wrong("container", container, "the name of an entry")
    for outer in (checkpoint, _unwrap(checkpoint)):
        if isinstance(outer, Mapping) and isinstance(outer.get(container), Mapping):
            return _joined(_unwrap(outer[container]))
    return _select_prefix(checkpoint, container)


def _unwrap(checkpoint: Any) -> Any:
    for name in CONTAINERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
    return checkpoint


def _joined(entries: Any) -> Any:
    """Entries in which those of nested dictionaries have names such as "teacher.fc.weight", at most MAX_MEMBERS + 1."""
    return dict(islice(_items(entries), MAX_MEMBERS + 1)) if isinstance(entries, Mapping) else entries


def _items(entries: Mapping[Any, Any], depth: int = DEEPEST_CONTAINER) -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        # the keys of an optimizer's state are numbers
        if isinstance(value, Mapping) and value and depth and all(isinstance(key, str) for key in value):
            yield from ((f"{name}.{key}", inner) for key, inner in _items(value, depth - 1))
        else:
            yield str(name), value


def _select_prefix(checkpoint: Any, container: str) -> Any:
    """The tensors whose names start with the container's; CheckpointError if there are none."""
    for entries in (_joined(_unwrap(checkpoint)), _joined(checkpoint)):
        if isinstance(entries, Mapping):
            for bare in (entries, {WRAPPERS.sub("", name): value for name, value in entries.items()}):
                prefixed = {name: value for name, value in bare.items() if name.startswith(f"{container}.")}
                if prefixed:
                    return {name.removeprefix(f"{container}."): value for name, value in prefixed.items()}
    holders = (outer for outer in (checkpoint, _unwrap(checkpoint)) if isinstance(outer, Mapping))
    parts = sorted({str(name).partition(".")[0] for holder in holders for name in holder})
    raise CheckpointError(f"there is no container {container!r}; the checkpoint has [{names_in(parts)}]")


def strip_wrappers(state: StateDict, wanted: Collection[str] = ()) -> StateDict:
    """Remove modules of FSDP, activation checkpointing and torch.compile from the names, at any depth.

    They are kept if names in `wanted` have them.
    """
    if any(map(WRAPPERS.search, wanted)) or not any(map(WRAPPERS.search, state)):
        return state
    return rename_keys(state, [(WRAPPERS.pattern, "")])


def unflatten_keys(state: StateDict, wanted: Collection[str]) -> StateDict:
    """Rename `a_0.b` to `a.0.b` where the model has the second name and not the first."""

    def dotted(name: str) -> str:
        candidate = re.sub(r"^(\w+)_(\d+)\.", r"\1.\2.", name)
        return candidate if name not in wanted and candidate in wanted else name

    return {dotted(name): tensor for name, tensor in state.items()}


def rename_keys(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> StateDict:
    """Apply all rules to each key, in order. Raises CheckpointError if two tensors get the same key."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    new: StateDict = {}
    for name, tensor in state.items():
        target = name
        for pattern, replacement in compiled:
            target = pattern.sub(replacement, target)
        if target in new:
            raise CheckpointError(f"two tensors are {target!r} in the model, one of them {name!r} in the checkpoint")
        new[target] = tensor
    return new


def rename_modules(state: Mapping[str, Tensor], table: Mapping[str, str]) -> StateDict:
    """Rename the module of each tensor by the table; modules that are not listed keep their names."""
    split = [(*name.rpartition("."), tensor) for name, tensor in state.items()]
    return {f"{table.get(module, module)}{dot}{leaf}": tensor for module, dot, leaf, tensor in split}


def forward_rules(pairs: Iterable[RenamePair]) -> list[Rule]:
    """Rules from a program's keys to native ones, in the order of the pairs."""
    return [(_pattern(foreign), _replacement(native)) for foreign, native in pairs]


def inverse_rules(pairs: Iterable[RenamePair]) -> list[Rule]:
    """Rules from native keys to a program's, in reverse order: the inverse of `forward_rules`."""
    return [(_pattern(native), _replacement(foreign)) for foreign, native in reversed(list(pairs))]


def _pattern(part: str) -> str:
    return re.escape(part).replace(r"\^", "^").replace(r"\#", r"(\d+)")


def _replacement(part: str) -> str:
    before, *after = part.removeprefix("^").split("#")
    return before + "".join(rf"\g<{number}>{text}" for number, text in enumerate(after, 1))
