"""What runs of a model of another package show: the shapes of its maps, and which of its modules make them."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..features import Levels
from ..preprocessing import DataConfig
from ..tracing.map_layout import Size
from ..tracing.meta_kernels import Shortcuts
from ..tracing.survey import Read
from ..tracing.third_party_errors import REFUSED

Shapes = list[tuple[int, ...]]
Maker = tuple[str, int]  # path of a module, position in what it returns
Traced = tuple[Tensor, list[Maker]]

# Steps of autograd's graph that move values and compute none.
MOVES = ("View", "UnsafeView", "Reshape", "Permute", "Transpose", "T", "Slice", "Select", "Clone", "Alias", "Expand")
MOVES += ("Squeeze", "Unsqueeze", "Split", "SplitWithSizes", "Unbind", "AsStrided", "Unflatten", "Narrow", "Chunk")


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


@torch.inference_mode(False)
@torch.no_grad()
def shapes_of(model: nn.Module, read: Read, images: Tensor) -> Shapes:
    """Of what `read` takes of the model; none if the model refuses the images."""
    try:
        with Shortcuts():
            return [tuple(tensor.shape) for tensor in read(model, images)]
    except REFUSED:
        return []


@torch.inference_mode(False)
@torch.enable_grad()
def traced(model: nn.Module, read: Read, images: Tensor, through: Container[str] = MOVES) -> list[Traced]:
    """What `read` takes of the copy of a model, and the modules whose output holds its values, the last to end first.

    through: steps of autograd's graph that may be between that output and the tensor. Hooks stay on the copy.
    """
    makers: dict[Any, list[Maker]] = {}

    def note(name: str, output: Any) -> None:
        for position, value in enumerate(output if isinstance(output, tuple | list) else (output,)):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                makers.setdefault(value.grad_fn, []).append((name, position))

    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
    with Shortcuts():
        tensors = read(model, images)
    return [(tensor, [*_makers_of(tensor, makers, through)]) for tensor in tensors]


def _makers_of(tensor: Tensor, makers: Mapping[Any, Sequence[Maker]], through: Container[str]) -> Iterator[Maker]:
    step = tensor.grad_fn
    while step is not None:
        yield from reversed(makers.get(step, ()))
        name = step.name().rstrip("0123456789").removesuffix("Backward")
        step = step.next_functions[0][0] if name in through else None
