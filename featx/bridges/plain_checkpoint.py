"""Load checkpoints into models of packages that do not convert checkpoints themselves."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..load_report import LoadReport
from ..weights import load as loading
from ..weights.checkpoint import LoadOptions, Weights


def load(
    _model: nn.Module, target: nn.Module, weights: Weights, options: LoadOptions, _given: Mapping[str, Any]
) -> LoadReport:
    """Load a checkpoint into `target`, a model or its extractor, in place, and return the report.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
        WeightsNotFoundError: the weights were not found.
    """
    return loading.load(target, weights, options)
