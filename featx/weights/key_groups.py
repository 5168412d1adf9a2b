"""Find the tensors of a model in a checkpoint: the names that share a prefix and are, without it, the model's.

Programs save a backbone as a part of larger objects: detectors, pairs of teacher and student, wrappers for training.
The search needs no list of prefixes: it tries every module in the names that holds enough of the tensors.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from ..errors import CheckpointError, names_in
from .layout import Layout, all_layouts, find_layout, recognize_layout
from .state_dict_keys import StateDict, strip_wrappers, unflatten_keys

NATIVE = "native"
COUNTER = "num_batches_tracked"  # of batch norms; files of many programs lack it
SMALLEST_GROUP = 0.05  # of the names of a checkpoint
SMALLEST_OVERLAP = 0.25  # of the names of a model
DEEPEST = 8  # parts of a prefix


@dataclass(frozen=True, slots=True)
class KeyGroup:
    """Tensors whose names in the checkpoint start with `prefix`, without it. layout: None for native names."""

    prefix: str
    state: StateDict
    layout: Layout | None = None


def find_group(state: StateDict, names: Collection[str], families: Collection[str], asked: str | None) -> KeyGroup:
    """The tensors of the model in a checkpoint, without wrapper modules and without the prefix that they share.

    Args:
        state: all tensors of the checkpoint.
        names: state dict keys of the model.
        families: class names of the model, which select the layouts.
        asked: the program whose layout the tensors have, "native", or None to recognize it.

    Raises:
        CheckpointError: several parts of the checkpoint fit the model, or the layout is ambiguous.
    """
    fits = _predicate(names, families, asked)
    groups = list(_fitting(KeyGroup("", strip_wrappers(state, names)), fits))
    if len(groups) > 1:
        prefixes = [group.prefix.rstrip(".") for group in groups]
        raise CheckpointError(
            f"several parts of the checkpoint fit the model: its tensors are under one of [{names_in(prefixes)}], say "
            "which with container="
        )
    if groups:
        return groups[0]
    group = without_shared_prefix(KeyGroup("", strip_wrappers(state, names)), names)
    return group if asked in (None, NATIVE) else KeyGroup(*_parts(group), find_layout(asked, families, group.state))


def recognized_layouts(state: StateDict) -> list[Layout]:
    """The layouts of all families that recognize the outermost parts of a checkpoint."""
    found: list[Layout] = []

    def fits(group: KeyGroup) -> KeyGroup | None:
        layouts = [layout for layout in all_layouts() if layout.recognizes(group.state)]
        found.extend(layouts)
        return group if layouts else None

    for _ in _fitting(KeyGroup("", strip_wrappers(state)), fits):
        pass
    return found


def nested_groups(group: KeyGroup, smallest: float = 1) -> Iterator[KeyGroup]:
    """The groups of the next part of the names that have at least `smallest` tensors, in the order of the names."""
    counts = Counter(part for part, dot, _ in (name.partition(".") for name in group.state) if dot)
    for part in (part for part, count in counts.items() if count >= smallest):
        start = f"{part}."
        inside = {name.removeprefix(start): value for name, value in group.state.items() if name.startswith(start)}
        yield KeyGroup(f"{group.prefix}{start}", inside)


def without_shared_prefix(group: KeyGroup, names: Collection[str]) -> KeyGroup:
    """The group without all first parts that its names share, unless names of the model start with them."""
    for _ in range(DEEPEST):
        inner = next(nested_groups(group, len(group.state)), None)
        if inner is None or any(name.startswith(inner.prefix.removeprefix(group.prefix)) for name in names):
            break
        group = inner
    return group


def _parts(group: KeyGroup) -> tuple[str, StateDict]:
    return group.prefix, group.state


def _predicate(
    names: Collection[str], families: Collection[str], asked: str | None
) -> Callable[[KeyGroup], KeyGroup | None]:
    """A function that returns a group with native names or with its layout if it fits the model, else None."""
    wanted = {name for name in names if not name.endswith(COUNTER)}

    def fits(group: KeyGroup) -> KeyGroup | None:
        layout = _layout(group.state, families, asked)
        if layout is not None:
            return KeyGroup(*_parts(group), layout)
        native = unflatten_keys(group.state, names)
        overlap = len(wanted & native.keys())
        return KeyGroup(group.prefix, native) if asked in (None, NATIVE) and overlap >= _least(wanted) else None

    return fits


def _layout(state: StateDict, families: Collection[str], asked: str | None) -> Layout | None:
    """The layout that recognizes the tensors, among those of the program `asked`, if any."""
    if asked is None:
        return recognize_layout(state, families)
    layout = None if asked == NATIVE else find_layout(asked, families, state)
    return layout if layout is not None and layout.recognizes(state) else None


def _least(wanted: Collection[str]) -> float:
    return max(1, SMALLEST_OVERLAP * len(wanted))


def _fitting(root: KeyGroup, fits: Callable[[KeyGroup], KeyGroup | None]) -> Iterator[KeyGroup]:
    """The outermost groups that fit."""
    smallest, level = SMALLEST_GROUP * len(root.state), [root]
    for _ in range(DEEPEST + 1):
        inner: list[KeyGroup] = []
        for group in level:
            if (fitting := fits(group)) is not None:
                yield fitting
            else:
                inner += nested_groups(group, smallest)
        level = inner
