"""Load checkpoints into timm's models: timm's own conversion of other programs' tensors, loaded as strictly as others.

timm converts a checkpoint by a function of its architecture, which also resamples position embeddings and patches to
the sizes of the model. A Flax file that no layout of featx describes is read by the model's own `load_pretrained`.
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from inspect import isfunction, signature
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ..load_report import LoadReport
from ..registry import Variant, list_models, lookup
from ..tracing.third_party_errors import ThirdPartyError, third_party
from ..weights.adapt import LARGEST_PATCH
from ..weights.checkpoint import Checkpoint, LoadOptions, Weights, open_checkpoint, read_tensors
from ..weights.key_groups import NATIVE
from ..weights.load import family_names, fit_tensors, full_keys, require_settings
from ..wrappers.extractor import source_of
from ..wrappers.transparent import innermost

Filter = Callable[..., Any]
FACTORY = "build_model_with_cfg"  # the function of timm that architectures pass their filter to
FLAX = ".npz"
# Arguments of timm that change activations, strides or padding, and settings that only concern resampled positions.
OWN_SETTINGS = {"act_layer", "block_fn", "mlp_layer", "norm_layer", "pad_type"}
RESAMPLING = {"antialias", "position_excess"}
LEFT_OUT = "left out or merged by timm's conversion"


@dataclass(frozen=True, slots=True)
class Conversion:
    """A checkpoint with the model's names, the change of each changed tensor, and whether timm renamed any."""

    checkpoint: Checkpoint
    changes: dict[str, str] = field(default_factory=dict)
    renamed: bool = False

    def misfits(self, wanted: Mapping[str, Tensor], known: frozenset[str]) -> int:
        """The number of tensors that are missing, unexpected or of another shape."""
        state = self.checkpoint.state
        fitting = [name for name, tensor in wanted.items() if name in state and state[name].shape == tensor.shape]
        return len(wanted) - len(fitting) + len(state.keys() - known)


def load(
    target: nn.Module,
    weights: Weights,
    options: LoadOptions,
    given: Collection[str] = (),
    model: nn.Module | None = None,
    *,
    skip: tuple[str, ...] = (),
    finite: bool = True,
) -> LoadReport:
    """Load a checkpoint into `target` in place, all of its tensors or none, and return the report.

    Args:
        target: timm's model, or its extractor.
        weights: the checkpoint.
        options: how to read it.
        given: the arguments that the caller has chosen; with `num_classes`, a classifier of another size is skipped.
        model: the whole model that an extractor was made from; built again on the meta device by default.
        skip: prefixes of names that are not loaded.
        finite: whether to reject values that are infinite or NaN in the dtype of the model.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
        WeightsNotFoundError: the weights were not found.
    """
    models = whole_models(target) if model is None else [model]
    known = full_keys(target)
    candidates = conversions(models, known, weights, options)
    wanted = {name: tensor for name, tensor in target.state_dict().items() if not name.startswith(skip)}
    best = next(candidates)
    while best.misfits(wanted, known) and (other := next(candidates, None)) is not None:
        best = min(best, other, key=lambda each: each.misfits(wanted, known))
    _require_settings(models[0], best.checkpoint)
    best = with_input_channels(models[0], best)
    heads = tuple(f"{name}." for name in names_at(models[0], "classifier")) if "num_classes" in given else ()
    tensors, report = fit_tensors(target, best.checkpoint, skip=skip, resized=heads, finite=finite)
    target.load_state_dict(tensors, strict=False)  # skipped tensors are missing
    changes = {name: how for name, how in best.changes.items() if name in tensors}
    layout = "timm" if best.renamed else report.layout
    return replace(report, adapted={**changes, **report.adapted}, layout=layout)


def _require_settings(model: Any, checkpoint: Checkpoint) -> None:
    """CheckpointError if the native variant of the architecture lacks settings that the checkpoint's layout requires.

    A model that was built with another activation, padding or block may have them, and is not checked.
    """
    name = architecture_of(model)
    changed = OWN_SETTINGS & getattr(model, "_model_args", {}).keys()
    if name in list_models() and not changed and isinstance(variant := lookup(name), Variant):
        require_settings(variant.config, checkpoint, RESAMPLING)


def whole_models(target: nn.Module) -> list[nn.Module]:
    """timm's model in `target` and, for an extractor, which holds only a part of it, a whole one on the meta device."""
    import timm

    model: Any = innermost(source_of(target))
    name = architecture_of(model)
    if model is target or not name:
        return [model]
    with torch.device("meta"):
        return [model, timm.create_model(name, **getattr(model, "_model_args", {}))]


def conversions(
    models: Sequence[nn.Module], known: frozenset[str], weights: Weights, options: LoadOptions
) -> Iterator[Conversion]:
    """The checkpoint converted by timm, by a layout of featx, and by the model's own reader of Flax files.

    Args:
        models: models whose filter to use, the most suitable first.
        known: names of the whole model's tensors.
        weights: the checkpoint.
        options: how to read it.
    """
    source, contents = read_tensors(weights, options)
    inner, families = replace(options, container=None), family_names(models[0])
    others = dict.fromkeys(contents.others, "not a tensor")

    def opened(families: tuple[str, ...]) -> Checkpoint:
        checkpoint = open_checkpoint(contents.state, known, families, inner)
        return replace(checkpoint, source=source, skipped={**others, **checkpoint.skipped})

    plain = opened(() if options.layout in (None, NATIVE) else families)
    if not options.auto_mapping:
        yield converted(models[0], plain) if plain.state.keys() <= known else Conversion(plain)
        return
    yield from (converted(model, plain) for model in models)
    if plain.prefix:
        whole = Checkpoint(contents.state, source, skipped=others)
        yield from (converted(model, whole) for model in models)
    described = opened(families)
    if described.layout is not None:
        yield from (converted(model, described) for model in models)
    if source.endswith(FLAX) and (tensors := read_by_timm(models[-1], source)) is not None:
        yield Conversion(Checkpoint(tensors, source), renamed=True)


def converted(model: nn.Module, checkpoint: Checkpoint) -> Conversion:
    """The checkpoint as timm's filter of the architecture returns it; unchanged if the filter does not accept it."""
    state = checkpoint.state
    patches = (tensor for name, tensor in state.items() if name.endswith("patch_embed.proj.weight"))
    if any(tensor.ndim == 4 and max(tensor.shape[2:]) > LARGEST_PATCH for tensor in patches):
        return Conversion(checkpoint)  # resampling needs memory proportional to the fourth power of the side
    try:
        function = filter_of(model)
        arguments = (dict(state), model)[: len(signature(function).parameters)]  # some take the tensors alone
        filtered = third_party(function, *arguments)
    except ThirdPartyError:  # loading then reports the names and shapes
        return Conversion(checkpoint)
    if not isinstance(filtered, dict) or not all(isinstance(tensor, Tensor) for tensor in filtered.values()):
        return Conversion(checkpoint)
    held, kept = {id(tensor) for tensor in state.values()}, {id(tensor) for tensor in filtered.values()}
    changes = {name: _change(state.get(name), tensor) for name, tensor in filtered.items() if id(tensor) not in held}
    gone = [name for name, tensor in state.items() if name not in filtered and id(tensor) not in kept]
    skipped = {**checkpoint.skipped, **dict.fromkeys(gone, LEFT_OUT)}
    renamed = not filtered.keys() <= state.keys()
    return Conversion(replace(checkpoint, state=filtered, skipped=skipped), changes, renamed)


def _change(before: Tensor | None, after: Tensor) -> str:
    if before is None or before.shape == after.shape:
        return "computed by timm's conversion"
    return f"{tuple(before.shape)} resampled to {tuple(after.shape)} by timm's conversion"


def filter_of(model: Any) -> Filter:
    """The function with which timm converts checkpoints of the model's architecture: (tensors, model) to tensors.

    The architecture's function passes it to FACTORY, and timm keeps no reference to it. Therefore, a copy of that
    function runs here in which FACTORY only records the filter.
    """
    from timm.models import model_entrypoint

    recorder = _Recorder()
    if name := architecture_of(model):
        with suppress(RecordedFilter):
            _bound_to(recorder, model_entrypoint(name))()
    return recorder.filter or _unchanged


def architecture_of(model: Any) -> str:
    """The name of the model's architecture; "" for a module that timm.create_model did not build."""
    from timm.models import is_model

    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or ""
    return name if is_model(name) else ""


class RecordedFilter(Exception):  # noqa: N818 (it is not an error)
    """Ends the call of an architecture's function."""


class _Recorder:
    """Takes the place of FACTORY and records the filter that it is called with."""

    filter: Filter | None = None

    def __call__(self, *_args: Any, pretrained_filter_fn: Filter | None = None, **_arguments: Any) -> Any:
        self.filter = pretrained_filter_fn
        raise RecordedFilter


def _bound_to(recorder: _Recorder, function: FunctionType) -> FunctionType:
    """A copy of a function, and of the functions of its module, with `recorder` in place of FACTORY.

    The copies do not print, as timm's filter of DINOv3 does for each block.
    """
    scope: dict[str, Any] = {**function.__globals__, FACTORY: recorder, "print": _silent}
    for name, value in function.__globals__.items():
        if isfunction(value) and FACTORY in value.__globals__ and name != FACTORY:
            own = value.__globals__ is function.__globals__
            scope[name] = _rescoped(value, scope if own else {**value.__globals__, FACTORY: recorder})
    return _rescoped(function, scope)


def _rescoped(function: FunctionType, scope: dict[str, Any]) -> FunctionType:
    copied = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def _silent(*_args: object) -> None:
    pass


def _unchanged(state: dict[str, Tensor], _model: nn.Module) -> dict[str, Tensor]:
    return state


def read_by_timm(model: Any, path: str) -> dict[str, Tensor] | None:
    """The tensors of a Flax file as the model's own `load_pretrained` reads them; None if it does not accept the file.

    They are loaded into a copy of the model without values, so that tensors that the file lacks are known.
    """
    if not hasattr(model, "load_pretrained"):
        return None
    copied = deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.fill_(torch.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # some of these methods leave the file open
        try:
            third_party(copied.load_pretrained, path)
        except ThirdPartyError:  # loading then reports the names and shapes
            return None
    return {name: tensor for name, tensor in copied.state_dict().items() if not tensor.isnan().any()}


def with_input_channels(model: nn.Module, conversion: Conversion) -> Conversion:
    """The conversion with the first convolutions for the input channels of the model, as timm adapts them."""
    from timm.models import adapt_input_conv

    state, changes, wanted = dict(conversion.checkpoint.state), dict(conversion.changes), model.state_dict()
    for name in (f"{conv}.weight" for conv in names_at(model, "first_conv")):
        if name not in wanted or name not in state or wanted[name].ndim != 4 or state[name].ndim != 4:
            continue
        (chs, channels, *kernel), (own_chs, own_channels, *own_kernel) = wanted[name].shape, state[name].shape
        if own_channels == 3 != channels and (chs, kernel) == (own_chs, own_kernel):
            state[name] = adapt_input_conv(channels, state[name])
            changes[name] = f"3 input channels converted to {channels} by timm's rule"
    return replace(conversion, checkpoint=replace(conversion.checkpoint, state=state), changes=changes)


def names_at(model: Any, entry: str) -> tuple[str, ...]:
    """The names of modules under an entry of `pretrained_cfg`, which has one, several or none."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get(entry) or ()
    return (names,) if isinstance(names, str) else tuple(names)
