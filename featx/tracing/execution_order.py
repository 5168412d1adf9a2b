"""The proof that a model runs its modules one after another, without computing anything."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ContractError
from ..features import FeatureInfo
from .copies import structural_copy, without_values
from .meta_kernels import Shortcuts
from .third_party_errors import ThirdPartyError, third_party


class _Deepest(Exception):  # noqa: N818  (a signal, no error)
    """Ends the model's forward once the deepest level has been reached; what follows does not matter."""


@torch.inference_mode(False)  # where tensors count their changes
def prove_order(
    model: nn.Module, steps: Sequence[str], levels: Sequence[FeatureInfo], images: Tensor | None = None
) -> frozenset[str]:
    """Levels whose map a later module overwrites in place, if `steps` run in order are what `model` does.

    A copy of `model` is run on meta tensors, in training and in evaluation: each step must be called once, in order,
    with nothing but what the step before returned. `images` are on the meta device, by default as `model` states them.
    Raises ContractError naming the first module that breaks this.
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
    for (step, inputs, _, _), (_, _, before, _) in zip(calls[1:], calls[:-1], strict=True):
        if inputs[0] is not before:
            raise ContractError(
                f"{owner} computes the input of {step!r} from something else than the output of the module before it: "
                "put what happens in between into a module, or return the maps yourself (is_rewritten = True)"
            )
    return {step for step, _, output, version in calls if step in taps and _version_of(output) != version}


Call = tuple[str, tuple[Any, ...], Any, int]


def _trace(model: nn.Module, steps: Sequence[str], images: Tensor) -> list[Call]:
    """(step, inputs, output, output's version) of every call of a step, in order; `model` keeps the hooks."""
    calls: list[Call] = []

    def before(step: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        owner = type(model).__name__
        if len(args) != 1 or kwargs:
            given = f"{len(args)} positional and {len(kwargs)} keyword inputs"
            raise ContractError(f"{owner} calls {step!r} with {given}; a chain passes one tensor on")
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
            raise _Deepest

    for step in steps:
        module = model.get_submodule(step)
        module.register_forward_pre_hook(lambda _, args, kw, step=step: before(step, args, kw), with_kwargs=True)
        module.register_forward_hook(lambda _, args, out, step=step: after(step, args, out))
    with suppress(_Deepest):
        _run(model, images)
    return calls


def _version_of(output: Any) -> int:
    """Counts the changes in place of a tensor; 0 for anything else."""
    return output._version if isinstance(output, Tensor) else 0


def run_on_meta(model: nn.Module, images: Tensor) -> Any:
    """What `model` returns for `images` on the meta device.

    A copy without values runs, so that other threads may run `model`, unless the model has no values itself.
    """
    has_values = any(not tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    return _run(structural_copy(model, without_values) if has_values else model, images)


def _run(twin: nn.Module, images: Tensor) -> Any:
    try:
        with torch.no_grad(), Shortcuts():
            return third_party(twin, images)
    except ThirdPartyError as error:
        raise ContractError(
            f"{type(twin).__name__} does not run on meta tensors of shape {tuple(images.shape)}, so that its maps "
            f"cannot be checked: {error}"
        ) from error


def meta_images(model: nn.Module, size: tuple[int, int] | None = None) -> Tensor:
    """Two images without values, of the size and channels that `model` expects as far as it says so."""
    data = getattr(model, "data_config", None)
    height, width = size or (data.size if data is not None else (224, 224))
    return torch.empty(2, channels_of(model), height, width, device="meta")


def channels_of(model: nn.Module) -> int:
    """Channels of the images that `model` takes: as it says, or as its first convolution has them; 3 if it has none."""
    convs = (module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    return getattr(model, "in_chans", None) or next(convs, 3)
