"""Inspect checkpoints, and convert them from one layout to another."""

from collections import Counter
from dataclasses import dataclass

from ..backbone import Backbone
from ..errors import ArgumentError, CheckpointError
from ..load_report import LoadReport
from ..meta_init import init_empty_weights
from ..registry import Variant, lookup
from .checkpoint import LoadOptions, Weights, open_checkpoint, read_tensors
from .key_groups import NATIVE, recognized_layouts
from .layout import all_layouts, find_layout
from .load import family_names, fit_tensors, full_keys
from .mismatch import all_finite
from .state_dict_keys import StateDict

NATIVE_NAMES = (NATIVE, "timm")  # native names are those of timm


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """Contents of a checkpoint.

    systems: the recognized program by family, or "a or b" if names do not tell; empty for native names.
    """

    tensors: int
    values: int
    nbytes: int
    dtypes: dict[str, int]
    not_finite: tuple[str, ...]
    systems: dict[str, str]
    first: tuple[str, ...]


def inspect(weights: Weights, container: str | None = None) -> CheckpointSummary:
    """Summarize a checkpoint without a model. Raises the errors of `load_weights`."""
    state = read_tensors(weights, LoadOptions(container=container))[1].state
    systems: dict[str, str] = {}
    for family, system in dict.fromkeys((layout.family, layout.system) for layout in recognized_layouts(state)):
        systems[family] = f"{systems[family]} or {system}" if family in systems else system
    return CheckpointSummary(
        len(state),
        sum(tensor.numel() for tensor in state.values()),
        sum(tensor.nbytes for tensor in state.values()),
        dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())),
        tuple(name for name, tensor in state.items() if not all_finite(tensor)),
        systems,
        tuple(state)[:5],
    )


def dry_run(weights: Weights, name: str, options: LoadOptions) -> LoadReport:
    """The report of loading a checkpoint into the model `name`; nothing is kept. Raises the errors of `load_weights`.

    A classifier of another size is reported as skipped.
    """
    model = _empty(name)
    opened = open_checkpoint(weights, full_keys(model), family_names(model), options)
    return fit_tensors(model, opened, resized=(f"{model.last_linear}.",))[1]


def convert(weights: Weights, name: str, to: str, options: LoadOptions) -> StateDict:
    """All tensors of a checkpoint of the model `name`, converted to the layout of the program `to`.

    Raises:
        CheckpointError: the checkpoint does not fit the model, or conversion to that layout is not supported.
    """
    model = _empty(name)
    opened = open_checkpoint(weights, full_keys(model), family_names(model), options)
    classifier = f"{model.last_linear}."
    state, _ = fit_tensors(model, opened, resized=(classifier,), finite=False)
    state |= {name: tensor for name, tensor in opened.state.items() if name.startswith(classifier)}
    if to in NATIVE_NAMES:
        return state
    converters = [
        layout.from_native for layout in all_layouts() if layout.system == to and layout.family in family_names(model)
    ]
    from_native = next((converter for converter in converters if converter is not None), None)
    if from_native is None:
        find_layout(to, family_names(model), state)  # its error lists the known programs
        raise CheckpointError(f"conversion of {name} to the layout of {to} is not supported")
    return from_native(state)


def _empty(name: str) -> Backbone:
    variant = lookup(name)
    if not isinstance(variant, Variant):
        raise ArgumentError(f"{name} is a user's model: only the families of featx are known in other layouts")
    with init_empty_weights():
        return variant.build(variant.config)
