"""Models of transformers whose cells lie elsewhere than the pixels do, as `featx.verify(model, values=True)` finds.

Hiera: its blocks take tokens in windows. HieraModel puts them in that order and HieraBackbone does not, although the
encoder of both puts maps back from it. MobileViTV2: a last row or column that fills no window of cells is lost.
RF-DETR: windows are cut with height and width swapped, which square images hide.
"""

from inspect import unwrap
from typing import Any

from torch import Tensor, nn

# What the output calls the maps of models whose hidden states are tokens in another order than row by row.
ENTRIES = {"hiera": "reshaped_hidden_states"}


class Windows:
    """A hook on Hiera's embeddings that puts tokens in the order that its encoder takes."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> tuple[Any, ...]:
        from transformers.models.hiera.modeling_hiera import unroll

        tokens, *others = output
        height, width = inputs[0].shape[-2:]
        schedule = [self.config.query_stride] * len(self.config.depths[:-1])
        return (unroll(tokens, (height, width), self.config.patch_stride, schedule), *others)


def put_in_place(tower: Any) -> tuple[str, ...]:
    """Correct a model in place whose cells lie elsewhere at every size; returns a sentence for each correction."""
    if type(tower).__name__ != "HieraBackbone" or "unroll" in unwrap(type(tower).forward).__code__.co_names:
        return ()
    tower.embeddings.register_forward_hook(Windows(tower.config))
    return ("HieraBackbone itself gives maps whose cells are scrambled, because it does not put tokens in windows",)


def size_divisor(config: Any) -> int:
    """What the sides of images must be multiples of, in pixels, because cells are lost otherwise."""
    return config.output_stride * config.patch_size if config.model_type == "mobilevitv2" else 1


def problem_with(config: Any, height: int, width: int) -> str:
    """Why cells of images of that size would lie elsewhere, and what to do; nothing if they do not."""
    divisor = size_divisor(config)
    if divisor > 1 and (height % divisor or width % divisor):
        return f"the last row or column of cells would be lost: choose sides that are multiples of {divisor}"
    if config.model_type == "rf_detr_dinov2" and config.num_windows > 1 and height != width:
        return "its windows would be cut with height and width swapped: choose square images, or num_windows=1"
    return ""
