"""What timm's own method returns for chosen levels, with values or without."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..tracing.meta_kernels import Shortcuts
from ..tracing.third_party_errors import third_party


def intermediates(model: Any, x: Tensor, levels: Sequence[int], **options: bool) -> list[Any]:
    """What timm's own method returns for `levels`, which ascend: maps (N, chs, h, w), not normalised.

    Raises ThirdPartyError if the model does not take the images.
    """
    options = {"norm": False, "stop_early": True, "intermediates_only": True, **options}
    return third_party(model.forward_intermediates, x, indices=list(levels), output_fmt="NCHW", **options)


def tried(model: nn.Module, size: Sequence[int], levels: Sequence[int]) -> list[Tensor]:
    """The maps of `levels`, which ascend, of one black image of that size (height, width)."""
    with Shortcuts():
        return intermediates(model, images_for(model, size), levels)


def images_for(model: nn.Module, size: Sequence[int]) -> Tensor:
    """One black image of that size (height, width), where the model is."""
    from timm.models import get_model_input_config

    parameter = next(model.parameters())
    channels = get_model_input_config(model)["input_size"][0]
    return torch.zeros(1, channels, *size, device=parameter.device, dtype=parameter.dtype)
