"""Compare a checkpoint's tensors with those of a model, and list the differences in an error."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from ..errors import MOST_LISTED, CheckpointMismatchError, shortened
from ..spelling import closest
from .mismatch_causes import Comparison, Difference, likely_cause
from .state_dict_keys import State

MOST_COMPARED = 100  # candidates for a spelling hint: comparing names is slow
EXAMPLES = {1: 3, 2: 3, 3: 2}  # listed tensors of each kind of difference, by the number of kinds


def require_match(
    source: str, model: nn.Module, wanted: State, tensors: State, *, finite: bool, dtype: torch.dtype | None
) -> None:
    """Raise CheckpointMismatchError unless `tensors` can be loaded as the model's tensors `wanted`.

    Args:
        source: the checkpoint, for the message.
        model: the model that was built, or the model in an extractor.
        wanted: the tensors to load.
        tensors: those of the checkpoint, by the model's names.
        finite: whether to reject values that are infinite or NaN in `dtype`.
        dtype: floating-point type of the loaded model; None for that of each tensor in `wanted`.
    """
    differences = list(_differences(wanted, tensors, finite, dtype))
    if not differences:
        return
    cause = likely_cause(Comparison(model, wanted, tensors, tuple(differences)))
    raise CheckpointMismatchError(
        f"{source} does not fit {type(model).__name__}; {len(differences)} tensors differ and none was loaded:\n"
        + "\n".join([*([f"  {cause}"] if cause else ()), *_examples(differences)]),
        {difference.name: (difference.kind, difference.description) for difference in differences},
    )


def _differences(wanted: State, tensors: State, finite: bool, dtype: torch.dtype | None) -> Iterator[Difference]:
    missing, unexpected = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    for kind, those, others, absent in (
        ("missing", wanted, tensors, missing),
        ("unexpected", tensors, wanted, unexpected),
    ):
        free = unexpected if kind == "missing" else missing
        for i, name in enumerate(name for name in those if name in absent):
            hint = _closest(name, those, others, free) if i < MOST_LISTED else ""
            yield Difference(kind, name, f"{tuple(those[name].shape)}{hint}")
    for name in (name for name in wanted if name in tensors):
        if (problem := _problem(wanted[name], tensors[name], finite, dtype)) is not None:
            yield Difference(problem[0], name, problem[1])


def _problem(wanted: Tensor, tensor: Tensor, finite: bool, dtype: torch.dtype | None) -> tuple[str, str] | None:
    """Kind and description of the difference between two tensors of one name; None if the tensor can be loaded."""
    if tensor.shape != wanted.shape:
        return "misshaped", f"{tuple(tensor.shape)}, the model needs {tuple(wanted.shape)}"
    if tensor.is_floating_point() != wanted.is_floating_point() or tensor.is_complex():
        return "mistyped", f"{tensor.dtype}, the model needs {wanted.dtype}"
    if tensor.is_meta:
        return "no values", "it is on the meta device"
    if finite and not all_finite(tensor, kind := dtype or wanted.dtype):
        what = f"values that overflow {kind}" if all_finite(tensor) else "infinite values or NaN"
        return "not finite", f"it holds {what}; load_weights(..., finite=False) takes them"
    return None


def _closest(name: str, tensors: State, others: State, free: set[str]) -> str:
    """A hint that lists tensors of the same shape with similar names; tensors are never matched by it."""
    same_shape = (other for other in free if others[other].shape == tensors[name].shape)
    close = closest(name, islice(same_shape, MOST_COMPARED), 2)
    return f" (similar: {', '.join(close)})" if close else ""


def _examples(differences: Sequence[Difference]) -> list[str]:
    """Lines with the first differences of each kind, so that the message has at most 12 lines."""
    kinds: dict[str, list[str]] = {}
    for kind, name, description in differences:
        colon = "" if kind in ("missing", "unexpected") else ":"
        kinds.setdefault(kind, []).append(f"{name}{colon} {description}")
    most = len(differences) if len(differences) <= MOST_LISTED else EXAMPLES.get(len(kinds), 1)
    return [f"  {kind:10} {line}" for kind, lines in kinds.items() for line in shortened(lines, most)]


def all_finite(tensor: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether all values are finite in a floating-point type, by default the tensor's own."""
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    if dtype is not None and dtype.is_floating_point and torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:
        values = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8 types have no comparison
        return bool(torch.stack(values.aminmax()).to(dtype).float().isfinite().all())
    # a sum needs no mask; if it overflows although all values are finite, the second check decides
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())
