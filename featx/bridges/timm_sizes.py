"""Models of timm for images of another size: one argument for what timm's architectures call by several names."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import nn

from ..backbone import Sides, image_sides
from ..errors import ArgumentError
from ..wrappers.refusals import ThirdPartyError, third_party
from .timm_copies import tried, without_values
from .timm_levels import declared_by, fits

# What architectures call it to be built for a size, or to take several; the first that helps is taken.
SIZE = object()
WAYS = {"img_size": SIZE, "dynamic_img_size": True, "strict_img_size": False}


def arguments_for(
    image_size: Sides, name: str, given: dict[str, Any], create: Callable[..., nn.Module]
) -> dict[str, Any]:
    """Arguments with which timm's architecture `name` takes images of that size.

    Tried without values, none first. Raises ArgumentError if there are no such arguments.
    """
    size, ways = image_sides(image_size), {word: given[word] for word in WAYS if word in given}
    if ways:
        raise ArgumentError(f"image_size and {[*ways]} both say which images timm/{name} takes: pass image_size alone")
    plain = _on_meta(name, given, create)
    known = parameters_of(type(plain))
    refused = [f"  as it is: {_problem(plain, size)}"]
    if refused == ["  as it is: "]:
        return {}
    for word in [word for word in WAYS if word in known]:
        arguments = {word: size if WAYS[word] is SIZE else WAYS[word]}
        problem = _refusal(name, {**given, **arguments}, create, size)
        if not problem:
            return arguments
        refused.append(f"  with {word}={arguments[word]}: {problem}")
    height, width = size
    raise ArgumentError(
        f"timm/{name} cannot be built for images of {height}x{width} pixels:\n" + "\n".join(refused) + "\n"
        "resize the images to its own size, or choose sides that its patches and windows divide"
    )


def takes(model: Any, image_size: Sides) -> nn.Module:
    """The model, which now says that its images have that size."""
    model._traits = {**getattr(model, "_traits", {}), "img_size": image_sides(image_size)}  # where timm itself keeps it
    return model


def parameters_of(kind: type) -> set[str]:
    """Names of what the constructor takes, and those it passes arguments on to."""
    found: set[str] = set()
    for cls in kind.__mro__:
        if "__init__" in vars(cls):
            parameters = signature(cls.__init__).parameters.values()
            found |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return found - {"self"}


def _on_meta(name: str, given: dict[str, Any], create: Callable[..., nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return create(name, given)


def _refusal(name: str, given: dict[str, Any], create: Callable[..., nn.Module], size: tuple[int, int]) -> str:
    """Why the architecture cannot be built so for images of that size; nothing if it can."""
    try:
        model = third_party(_on_meta, name, given, create)
    except ThirdPartyError as error:
        return f"{type(error.original).__name__}: {error}"
    return _problem(model, size)


def _problem(model: nn.Module, size: tuple[int, int]) -> str:
    """Why the model takes no images of that size; nothing if it does."""
    levels, twin = declared_by(model), without_values(model)
    try:
        maps = tried(twin, size, range(len(levels)))
    except ThirdPartyError as error:
        undecided = "meta tensors" in str(error)  # an architecture that looks at values: only a real run can tell
        return "" if undecided else f"{type(error.original).__name__}: {error}"
    if not fits(size, maps[-1].shape, levels[-1].reduction):
        return f"it resizes them, its maps are {tuple(maps[-1].shape[2:])}"
    return ""
