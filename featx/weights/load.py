"""Put tensors into a model, all of them or none."""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from ..errors import CheckpointError
from .layout import recognise
from .names import tensors_of, unflattened, unwrapped
from .read import StateDict, read_checkpoint


def load_weights(
    model: nn.Module,
    checkpoint: str | Path | Mapping[str, Tensor],
    *,
    skip: tuple[str, ...] = (),
    resized: tuple[str, ...] = (),
    auto_mapping: bool = True,
) -> None:
    """Fill every parameter and buffer of `model` from a file or a dictionary of named tensors, in place.

    A feature extractor takes the full model's checkpoint as well as its own. Tensors whose names start with one of
    `skip`, e.g. ("fc.",), stay as they are in the model; so do those of `resized` if their shapes differ. Names that
    other programs write (see `layout`) are recognised unless `auto_mapping` is False. Nothing is loaded unless
    everything else fits: CheckpointError lists every missing, unexpected and misshaped tensor. WeightsNotFoundError if
    there is no such file.
    """
    read = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
    wanted = model.state_dict()
    left_out = getattr(model, "_left_out", frozenset())
    known = {*wanted, *left_out}
    given = tensors_of(read)
    if auto_mapping:
        given = to_native(given, known, families(model))
    skip += tuple(prefix for prefix in resized if _shapes(wanted, prefix) != _shapes(given, prefix))
    given = {name: tensor for name, tensor in given.items() if name not in left_out and not name.startswith(skip)}
    wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith(skip)}
    problems = list(_mismatches(wanted, given))
    if problems:
        source = "the checkpoint" if isinstance(checkpoint, Mapping) else checkpoint
        raise CheckpointError(
            f"{source} does not fit {type(model).__name__}; {len(problems)} tensors differ and none was loaded:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    model.load_state_dict(given, strict=False)  # what is skipped is missing


def families(model: nn.Module) -> tuple[str, ...]:
    """Names of the classes that a model, or the model inside an extractor, is of."""
    return tuple(cls.__name__ for cls in type(getattr(model, "_source", model)).__mro__)


def to_native(state: StateDict, wanted: Collection[str], families: Collection[str]) -> StateDict:
    """The tensors under the model's names, which `wanted` lists, from any layout that is recognised."""
    state = unwrapped(state, wanted)
    layout = recognise(state, families)
    if layout is None:
        return unflattened(state, wanted)
    kept = {name: tensor for name, tensor in state.items() if not any(re.match(p, name) for p in layout.ignores)}
    return layout.to_native(kept, wanted)


def _shapes(state: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name.startswith(prefix)}


def _mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    yield from (f"missing    {name} {tuple(wanted[name].shape)}" for name in wanted if name not in given)
    yield from (f"unexpected {name} {tuple(given[name].shape)}" for name in given if name not in wanted)
    for name in wanted.keys() & given.keys():
        if wanted[name].shape != given[name].shape:
            yield f"misshaped  {name}: {tuple(given[name].shape)}, the model needs {tuple(wanted[name].shape)}"
