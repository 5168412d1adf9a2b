"""State dict keys: extract a state dict from a checkpoint, strip wrapper prefixes, and rename keys by rules.

Every function is pure and returns a new dictionary. A RenamePair gives a rule for each direction.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
PREFIXES = (
    "module.",
    "_orig_mod.",
    "backbone.",
    "model.",
    "encoder.",
    "visual_encoder.",
    "body.",
    "graph_module.",
)
MODEL_PARTS = ("backbone.", "encoder.", "visual_encoder.", "model.backbone.")

# A pattern and its replacement, as in re.sub.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]
# A part of a program's key and the native part that replaces it. ^ is the start of the key, # a number that is kept.
RenamePair = tuple[str, str]


def extract_state_dict(checkpoint: Any, container: str | None = None) -> StateDict:
    """The state dict in a loaded checkpoint.

    Args:
        checkpoint: the object that the file stored.
        container: key of the state dict, such as "model_ema" or "teacher", or first part of its keys. By default
            the state dict is the checkpoint itself or its entry `state_dict` or `model`.

    Raises:
        CheckpointError: it is not a dictionary of tensors with printable names, or has too many entries.
    """
    entries = _open_container(checkpoint, container)
    if not isinstance(entries, Mapping):
        raise CheckpointError(f"expected named tensors, got a {type(entries).__name__}")
    if len(entries) > MAX_MEMBERS:
        raise CheckpointError(f"expected the tensors of a network, at most {MAX_MEMBERS}, got {len(entries)} entries")
    others = [
        f"{str(name)!r}: {type(value).__name__!r}" for name, value in entries.items() if not isinstance(value, Tensor)
    ]
    if others or not entries:
        nested = [name for name, value in entries.items() if isinstance(value, Mapping)]
        hint = f"; if they are under one of [{names_in(nested)}], say which with container=" if nested else ""
        raise CheckpointError(
            f"expected tensors by name, or a dictionary with them under one of {CONTAINERS}; got also "
            f"{{{', '.join(shortened(others))}}}{hint}"
        )
    state = {str(name): tensor for name, tensor in entries.items()}
    if invalid := [name for name in state if not name.isprintable() or len(name) > LONGEST_NAME]:
        raise CheckpointError(
            f"expected names of at most {LONGEST_NAME} characters that can be printed; these {len(invalid)} cannot be: "
            f"{names_in(invalid)}"
        )
    return state


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
    """The content of the container, and of `state_dict` or `model` around or inside it."""
    if container is None:
        return _unwrap(checkpoint)
    if not isinstance(container, str):
        raise wrong("container", container, "the name of an entry")
    for outer in (checkpoint, _unwrap(checkpoint)):
        if isinstance(outer, Mapping) and isinstance(outer.get(container), Mapping):
            return _unwrap(outer[container])
    return _select_prefix(checkpoint, container)


def _unwrap(checkpoint: Any) -> Any:
    for name in CONTAINERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
    return checkpoint


def _select_prefix(checkpoint: Any, container: str) -> Any:
    """The tensors whose names start with the container's; CheckpointError if there are none."""
    content = _unwrap(checkpoint)
    entries = content if isinstance(content, Mapping) else {}
    prefixed = {str(name): value for name, value in entries.items() if str(name).startswith(f"{container}.")}
    if not prefixed:
        outer = checkpoint if isinstance(checkpoint, Mapping) else {}
        parts = sorted({str(name).partition(".")[0] for name in (*outer, *entries)})
        raise CheckpointError(f"there is no container {container!r}; the checkpoint has [{names_in(parts)}]")
    return {name.removeprefix(f"{container}."): value for name, value in prefixed.items()}


def strip_prefixes(state: StateDict, wanted: Collection[str] = ()) -> Iterator[StateDict]:
    """Yield the tensors, then without each known prefix that all names share and no name in `wanted` starts with."""
    yield state
    while prefix := next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), None):
        if any(name.startswith(prefix) for name in wanted):
            return
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        yield state


def backbone_prefix(state: StateDict, wanted: Collection[str]) -> str | None:
    """The first prefix in MODEL_PARTS of some names, those of the backbone in a larger model; None if there is none.

    It is also None if the model has one of the names unchanged, or has names with that prefix itself.
    """
    if any(name in state for name in wanted):
        return None
    for prefix in MODEL_PARTS:
        if any(name.startswith(prefix) for name in state) and not any(name.startswith(prefix) for name in wanted):
            return prefix
    return None


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
