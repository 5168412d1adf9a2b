"""Forwards of one model without values, at several sizes of images and in both modes."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import wrong
from ..errors import ContractError, InputError
from .copies import twin_of, with_own_buffers, without_values
from .execution_order import meta_images
from .meta_kernels import Shortcuts
from .module_trace import ModuleTrace, trace_modules
from .third_party_errors import REFUSED, passed_on, third_party

# What is asked of a model for images, such as its forward, or the tensors that become maps.
Read = Callable[[Any, Tensor], Any]
Shapes = list[tuple[int, ...]]

# Added to the sides of the images to see what grows with them, and how much: multiples of most patches and strides.
GROWTH = (672, 1344)

# Added to see what happens to sides that are multiples of nothing.
ODD = (71, 33)


@dataclass(frozen=True, slots=True)
class Survey:
    """Runs of one model, of which the first is on `images` in eval mode.

    argument: the keyword argument under which the model takes images; None is its first positional one.
    """

    images: Tensor
    argument: str | None
    read: Read = field(repr=False)
    runs: tuple[ModuleTrace, ...] = field(default=(), repr=False)

    @property
    def measured(self) -> list[ModuleTrace]:
        """The first run, and the one on larger images if there is one: the same multiples of patches and strides."""
        sizes = (self.images.shape, _grown(self.images, GROWTH).shape)
        return [run for run in self.runs if not run.training and run.images.shape in sizes]

    def twin(self, model: nn.Module) -> nn.Module:
        """A copy of a model to run: without values if the images have none, and else with buffers of its own."""
        return twin_of(model, without_values if self.images.is_meta else with_own_buffers)

    def again(self, twin: nn.Module, place: int) -> ModuleTrace:
        """The run at that place of another copy; raises ThirdPartyError if that does not run."""
        run = self.runs[place]
        return trace_modules(twin, run.images, self.read, run.training)

    def begun(self, model: nn.Module) -> "Survey":
        """With a run of a copy of the model on `images`; raises ThirdPartyError if it does not run."""
        return replace(self, runs=(trace_modules(self.twin(model), self.images, self.read),))

    def widened(self) -> "Survey":
        """With runs on larger and on odd images, and in training mode, as far as the model does such."""
        batches = [(_grown(self.images, GROWTH), False), (_grown(self.images, ODD), False), (self.images, True)]
        return replace(self, runs=(*self.runs, *(run for images, mode in batches if (run := self._try(images, mode)))))

    def enlarged(self) -> "Survey":
        """With a run on larger images, as far as the model takes such, odd ones if it does."""
        larger = _grown(self.images, GROWTH)
        run = self._try(_grown(larger, ODD), False) or self._try(larger, False)
        return replace(self, runs=(*self.runs, run)) if run else self

    def _try(self, images: Tensor, training: bool) -> ModuleTrace | None:
        """None if the model does not take these images or does not run in this mode, which is its right."""
        try:
            return trace_modules(self.runs[0].model, images, self.read, training)
        except REFUSED:
            return None


def call(model: nn.Module, images: Tensor, argument: str | None) -> Any:
    """What `model` returns for `images`, passed as that keyword argument, or as the first positional one."""
    return passed_on(model, images) if argument is None else passed_on(model, **{argument: images})


def _called(model: nn.Module, images: Tensor, argument: str | None) -> Any:
    """What `call` returns; tensors that the model makes without saying where have no values if the images have none."""
    with images.device if images.is_meta else nullcontext():
        return third_party(call, model, images, argument)


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
        return _first(model, images, argument).widened()
    except ContractError:
        if example is None or example.is_meta:
            raise
        return _first(model, example, argument)


def _first(model: nn.Module, images: Tensor, argument: str | None) -> Survey:
    try:
        return Survey(images, argument, partial(_called, argument=argument)).begun(model)
    except REFUSED as error:
        where = "meta tensors" if images.is_meta else "images"
        hint = "pass example=, images that it takes" if images.is_meta else "expected images that it takes"
        raise ContractError(
            f"{type(model).__name__} does not run on {where} {tuple(images.shape)}: {error} ({hint})"
        ) from error


def _grown(images: Tensor, growth: tuple[int, int]) -> Tensor:
    height, width = (side + more for side, more in zip(images.shape[2:], growth, strict=True))
    return images.new_empty((*images.shape[:2], height, width))


@torch.inference_mode(False)
@torch.no_grad()
def shapes_of(twin: nn.Module, read: Read, images: Tensor) -> Shapes:
    """Of the tensors that `read` takes of a copy of a model; raises ThirdPartyError if it does not run."""
    with Shortcuts():
        return [tuple(tensor.shape) for tensor in read(twin, images)]


def shapes_if_taken(twin: nn.Module, read: Read, images: Tensor) -> Shapes:
    """What `shapes_of` returns; none if the model refuses the images."""
    try:
        return shapes_of(twin, read, images)
    except REFUSED:
        return []
