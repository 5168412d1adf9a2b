"""Put tensors into a model, all of them or none; an empty model, one on the meta device, gets them without a copy."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ..arguments import require_texts
from ..backbone import Backbone
from ..errors import MOST_LISTED, CheckpointError, names_in, shortened
from ..report import LoadReport
from ..spelling import closest
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import source_of
from ..wrappers.transparent import innermost
from .adapt import adapted
from .checkpoint import NATIVE, Checkpoint, LoadOptions, Weights, open_checkpoint
from .state_dict_keys import StateDict
from .values import same

MOST_COMPARED = 100  # names of which the closest are found: each comparison costs

# Classes of other packages whose tensors are named as those of ours, so that the same layouts become theirs.
SAME_NAMES = {"timm.models.vision_transformer.VisionTransformer": "ViT"}


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
    """Fill every parameter and buffer of `model` in place, and say what was done.

    checkpoint: a file, a folder, an URL, "hf-hub:owner/repo[@revision]", or tensors by name. A feature extractor takes
        the full model's checkpoint as well as its own.
    skip: tensors whose names start with one of these, e.g. ("fc.",), stay as they are in the model.
    auto_mapping: recognise the names that other programs write; False takes the model's own names alone.
    layout: the program that named the tensors, where it should not be recognised.
    container: the entry of a training checkpoint to take, such as "model_ema" or "teacher".
    finite: False takes values, too, that are infinite or NaN in the type of the model.
    cache_dir: where downloads are kept.
    mmap: read files through mapped pages, which takes no memory of its own; a file that is cut off meanwhile ends the
        process. By default only files in the Hub's cache are read so.

    Nothing is loaded unless everything else fits: CheckpointError lists every missing, unexpected and misshaped tensor.
    WeightsNotFoundError if there is nothing at that place.
    """
    skip = tuple(require_texts(skip, "skip", str, "beginnings of names"))
    options = LoadOptions(auto_mapping=auto_mapping, layout=layout, container=container, cache_dir=cache_dir, mmap=mmap)
    return load(model, checkpoint, options, skip=skip, finite=finite)


def load(
    model: nn.Module, weights: Weights, options: LoadOptions, *, skip: tuple[str, ...] = (), finite: bool = True
) -> LoadReport:
    """Fill `model` in place; see `load_weights`."""
    opened = open_checkpoint(weights, names_of(model), families(model), options)
    _require_settings(model, opened)
    tensors, report = fitted(model, opened, skip=skip, finite=finite)
    model.load_state_dict(tensors, strict=False)  # what is skipped is missing
    return report


def names_of(model: nn.Module) -> frozenset[str]:
    """Names of the whole model's tensors, of which an extractor may hold a part."""
    return frozenset(model.state_dict()) | getattr(model, "_left_out", frozenset())


def families(model: nn.Module) -> tuple[str, ...]:
    """Names of the classes that a model, or the model inside an extractor, is of, and of ours with the same names."""
    kinds = type(innermost(source_of(model))).__mro__
    same_names = (SAME_NAMES.get(f"{kind.__module__}.{kind.__qualname__}") for kind in kinds)
    return (*(kind.__name__ for kind in kinds), *(name for name in same_names if name))


def fitted(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    skip: tuple[str, ...] = (),
    resized: tuple[str, ...] = (),
    finite: bool = True,
    grid: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[StateDict, LoadReport]:
    """The tensors for every place in the model, which is left alone, and what was done to them.

    resized: like `skip`, but only if their shapes differ. grid: rows and columns of the checkpoint's position
    embedding, where that is known. dtype: of floating values once they are in the model, by default the model's own.
    The rest, and the errors, as in `load_weights`.
    """
    wanted, unneeded = model.state_dict(), _unneeded(model, checkpoint.state)
    skipped = {**checkpoint.skipped, **dict.fromkeys(unneeded, "not needed for the levels asked for")}
    needed = {name: tensor for name, tensor in checkpoint.state.items() if name not in unneeded}
    given, changes = adapted(needed, wanted, source_of(model), grid)
    other_size = tuple(prefix for prefix in resized if _shapes(wanted, prefix) != _shapes(given, prefix))
    skipped |= {name: "skipped on request" for name in given if name.startswith(skip)}
    skipped |= {name: "of another size" for name in given if name.startswith(other_size)}
    skip += other_size
    given = {name: tensor for name, tensor in given.items() if not name.startswith(skip)}
    fresh = tuple(name for name in wanted if name.startswith(skip))
    problems = list(_problems({n: t for n, t in wanted.items() if n not in fresh}, given, finite, dtype))
    if problems:
        raise CheckpointError(
            f"{checkpoint.source} does not fit {type(model).__name__}; {len(problems)} tensors differ and none was "
            "loaded:\n" + "\n".join(_shown(problems))
        )
    layout, notes = (checkpoint.layout.system, checkpoint.layout.notes) if checkpoint.layout else (NATIVE, ())
    changes = {name: how for name, how in changes.items() if name in given}
    return given, LoadReport(checkpoint.source, layout, tuple(given), changes, skipped, fresh, notes)


def _unneeded(model: nn.Module, state: StateDict) -> list[str]:
    """Names of what an extractor has left out of its model, the classifier always among it."""
    left_out = getattr(model, "_left_out", None)
    if left_out is None:
        return []
    head = getattr(source_of(model), "last_linear", None)
    return [name for name in state if name in left_out or (head is not None and name.startswith(f"{head}."))]


def _shapes(state: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name.startswith(prefix)}


def _problems(wanted: Mapping[str, Tensor], given: StateDict, finite: bool, dtype: torch.dtype | None) -> Iterator[str]:
    missing, unexpected = wanted.keys() - given.keys(), given.keys() - wanted.keys()
    for i, name in enumerate(name for name in wanted if name in missing):
        hint = _closest(name, wanted, given, unexpected) if i < MOST_LISTED else ""
        yield f"missing    {name} {tuple(wanted[name].shape)}{hint}"
    for i, name in enumerate(name for name in given if name in unexpected):
        hint = _closest(name, given, wanted, missing) if i < MOST_LISTED else ""
        yield f"unexpected {name} {tuple(given[name].shape)}{hint}"
    for name in (name for name in wanted if name in given):
        there, here = given[name], wanted[name]
        if there.shape != here.shape:
            yield f"misshaped  {name}: {tuple(there.shape)}, the model needs {tuple(here.shape)}"
        elif there.is_floating_point() != here.is_floating_point() or there.is_complex():
            yield f"mistyped   {name}: {there.dtype}, the model needs {here.dtype}"
        elif there.is_meta:
            yield f"no values  {name}: it is on the meta device"
        elif finite and not all_finite(there, kind := dtype or here.dtype):
            what = f"values that {kind} has not" if all_finite(there) else "infinite values or NaN"
            yield f"not finite {name}: it holds {what}; load_weights(..., finite=False) takes them"


def _shown(problems: Sequence[str]) -> list[str]:
    """Lines with some of the problems of each kind, which the first eleven characters of a problem are."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem[:11], []).append(problem.removeprefix(problem[:11]))
    each = len(problems) if len(problems) <= MOST_LISTED else max(1, MOST_LISTED // len(kinds) - 1)
    return [f"  {kind}{line}" for kind, lines in kinds.items() for line in shortened(lines, each)]


def _closest(name: str, own: Mapping[str, Tensor], others: Mapping[str, Tensor], free: set[str]) -> str:
    """A hint at tensors of that shape with a similar name; nothing is ever matched by it."""
    alike = (other for other in free if others[other].shape == own[name].shape)
    close = closest(name, islice(alike, MOST_COMPARED), 2)
    return f" (similar: {', '.join(close)})" if close else ""


def all_finite(tensor: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether no value is infinite or NaN, in a floating type, by default the tensor's own."""
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    if dtype is not None and dtype.is_floating_point and torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:
        values = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # what has one byte cannot be compared
        return bool(torch.stack(values.aminmax()).to(dtype).float().isfinite().all())
    # one pass without a mask; values so large that only their sum overflows are looked at again
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def place(model: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """Move a model to a device and into a floating type, in place; CheckpointError if it has values that it has not."""
    held = {} if dtype is None else {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    if lost := [name for name, tensor in held.items() if all_finite(tensor) and not all_finite(tensor, dtype)]:
        raise CheckpointError(
            f"{type(model).__name__} has values that {dtype} has not, in {names_in(lost)}: choose another dtype"
        )
    model.to(device, dtype)


def _require_settings(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if the model was not built as the layout's program builds it."""
    config = getattr(source_of(model), "config", None)
    asked = checkpoint.layout.settings if checkpoint.layout else {}
    wrong = {n: value for n, value in asked.items() if not same(getattr(config, n, None), value)}
    if wrong and checkpoint.layout:
        raise CheckpointError(
            f"{checkpoint.source} is in the layout of {checkpoint.layout.system}, whose numbers need {wrong}: let "
            "create_model(..., checkpoint_path=...) build the model, or pass these to it"
        )


def fill(
    model: Backbone | FeatureExtractWrapper,
    checkpoint: Checkpoint,
    *,
    resized: tuple[str, ...] = (),
    grid: tuple[int, int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Give an empty model the tensors of a checkpoint, in place, and its `load_report`; see `fitted` for the rest."""
    tensors, report = fitted(model, checkpoint, resized=resized, grid=grid, dtype=dtype)
    assign(model, tensors, device=device, dtype=dtype, copy=checkpoint.borrowed)
    if report.fresh and isinstance(model, Backbone):
        initialise_head(model, device=device, dtype=dtype)
    cast(Backbone, source_of(model)).load_report = report


def assign(
    model: nn.Module,
    tensors: StateDict,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    copy: bool = False,
) -> None:
    """Make the tensors the parameters and buffers of that name, in place, on `device` and, if floating, in `dtype`.

    dtype: the model's own by default. copy: even tensors that need no change, because they belong to somebody else. Two
    parameters never share memory.
    """
    wanted, used = model.state_dict(), set[int]()
    own: StateDict = {}
    for name, tensor in tensors.items():
        floating = tensor.is_floating_point()
        own[name] = tensor.to(device, (dtype if floating else None) or wanted[name].dtype).contiguous()
        shared = own[name].data_ptr() in used and own[name].numel() > 0
        if shared or (copy and own[name].data_ptr() == tensor.data_ptr()):
            own[name] = own[name].clone()
        used.add(own[name].data_ptr())
    model.load_state_dict(own, strict=False, assign=True)  # what is missing is given its values next


def initialise_head(
    model: Backbone, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> None:
    """Give an empty last linear layer the family's random values, in place."""
    head = model.get_submodule(model.last_linear).to_empty(device="cpu")
    for module in head.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
    model.initialise(head)
    head.to(device, dtype)
