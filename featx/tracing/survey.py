"""Traces of one model on the meta device, at several image sizes and in both modes."""

import re
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
from .meta_kernels import MetaKernels
from .module_trace import ModuleTrace, trace_modules
from .third_party_errors import REFUSED, passed_on, third_party

# A function that runs a model on images and returns outputs, such as its forward, or the tensors that become maps.
Read = Callable[[Any, Tensor], Any]
Shapes = list[tuple[int, ...]]

# Pixels added to the sides of the images, to measure how outputs grow: multiples of most patches and strides.
GROWTH = (672, 1344)

# Pixels added for sides that are not multiples of patches and strides.
ODD = (71, 33)


@dataclass(frozen=True, slots=True)
class Survey:
    """Traces of one model.

    Attributes:
        images: the images of the first trace, which is in eval mode.
        argument: the model's keyword argument for images; None for its first positional argument.
        read: the traced function.
        traces: the traces.
    """

    images: Tensor
    argument: str | None
    read: Read = field(repr=False)
    traces: tuple[ModuleTrace, ...] = field(default=(), repr=False)

    @property
    def layout_traces(self) -> list[ModuleTrace]:
        """The traces to infer layouts from: the first one, and the one on images larger by GROWTH if there is one."""
        sizes = (self.images.shape, _enlarged(self.images, GROWTH).shape)
        return [trace for trace in self.traces if not trace.training and trace.images.shape in sizes]

    def twin(self, model: nn.Module) -> nn.Module:
        """A copy of a model to run, on the meta device if the images are, or else with buffers of its own."""
        return twin_of(model, without_values if self.images.is_meta else with_own_buffers)

    def repeated(self, twin: nn.Module, index: int) -> ModuleTrace:
        """The trace of another copy on the images and in the mode of a trace. ThirdPartyError if it does not run."""
        trace = self.traces[index]
        return trace_modules(twin, trace.images, self.read, trace.training)

    def with_first_trace(self, model: nn.Module) -> "Survey":
        """Add the trace of a copy of the model on `images`. ThirdPartyError if it does not run."""
        return replace(self, traces=(trace_modules(self.twin(model), self.images, self.read),))

    def with_variations(self) -> "Survey":
        """Add traces on larger images, on images with odd sides, and in training mode, if the model supports them."""
        batches = [(_enlarged(self.images, GROWTH), False), (_enlarged(self.images, ODD), False), (self.images, True)]
        traces = (self._trace(images, training) for images, training in batches)
        return replace(self, traces=(*self.traces, *filter(None, traces)))

    def with_larger_images(self) -> "Survey":
        """Add a trace on larger images, with odd sides if possible, if the model supports them."""
        larger = _enlarged(self.images, GROWTH)
        trace = self._trace(_enlarged(larger, ODD), False) or self._trace(larger, False)
        return replace(self, traces=(*self.traces, trace)) if trace else self

    def _trace(self, images: Tensor, training: bool) -> ModuleTrace | None:
        """The trace; None if the model does not support these images or this mode."""
        try:
            return trace_modules(self.traces[0].model, images, self.read, training)
        except REFUSED:
            return None


def call_model(model: nn.Module, images: Tensor, argument: str | None) -> Any:
    """The output of `model` for `images`, passed as the keyword argument or, for None, as the first positional one."""
    return passed_on(model, images) if argument is None else passed_on(model, **{argument: images})


def _call_on_device(model: nn.Module, images: Tensor, argument: str | None) -> Any:
    """The output of `model`; for images on the meta device, tensors that it creates are on the meta device too."""
    with images.device if images.is_meta else nullcontext():
        return third_party(call_model, model, images, argument)


def survey_model(model: nn.Module, example: Tensor | None = None, argument: str | None = None) -> Survey:
    """Trace copies of `model` on the meta device, on images of the size of `example`, on others, and in training mode.

    A model that does not run on the meta device is traced once, on `example` itself.

    Args:
        model: the model.
        example: images (N, C, H, W); by default of the size and channels that the model declares.
        argument: name of the keyword argument for images, if they are not the model's first argument.

    Raises:
        InputError: `example` is not a batch of images.
        ArgumentError: `argument` is not a string.
        ContractError: the model does not run.
    """
    if example is not None and (not isinstance(example, Tensor) or example.ndim != 4):
        what = f"shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"example: expected images (N, C, H, W), got {what}")
    if argument is not None and not isinstance(argument, str):
        raise wrong("argument", argument, "the name of a keyword argument of the model")
    images = meta_images(model) if example is None else torch.empty(2, *example.shape[1:], device="meta")
    images = images if example is None else images.to(example.dtype)
    try:
        return _first_trace(model, images, argument).with_variations()
    except ContractError:
        if example is None or example.is_meta:
            raise
        return _first_trace(model, example, argument)


def _first_trace(model: nn.Module, images: Tensor, argument: str | None) -> Survey:
    try:
        return Survey(images, argument, partial(_call_on_device, argument=argument)).with_first_trace(model)
    except REFUSED as error:
        where = "meta tensors" if images.is_meta else "images"
        hint = "pass example=, images that it accepts" if images.is_meta else "expected images that it accepts"
        if argument is None and re.search(r"missing \d+ required .*argument", f"{error}"):
            hint = "if images are not its first argument, pass argument=, the name of the one that takes them"
        raise ContractError(
            f"{type(model).__name__} does not run on {where} {tuple(images.shape)}: {error} ({hint})"
        ) from error


def _enlarged(images: Tensor, growth: tuple[int, int]) -> Tensor:
    height, width = (side + more for side, more in zip(images.shape[2:], growth, strict=True))
    return images.new_empty((*images.shape[:2], height, width))


@torch.inference_mode(False)
@torch.no_grad()
def shapes_of(twin: nn.Module, read: Read, images: Tensor) -> Shapes:
    """The shapes of the tensors that `read` returns for a copy of a model. ThirdPartyError if it does not run."""
    with MetaKernels():
        return [tuple(tensor.shape) for tensor in read(twin, images)]


def shapes_if_accepted(twin: nn.Module, read: Read, images: Tensor) -> Shapes:
    """The shapes of the tensors that `read` returns for a copy of a model; none if the model refuses the images."""
    try:
        return shapes_of(twin, read, images)
    except REFUSED:
        return []
