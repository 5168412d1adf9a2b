"""Load tensors into a model, all or none of them; a model on the meta device gets them without a copy."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ..arguments import require_strings
from ..backbone import Backbone
from ..bridge_registry import bridge_to
from ..errors import CheckpointError, names_in
from ..load_report import LoadReport
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import source_of
from ..wrappers.transparent import innermost
from .adapt import adapt_tensors
from .checkpoint import Checkpoint, LoadOptions, Weights, open_checkpoint
from .config_codec import same_value
from .key_groups import COUNTER, NATIVE
from .mismatch import all_finite, require_match
from .state_dict_keys import State, StateDict

# Classes of other packages with the state dict keys of one of our families, whose layouts they share.
SAME_NAMES = {"timm.models.vision_transformer.VisionTransformer": "ViT", "timm.models.eva.Eva": "RotaryViT"}


def load_weights(
    model: nn.Module,
    checkpoint: Weights,
    *,
    skip: tuple[str, ...] = (),
    auto_mapping: bool = True,
    layout: str | None = None,
    container: str | None = None,
    finite: bool = True,
    cache_dir: str | Path | None = None,
    mmap: bool | None = None,
) -> LoadReport:
    """Load a checkpoint into all parameters and buffers of `model` in place, and return a report.

    Tensors for a model of timm are converted by timm's own function of its architecture, as by `create_model`.

    Args:
        model: the model or feature extractor. An extractor loads the full model's checkpoint as well as its own.
        checkpoint: a file, a folder, a URL, "hf-hub:owner/repo[@revision]", or a state dict.
        skip: prefixes of names, e.g. ("fc.",). The model keeps its own values of these tensors.
        auto_mapping: recognize the naming of other programs; False accepts only the model's own names.
        layout: the program whose naming the checkpoint follows; recognized by default.
        container: the entry of a training checkpoint to load, such as "model_ema" or "teacher".
        finite: whether to reject values that are infinite or NaN in the dtype of the model.
        cache_dir: folder for downloads.
        mmap: memory-map the files instead of reading them into memory. The process crashes if a mapped file is
            truncated meanwhile. By default, only files in the Hub's cache are mapped.

    Returns:
        What was loaded, converted and skipped.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit the model. The message lists missing, unexpected
            and misshaped tensors, and nothing is loaded.
        WeightsNotFoundError: the weights were not found.
    """
    skip = tuple(require_strings(skip, "skip", str, "beginnings of names"))
    options = LoadOptions(auto_mapping=auto_mapping, layout=layout, container=container, cache_dir=cache_dir, mmap=mmap)
    bridge = bridge_to(innermost(source_of(model)))
    return (load if bridge is None else bridge.load)(model, checkpoint, options, skip=skip, finite=finite)


def load(
    model: nn.Module, weights: Weights, options: LoadOptions, *, skip: tuple[str, ...] = (), finite: bool = True
) -> LoadReport:
    """Load `weights` into a model of featx or of a user in place, as `load_weights` does."""
    opened = open_checkpoint(weights, full_keys(model), family_names(model), options)
    require_settings(getattr(source_of(model), "config", None), opened)
    tensors, report = fit_tensors(model, opened, skip=skip, finite=finite)
    model.load_state_dict(tensors, strict=False)  # skipped tensors are missing
    return report


def full_keys(model: nn.Module) -> frozenset[str]:
    """State dict keys of the full model, including those of the modules that an extractor left out."""
    return frozenset(model.state_dict()) | getattr(model, "_left_out", frozenset())


def family_names(model: nn.Module) -> tuple[str, ...]:
    """Class names of a model (or of the model in an extractor) and its bases, and our families with the same keys."""
    kinds = type(innermost(source_of(model))).__mro__
    same_names = (SAME_NAMES.get(f"{kind.__module__}.{kind.__qualname__}") for kind in kinds)
    return (*(kind.__name__ for kind in kinds), *(name for name in same_names if name))


def fit_tensors(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    skip: tuple[str, ...] = (),
    resized: tuple[str, ...] = (),
    finite: bool = True,
    grid: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[StateDict, LoadReport]:
    """The tensors to load, converted to the shapes of the model, and the report; the model is not changed.

    Args:
        model: the model or extractor that the tensors have to fit.
        checkpoint: tensors by the model's names.
        skip: prefixes of names that are not loaded.
        resized: prefixes of names that are not loaded if their shapes differ, such as the classifier's.
        finite: whether to reject values that are infinite or NaN in `dtype`.
        grid: rows and columns of the checkpoint's position embedding; None if unknown.
        dtype: floating-point type of the loaded model; by default the model's own.

    Raises:
        CheckpointError: tensors are missing, unexpected, misshaped, of another kind of dtype, or not finite.
    """
    wanted, unneeded = model.state_dict(), _unneeded(model, checkpoint.state)
    skipped = {**checkpoint.skipped, **dict.fromkeys(unneeded, "not needed for the levels asked for")}
    needed = {name: tensor for name, tensor in checkpoint.state.items() if name not in unneeded}
    tensors, changes = adapt_tensors(needed, wanted, source_of(model), grid)
    other_size = tuple(prefix for prefix in resized if _shapes(wanted, prefix) != _shapes(tensors, prefix))
    skipped |= {name: "skipped on request" for name in tensors if name.startswith(skip)}
    skipped |= {name: "of another size" for name in tensors if name.startswith(other_size)}
    skip += other_size
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(skip)}
    fresh = tuple(name for name in wanted if name.startswith(skip))
    to_load = {name: tensor for name, tensor in wanted.items() if name not in fresh}
    counters = _absent_counters(to_load, tensors)
    require_match(checkpoint.source, source_of(model), to_load, {**tensors, **counters}, finite=finite, dtype=dtype)
    layout, notes = (checkpoint.layout.system, checkpoint.layout.notes) if checkpoint.layout else (NATIVE, ())
    if checkpoint.prefix:
        notes += (f"names are without their prefix {checkpoint.prefix}",)
    if counters:
        notes += (f"{len(counters)} counters of batch norms ({COUNTER}) are not in the checkpoint: they are zero",)
    changes = {name: how for name, how in changes.items() if name in tensors}
    report = LoadReport(checkpoint.source, layout, tuple(tensors), changes, skipped, fresh, notes)
    return {**tensors, **counters}, report


def _absent_counters(wanted: State, tensors: StateDict) -> StateDict:
    """Zeros for the counters that a checkpoint lacks, as torch.nn.Module.load_state_dict sets them.

    PyTorch had no counters before 0.4.1, and frozen batch norms have none.
    """
    absent = (name for name in wanted if name.endswith(f".{COUNTER}") and name not in tensors)
    return {
        name: torch.zeros((), dtype=torch.long)
        for name in absent
        if f"{name.removesuffix(COUNTER)}running_var" in tensors
    }


def _unneeded(model: nn.Module, state: StateDict) -> list[str]:
    """Names of checkpoint tensors that belong to modules which an extractor left out, including the classifier."""
    left_out = getattr(model, "_left_out", None)
    if left_out is None:
        return []
    head = getattr(source_of(model), "last_linear", None)
    return [name for name in state if name in left_out or (head is not None and name.startswith(f"{head}."))]


def _shapes(state: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name.startswith(prefix)}


def move_model(model: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """Move a model to a device and a dtype in place; CheckpointError if finite values overflow in that dtype."""
    held = {} if dtype is None else {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    if lost := [name for name, tensor in held.items() if all_finite(tensor) and not all_finite(tensor, dtype)]:
        raise CheckpointError(
            f"{type(model).__name__} has values that overflow {dtype}, in {names_in(lost)}: choose another dtype"
        )
    model.to(device, dtype)


def require_settings(config: object, checkpoint: Checkpoint, unneeded: Collection[str] = ()) -> None:
    """Raise CheckpointError unless a configuration has the settings that the layout requires.

    Args:
        config: the model's configuration.
        checkpoint: the checkpoint, with its layout if it has one.
        unneeded: names of settings that do not matter.
    """
    stated = checkpoint.layout.settings if checkpoint.layout else {}
    asked = {name: value for name, value in stated.items() if name not in unneeded}
    wrong = {n: value for n, value in asked.items() if not same_value(getattr(config, n, None), value)}
    if wrong and checkpoint.layout:
        raise CheckpointError(
            f"{checkpoint.source} is in the layout of {checkpoint.layout.system}, whose numbers need {wrong}: let "
            "create_model(..., checkpoint_path=...) build the model, or pass these to it"
        )


def fill_model(
    model: Backbone | FeatureExtractWrapper,
    checkpoint: Checkpoint,
    *,
    resized: tuple[str, ...] = (),
    grid: tuple[int, int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Load a checkpoint into a model on the meta device in place, and set its `load_report`.

    `resized`, `grid` and `dtype` are passed to `fit_tensors`.
    """
    tensors, report = fit_tensors(model, checkpoint, resized=resized, grid=grid, dtype=dtype)
    assign_tensors(model, tensors, device=device, dtype=dtype, copy=checkpoint.borrowed)
    if report.fresh and isinstance(model, Backbone):
        initialize_head(model, device=device, dtype=dtype)
    cast(Backbone, source_of(model)).load_report = report


def assign_tensors(
    model: nn.Module,
    tensors: StateDict,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    copy: bool = False,
) -> None:
    """Make the tensors the model's parameters and buffers of the same names, in place. Parameters never share memory.

    Args:
        model: the model to change.
        tensors: tensors by name.
        device: the target device.
        dtype: type of the floating-point tensors; by default that of each parameter.
        copy: copy tensors that need no conversion, too, because the caller owns them.
    """
    wanted, used = model.state_dict(), set[int]()
    prepared: StateDict = {}
    for name, tensor in tensors.items():
        floating = tensor.is_floating_point()
        prepared[name] = tensor.to(device, (dtype if floating else None) or wanted[name].dtype).contiguous()
        shared = prepared[name].data_ptr() in used and prepared[name].numel() > 0
        if shared or (copy and prepared[name].data_ptr() == tensor.data_ptr()):
            prepared[name] = prepared[name].clone()
        used.add(prepared[name].data_ptr())
    model.load_state_dict(prepared, strict=False, assign=True)  # missing tensors are initialized by the caller


def initialize_head(
    model: Backbone, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> None:
    """Initialize a last linear layer on the meta device as the family does, in place."""
    head = model.get_submodule(model.last_linear).to_empty(device="cpu")
    for module in head.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
    model.initialize(head)
    head.to(device, dtype)
