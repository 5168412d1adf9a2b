"""Arguments of timm's architectures for an image size, which have several names in timm."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError, in_short
from ..image_checks import Sides, image_sides
from ..tracing.copies import twin_of
from ..tracing.size_rules import nearest
from ..tracing.survey import shapes_of
from ..tracing.third_party_errors import ThirdPartyError, passed_on, third_party
from .measurement import images_for
from .timm_levels import declared_by, fits, input_size, intermediates

# Arguments with which transformers accept images of any size; timm's default is False.
ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True}
# Arguments of callers that prevent these.
OVERRIDES = ("dynamic_img_size", "strict_img_size")

Create = Callable[..., nn.Module]


def any_size(name: str, given: Mapping[str, Any], create: Create) -> dict[str, Any]:
    """Arguments with which timm's architecture accepts images of any size, and keeps its values at its own size.

    Args:
        name: name of the architecture.
        given: the caller's arguments.
        create: builds the architecture.

    Returns:
        Arguments to add to `given`; none if the architecture has no such arguments, or if `given` contains OVERRIDES.
    """
    from timm.models import model_entrypoint

    module = model_entrypoint(name.partition(".")[0]).__module__
    if not module.startswith("timm.") or any(argument in given for argument in OVERRIDES):
        return {}
    classes = [cls for cls in vars(sys.modules[module]).values() if isinstance(cls, type)]
    accepted = {name for cls in classes if hasattr(cls, "forward_intermediates") for name in parameters_of(cls)}
    added = {key: value for key, value in ANY_SIZE.items() if key in accepted and key not in given}
    own = given.get("img_size")
    if added and own is not None and _problem(name, {**given, **added}, create, image_sides(own, "img_size")):
        return {}  # an `img_size` that is not a multiple of the patch works alone only
    return added


def arguments_for(image_size: Sides, name: str, given: dict[str, Any], create: Create) -> dict[str, Any]:
    """Arguments, to add to `given`, with which timm's architecture accepts images of that size.

    Raises:
        ArgumentError: there are no such arguments. The message lists what was tried.
    """
    size = image_sides(image_size)
    if "img_size" in given:
        raise ArgumentError(f"image_size and img_size both say which images timm/{name} takes: pass image_size alone")
    arguments, problems = _first_working(name, given, create, size)
    if arguments is not None:
        return arguments
    default = _on_meta(name, given, create)
    _, *own = input_size(default)
    near = nearest(size, max(level.reduction for level in declared_by(default)))
    others = [other for other in (near, *((side, side) for side in near)) if other != size]
    accepted = (other for other in others if _first_working(name, given, create, other)[0] is not None)
    height, width = next(accepted, own)
    raise ArgumentError(
        f"timm/{name} cannot be built for images of {size[0]}x{size[1]} pixels:\n" + "\n".join(problems) + "\n"
        f"build it with image_size={(height, width)} and resize the images to {height}x{width}"
    )


def is_buildable(size: tuple[int, int], name: str, model: nn.Module) -> bool:
    """Whether the architecture `name` can be built for that size with the arguments that `model` was built with."""
    import timm

    def create(name: str, arguments: Mapping[str, Any]) -> nn.Module:
        return passed_on(timm.create_model, name, **arguments)

    given: dict[str, Any] = dict(getattr(model, "_model_args", {}))
    given = {key: value for key, value in given.items() if key not in ("img_size", *ANY_SIZE)}
    return _first_working(name, given, create, size)[0] is not None


def _first_working(
    name: str, given: Mapping[str, Any], create: Create, size: tuple[int, int]
) -> tuple[dict[str, Any] | None, list[str]]:
    """The first arguments with which the architecture accepts images of that size, or None, and problems of the others.

    The order is: none, `img_size`, ANY_SIZE, and `img_size` without ANY_SIZE.
    """
    dynamic = any_size(name, given, create)
    fixed = {"img_size": size} if "img_size" in parameters_of(type(_on_meta(name, given, create))) else {}
    unpadded = {key: value for key, value in dynamic.items() if key != "dynamic_img_pad"}
    # pairs of arguments to try and arguments to build with; unpadded fails for a size that is not divided by the patch
    trials = [({}, dynamic), ({**fixed, **unpadded}, {**fixed, **dynamic}), (dynamic, dynamic), (fixed, fixed)]
    # on the meta device, position tables accept sizes for which they are too short
    has_tables = fixed and not dynamic and _has_sized_parameters(name, given, create)
    problems = ["  as it is: its parameters are made for its own size"] if has_tables else []
    for trial, arguments in trials:
        text = ", ".join(f"{key}={value}" for key, value in trial.items())
        start = f"  with {text}: " if text else "  as it is: "
        if any(line.startswith(start) for line in problems):
            continue
        problem = _problem(name, {**given, **trial}, create, size)
        if not problem:
            return arguments, []
        problems.append(start + problem)
    return None, problems


def _has_sized_parameters(name: str, given: Mapping[str, Any], create: Create) -> bool:
    """Whether shapes of parameters depend on the image size."""
    _, height, width = input_size(_on_meta(name, given, create))
    larger = {"img_size": (2 * height, 2 * width)}
    try:
        plain, other = (third_party(_on_meta, name, {**given, **more}, create).state_dict() for more in ({}, larger))
    except ThirdPartyError:
        return True
    return {key: tensor.shape for key, tensor in plain.items()} != {key: t.shape for key, t in other.items()}


def parameters_of(cls: type) -> set[str]:
    """Names of the constructor's parameters, including those of base classes that receive its keyword arguments."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = signature(base.__init__).parameters.values()
            names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return names - {"self"}


def _on_meta(name: str, arguments: Mapping[str, Any], create: Create) -> nn.Module:
    with torch.device("meta"):
        return create(name, arguments)


def _problem(name: str, arguments: Mapping[str, Any], create: Create, size: tuple[int, int]) -> str:
    """Why the architecture with these arguments does not accept images of that size; "" if it does."""
    try:
        model = third_party(_on_meta, name, arguments, create)
    except ThirdPartyError as error:
        return in_short(error.original)
    levels, twin = declared_by(model), twin_of(model)
    read, images = partial(intermediates, levels=range(len(levels))), images_for(twin, input_size(model)[0], size)
    try:
        *_, shape = shapes_of(twin, read, images)
    except ThirdPartyError as error:
        needs_values = "meta tensors" in str(error)  # only a forward on another device can show a problem
        return "" if needs_values else in_short(error.original)
    if not fits(size, shape, levels[-1].reduction):
        return f"it resizes them, its maps are {shape[2:]}"
    return ""
