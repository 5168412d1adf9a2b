"""Runs of a model without values, at two sizes and in both modes: what can be known of it without computing."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..arguments import wrong
from ..errors import ContractError, InputError
from .flow import Run, observe
from .order import meta_images
from .refusals import REFUSED

# Added to the sides of the images to see what grows with them, and how much: multiples of most patches and strides.
GROWTH = (672, 1344)

# Added to see what happens to sides that are multiples of nothing.
ODD = (71, 33)


@dataclass(frozen=True, slots=True)
class Survey:
    """Runs of one model: in eval mode on `images`, and if those run on larger and on odd ones, and in training mode.

    argument: the keyword argument under which the model takes images; None is its first positional one.
    """

    images: Tensor
    argument: str | None
    runs: tuple[Run, ...] = field(repr=False)

    @property
    def measured(self) -> list[Run]:
        """The first run, and the one on larger images if there is one: the same multiples of patches and strides."""
        return [run for run in self.runs if not run.training and run.images[2:] in (self._size(), self._size(GROWTH))]

    def _size(self, growth: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        height, width = (side + more for side, more in zip(self.images.shape[2:], growth, strict=True))
        return height, width

    def again(self, model: nn.Module) -> "Survey":
        """The same runs of another model; raises ThirdPartyError if that does not run."""
        runs = [observe(model, _like(self.images, run.images), self.argument, run.training) for run in self.runs]
        return Survey(self.images, self.argument, tuple(runs))


def survey(model: nn.Module, example: Tensor | None = None, argument: str | None = None) -> Survey:
    """Run copies of `model` on images as large as `example`; ContractError if it does not run.

    That is on the meta device, without values; if the model needs those, it runs on `example` itself, once.
    """
    if example is not None and (not isinstance(example, Tensor) or example.ndim != 4):
        what = f"shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"example: expected images (N, C, H, W), got {what}")
    if argument is not None and not isinstance(argument, str):
        raise wrong("argument", argument, "the name of a keyword argument of the model")
    images = meta_images(model) if example is None else torch.empty(2, *example.shape[1:], device="meta")
    images = images if example is None else images.to(example.dtype)
    try:
        first = observe(model, images, argument, training=False)
    except REFUSED as error:
        if example is None or example.is_meta:
            raise _does_not_run(model, images, error) from error
        return Survey(example, argument, (_computed(model, example, argument),))
    sizes = [[side + more for side, more in zip(images.shape[2:], growth, strict=True)] for growth in (GROWTH, ODD)]
    others = [*((_like(images, (*images.shape[:2], *size)), False) for size in sizes), (images, True)]
    runs = [run for batch, training in others if (run := _run_of(model, batch, argument, training))]
    return Survey(images, argument, (first, *runs))


def _computed(model: nn.Module, example: Tensor, argument: str | None) -> Run:
    try:
        return observe(model, example, argument, training=False)
    except REFUSED as error:
        raise _does_not_run(model, example, error) from error


def _run_of(model: nn.Module, images: Tensor, argument: str | None, training: bool) -> Run | None:
    """None if the model does not take these images or does not run in this mode, which is its right."""
    try:
        return observe(model, images, argument, training)
    except REFUSED:
        return None


def _like(images: Tensor, shape: Sequence[int]) -> Tensor:
    return images if tuple(shape) == tuple(images.shape) else images.new_empty(shape)


def _does_not_run(model: nn.Module, images: Tensor, error: Exception) -> ContractError:
    where = "meta tensors" if images.is_meta else "images"
    hint = "pass example=, images that it takes" if images.is_meta else "expected images that it takes"
    return ContractError(f"{type(model).__name__} does not run on {where} {tuple(images.shape)}: {error} ({hint})")
