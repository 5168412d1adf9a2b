"""Load checkpoints into models of packages that do not convert checkpoints themselves."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..load_report import LoadReport
from ..weights import load as loading
from ..weights.checkpoint import LoadOptions, Weights, read_tensors
from ..weights.key_groups import NATIVE


def load(
    model: nn.Module, target: nn.Module, weights: Weights, options: LoadOptions, _given: Mapping[str, Any]
) -> LoadReport:
    """Load a checkpoint into `target`, a model or its extractor, in place, and return the report.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
        WeightsNotFoundError: the weights were not found.
    """
    if options.layout is None and options.auto_mapping:
        _, contents = read_tensors(weights, options)
        # a class may have the name of a family of featx, whose layouts would rename its own tensors
        if set(target.state_dict()) <= contents.state.keys() <= set(model.state_dict()):
            options = replace(options, layout=NATIVE)
    return loading.load(target, weights, options)
