"""Measured levels and image sizes of another package's model, and the images for the measurement."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..features import Levels
from ..preprocessing import DataConfig
from ..tracing.map_layout import Size


@dataclass(frozen=True, slots=True)
class Measurement:
    """Levels and image sizes of a model, measured by running it.

    Attributes:
        levels: all levels.
        size: (height, width) in pixels of the images that the model is built for.
        in_chans: channels of the images.
        fixed: whether it accepts only this size.
        resizes: whether it resizes images of other sizes, so that levels have no reduction for them.
        divisor: pixels that the sides of images must be multiples of; None to measure it on first use.
        on_meta: whether it runs on the meta device.
        data_config: preprocessing that the weights expect; None if the model does not declare it.
        corrections: a sentence for each fact that the package declares differently.
    """

    levels: Levels
    size: Size
    in_chans: int
    fixed: bool
    resizes: bool = False
    divisor: int | None = 1
    on_meta: bool = True
    data_config: DataConfig | None = None
    corrections: tuple[str, ...] = ()


@torch.inference_mode(False)  # autograd cannot use inference tensors
def images_for(model: nn.Module, in_chans: int, size: Sequence[int]) -> Tensor:
    """Two images (2, in_chans, height, width) of zeros, with the device and dtype of the model's parameters."""
    return next(model.parameters()).detach().new_zeros(2, in_chans, *size)
