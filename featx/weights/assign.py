"""Give an empty model, one on the meta device, its tensors without copying them."""

from typing import cast

import torch
from torch import nn

from ..backbone import Backbone
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import source_of
from .checkpoint import Checkpoint
from .load import fitted
from .state import StateDict


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
