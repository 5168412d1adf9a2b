"""Proof on the meta device that a model runs its modules one after another, and other runs on meta tensors."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ContractError
from ..features import FeatureInfo
from .copies import structural_copy, without_values
from .meta_kernels import MetaKernels
from .third_party_errors import ThirdPartyError, third_party


class _DeepestReached(Exception):  # noqa: N818  (a signal, not an error)
    """Ends the model's forward at the deepest level."""


@torch.inference_mode(False)  # inference tensors have no version counter
def prove_order(
    model: nn.Module, steps: Sequence[str], levels: Sequence[FeatureInfo], images: Tensor | None = None
) -> frozenset[str]:
    """Prove that `model` runs `steps` in order, and return the levels whose map a later step overwrites in place.

    A copy of `model` runs on meta tensors, in training and in eval mode. Each step must be called once, in order, with
    the output of the step before as its only input.

    Args:
        model: the model.
        steps: paths of modules.
        levels: the levels, each of which is a step.
        images: on the meta device; by default `meta_images(model)`.

    Raises:
        ContractError: the model does something else; the message names the first module that differs.
    """
    images = meta_images(model) if images is None else images
    overwritten, taps = set[str](), {level.name for level in levels}
    for training in (model.training, not model.training):
        overwritten |= _prove_order(structural_copy(model, without_values).train(training), steps, taps, images)
    return frozenset(overwritten)


def _prove_order(model: nn.Module, steps: Sequence[str], taps: set[str], images: Tensor) -> set[str]:
    calls = _trace(model, steps, images)
    owner = type(model).__name__
    if len(calls) < len(steps):
        step, hint = steps[len(calls)], " (a forward that names the object is not copied: define it in the class)"
        raise ContractError(
            f"{owner} never calls {step!r}, which is registered on the way to a level{'' if calls else hint}"
        )
    for (step, inputs, _, _), (_, _, previous, _) in zip(calls[1:], calls[:-1], strict=True):
        if inputs[0] is not previous:
            raise ContractError(
                f"{owner} computes the input of {step!r} from something else than the output of the module before it: "
                "put what happens in between into a module, or return the maps yourself (is_rewritten = True)"
            )
    return {step for step, _, output, version in calls if step in taps and _version_of(output) != version}


Call = tuple[str, tuple[Any, ...], Any, int]


def _trace(model: nn.Module, steps: Sequence[str], images: Tensor) -> list[Call]:
    """(step, inputs, output, output's version) of every call of a step, in order. The hooks on `model` stay."""
    calls: list[Call] = []

    def before(step: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        owner = type(model).__name__
        if len(args) != 1 or kwargs:
            inputs = f"{len(args)} positional and {len(kwargs)} keyword inputs"
            raise ContractError(f"{owner} calls {step!r} with {inputs}; a chain passes one tensor on")
        if step in [done for done, *_ in calls]:
            raise ContractError(f"{owner} calls {step!r} twice: give each use a module of its own")
        if step != steps[len(calls)]:
            raise ContractError(
                f"{owner} calls {step!r} where {steps[len(calls)]!r} is registered: register modules in running order"
            )
        if not calls and args[0] is not images:
            raise ContractError(f"{owner} changes the images before {step!r}: put that into a first module")

    def after(step: str, args: tuple[Any, ...], output: Any) -> None:
        calls.append((step, args, output, _version_of(output)))
        if step == steps[-1]:
            raise _DeepestReached

    for step in steps:
        module = model.get_submodule(step)
        module.register_forward_pre_hook(lambda _, args, kw, step=step: before(step, args, kw), with_kwargs=True)
        module.register_forward_hook(lambda _, args, out, step=step: after(step, args, out))
    with suppress(_DeepestReached):
        _run(model, images)
    return calls


def _version_of(output: Any) -> int:
    """The number of in-place changes of a tensor; 0 for other objects."""
    return output._version if isinstance(output, Tensor) else 0


def run_on_meta(model: nn.Module, images: Tensor) -> Any:
    """The output of `model`, or of a copy on the meta device, for `images` on the meta device. Thread-safe."""
    has_values = any(not tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    return _run(structural_copy(model, without_values) if has_values else model, images)


def _run(twin: nn.Module, images: Tensor) -> Any:
    try:
        with torch.no_grad(), MetaKernels():
            return third_party(twin, images)
    except ThirdPartyError as error:
        raise ContractError(
            f"{type(twin).__name__} does not run on meta tensors of shape {tuple(images.shape)}, so that its maps "
            f"cannot be checked: {error}"
        ) from error


def meta_images(model: nn.Module, size: tuple[int, int] | None = None) -> Tensor:
    """Two images on the meta device, of the size and channels that `model` declares, or 224x224 pixels."""
    data = getattr(model, "data_config", None)
    height, width = size or (data.size if data is not None else (224, 224))
    return torch.empty(2, channels_of(model), height, width, device="meta")


def channels_of(model: nn.Module) -> int:
    """Channels of the images that `model` takes: as it declares, or those of its first convolution, or else 3."""
    convs = (module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    return getattr(model, "in_chans", None) or next(convs, 3)
