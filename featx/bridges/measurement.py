"""What runs of a model of another package show, and the images that they are on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..features import Levels
from ..preprocessing import DataConfig
from ..tracing.map_layout import Size


@dataclass(frozen=True, slots=True)
class Facts:
    """What runs of a whole model showed.

    size: of the images that the model is made for, (height, width).
    in_chans: channels of these images.
    fixed: whether it takes no other size.
    resizes: whether it takes others, but resizes them, so that no level has a reduction for them.
    divisor: what the sides of images must be multiples of; None is found out when it is asked for.
    on_meta: whether it runs without computing.
    data_config: how its weights expect images, None if it does not say.
    corrections: a sentence for each fact that its package declares otherwise.
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


@torch.inference_mode(False)  # whose tensors autograd cannot use
def images_for(model: nn.Module, in_chans: int, size: Sequence[int]) -> Tensor:
    """Two black images of that size (height, width), where the model is and as precise as its parameters."""
    return next(model.parameters()).detach().new_zeros(2, in_chans, *size)
