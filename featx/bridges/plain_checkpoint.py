"""Load checkpoints into models of packages that do not convert checkpoints themselves."""

from collections.abc import Collection
from dataclasses import replace

from torch import nn

from ..load_report import LoadReport
from ..weights import load as loading
from ..weights.checkpoint import LoadOptions, Weights, read_tensors
from ..weights.key_groups import NATIVE


def load(
    target: nn.Module,
    weights: Weights,
    options: LoadOptions,
    _given: Collection[str] = (),
    _model: nn.Module | None = None,
    *,
    skip: tuple[str, ...] = (),
    finite: bool = True,
) -> LoadReport:
    """Load a checkpoint into `target`, a model or its extractor, in place, and return the report.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
        WeightsNotFoundError: the weights were not found.
    """
    if options.layout is None and options.auto_mapping:
        _, contents = read_tensors(weights, options)
        # a class may have the name of a family of featx, whose layouts would rename its own tensors
        if set(target.state_dict()) <= contents.state.keys() <= loading.full_keys(target):
            options = replace(options, layout=NATIVE)
    return loading.load(target, weights, options, skip=skip, finite=finite)
