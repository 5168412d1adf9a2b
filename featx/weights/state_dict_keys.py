"""Keys of state dicts: freed of what training scripts and wrappers write around them, and renamed by rules.

Every function is pure: dictionary in, new dictionary out. Pairs of pieces of names are rules that can be read in both
directions.
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
State = Mapping[str, Tensor]  # of what is only read


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
PARTS = ("backbone.", "encoder.", "visual_encoder.", "model.backbone.")

# A pattern, and what takes its place: both as re.sub has them.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]
# A piece of a foreign name and the native piece in its place. ^ stands for the beginning, # for a number that stays.
Pair = tuple[str, str]


def tensors_of(checkpoint: Any, container: str | None = None) -> StateDict:
    """The named tensors in what a file held.

    container: the entry they are under, such as "model_ema" or "teacher", or the first part of their names. By default
        a training checkpoint is opened at `state_dict` or `model`. Raises CheckpointError if it holds anything else.
    """
    opened = _opened(checkpoint, container)
    if not isinstance(opened, Mapping):
        raise CheckpointError(f"expected named tensors, got a {type(opened).__name__}")
    if len(opened) > MAX_MEMBERS:
        raise CheckpointError(f"expected the tensors of a network, at most {MAX_MEMBERS}, got {len(opened)} entries")
    others = [
        f"{str(name)!r}: {type(value).__name__!r}" for name, value in opened.items() if not isinstance(value, Tensor)
    ]
    if others or not opened:
        inside = [name for name, value in opened.items() if isinstance(value, Mapping)]
        hint = f"; if they are under one of [{names_in(inside)}], say which with container=" if inside else ""
        raise CheckpointError(
            f"expected tensors by name, or a dictionary with them under one of {CONTAINERS}; got also "
            f"{{{', '.join(shortened(others))}}}{hint}"
        )
    state = {str(name): tensor for name, tensor in opened.items()}
    if odd := [name for name in state if not name.isprintable() or len(name) > LONGEST_NAME]:
        raise CheckpointError(
            f"expected names of at most {LONGEST_NAME} characters that can be printed; these {len(odd)} cannot be: "
            f"{names_in(odd)}"
        )
    return state


def plain(state: Mapping[str, Tensor]) -> StateDict:
    """The tensors without what a file may hang on them: attributes, gradients, parameters' class, marks of conjugates.

    They share their memory.
    """
    bare = {name: Tensor.detach(tensor) for name, tensor in state.items()}
    return {name: tensor.resolve_conj().resolve_neg() for name, tensor in bare.items()}


def require_values(state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless every tensor holds its values one by one, as many as its shape says.

    A file of a kilobyte can describe one of terabytes whose values are all the same place in memory.
    """
    kinds = {"without values": lambda t: t.is_meta, "sparse": lambda t: t.layout is not torch.strided}
    kinds["quantised"] = lambda t: t.is_quantized
    kinds["of less than a byte"] = lambda t: "float4" in str(t.dtype)
    wrong = [f"{name!r}: {kind!r}" for name, tensor in state.items() for kind, is_so in kinds.items() if is_so(tensor)]
    if wrong:
        raise CheckpointError(f"expected plain tensors, but these are others: {{{', '.join(shortened(wrong))}}}")
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    held = sum(storages.values())
    described = sum(tensor.nbytes for tensor in state.values())
    if described > max(MAX_EXPANSION * held, ALWAYS_ALLOWED):
        raise CheckpointError(
            f"the tensors' shapes ask for {described} bytes, but there are only {held} bytes of values"
        )


def _opened(checkpoint: Any, container: str | None) -> Any:
    """What is in the container, and in those around and inside it that need no asking."""
    if container is None:
        return _inside(checkpoint)
    if not isinstance(container, str):
        raise wrong("container", container, "the name of an entry")
    for outer in (checkpoint, _inside(checkpoint)):
        if isinstance(outer, Mapping) and isinstance(outer.get(container), Mapping):
            return _inside(outer[container])
    return _under(checkpoint, container)


def _inside(checkpoint: Any) -> Any:
    for name in CONTAINERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
    return checkpoint


def _under(checkpoint: Any, container: str) -> Any:
    """The tensors whose names begin with the container's; CheckpointError if there are none."""
    inside = _inside(checkpoint)
    entries = inside if isinstance(inside, Mapping) else {}
    under = {str(name): value for name, value in entries.items() if str(name).startswith(f"{container}.")}
    if not under:
        outer = checkpoint if isinstance(checkpoint, Mapping) else {}
        parts = sorted({str(name).partition(".")[0] for name in (*outer, *entries)})
        raise CheckpointError(f"there is no container {container!r}; the checkpoint has [{names_in(parts)}]")
    return {name.removeprefix(f"{container}."): value for name, value in under.items()}


def unwrapped(state: StateDict, wanted: Collection[str] = ()) -> Iterator[StateDict]:
    """The tensors as they are, then without each prefix that all names share, unless those of the model begin so."""
    yield state
    while prefix := next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), None):
        if any(name.startswith(prefix) for name in wanted):
            return
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        yield state


def backbone_prefix(state: StateDict, wanted: Collection[str]) -> str | None:
    """The first of PARTS that some names begin with: they are the backbone in a bigger model. None if there is none.

    Also None if the model has any of these names as they are, or names that begin so themselves.
    """
    if any(name in state for name in wanted):
        return None
    for prefix in PARTS:
        if any(name.startswith(prefix) for name in state) and not any(name.startswith(prefix) for name in wanted):
            return prefix
    return None


def unflattened(state: StateDict, wanted: Collection[str]) -> StateDict:
    """`a_0.b` becomes `a.0.b` where the model has the second name and not the first."""

    def dotted(name: str) -> str:
        candidate = re.sub(r"^(\w+)_(\d+)\.", r"\1.\2.", name)
        return candidate if name not in wanted and candidate in wanted else name

    return {dotted(name): tensor for name, tensor in state.items()}


def renamed(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> StateDict:
    """Every rule, in order, on every name. Raises CheckpointError if two tensors end up with one name."""
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


def moved(state: Mapping[str, Tensor], table: Mapping[str, str]) -> StateDict:
    """The tensors under the names that the table gives their modules; what it does not list stays where it is."""
    split = [(*name.rpartition("."), tensor) for name, tensor in state.items()]
    return {f"{table.get(module, module)}{dot}{leaf}": tensor for module, dot, leaf, tensor in split}


def rules(pairs: Iterable[Pair]) -> list[Rule]:
    """The pairs, in their order, as rules from foreign names to native ones."""
    return [(_pattern(foreign), _replacement(native)) for foreign, native in pairs]


def rules_back(pairs: Iterable[Pair]) -> list[Rule]:
    """What undoes `rules` of the same pairs: native pieces to foreign ones, in the opposite order."""
    return [(_pattern(native), _replacement(foreign)) for foreign, native in reversed(list(pairs))]


def _pattern(piece: str) -> str:
    return re.escape(piece).replace(r"\^", "^").replace(r"\#", r"(\d+)")


def _replacement(piece: str) -> str:
    before, *after = piece.removeprefix("^").split("#")
    return before + "".join(rf"\g<{number}>{text}" for number, text in enumerate(after, 1))
