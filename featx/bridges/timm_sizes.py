"""Models of timm for images of another size: one argument for what timm's architectures call by several names."""

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

# With these, transformers that are written for images of one size take any; timm leaves them out by default.
ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True}
# Arguments by which a caller decides that.
DECIDES = ("dynamic_img_size", "strict_img_size")

Create = Callable[..., nn.Module]


def any_size(name: str, given: Mapping[str, Any], create: Create) -> dict[str, Any]:
    """Arguments with which timm's architecture `name` takes images of any size, at its own with the same values.

    None for an architecture that has no such arguments, or if those `given` decide it.
    """
    from timm.models import model_entrypoint

    module = model_entrypoint(name.partition(".")[0]).__module__
    if not module.startswith("timm.") or any(word in given for word in DECIDES):
        return {}
    kinds = [kind for kind in vars(sys.modules[module]).values() if isinstance(kind, type)]
    known = {word for kind in kinds if hasattr(kind, "forward_intermediates") for word in parameters_of(kind)}
    found = {word: value for word, value in ANY_SIZE.items() if word in known and word not in given}
    own = given.get("img_size")
    if found and own is not None and _refusal(name, {**given, **found}, create, image_sides(own, "img_size")):
        return {}  # built for a size that patches do not divide, it takes that one alone
    return found


def arguments_for(image_size: Sides, name: str, given: dict[str, Any], create: Create) -> dict[str, Any]:
    """Arguments with which timm's architecture `name` takes images of that size.

    Tried without values, none first. Raises ArgumentError if there are no such arguments.
    """
    size = image_sides(image_size)
    if "img_size" in given:
        raise ArgumentError(f"image_size and img_size both say which images timm/{name} takes: pass image_size alone")
    found, refused = _tried(name, given, create, size)
    if found is not None:
        return found
    plain = _on_meta(name, given, create)
    _, *own = input_size(plain)
    near = nearest(size, max(level.reduction for level in declared_by(plain)))
    others = [other for other in (near, *((side, side) for side in near)) if other != size]
    works = next((other for other in others if _tried(name, given, create, other)[0] is not None), tuple(own))
    raise ArgumentError(
        f"timm/{name} cannot be built for images of {size[0]}x{size[1]} pixels:\n" + "\n".join(refused) + "\n"
        f"build it with image_size={works} and resize the images to {works[0]}x{works[1]}"
    )


def buildable(size: tuple[int, int], name: str, model: nn.Module) -> bool:
    """Whether the architecture `name` can be built for that size with the arguments that `model` was built with."""
    import timm

    def create(name: str, given: Mapping[str, Any]) -> nn.Module:
        return passed_on(timm.create_model, name, **given)

    given: dict[str, Any] = dict(getattr(model, "_model_args", {}))
    given = {word: value for word, value in given.items() if word not in ("img_size", *ANY_SIZE)}
    return _tried(name, given, create, size)[0] is not None


def _tried(
    name: str, given: Mapping[str, Any], create: Create, size: tuple[int, int]
) -> tuple[dict[str, Any] | None, list[str]]:
    """The arguments that let the architecture take images of that size, None if none do, and why others do not."""
    free = any_size(name, given, create)
    built = {"img_size": size} if "img_size" in parameters_of(type(_on_meta(name, given, create))) else {}
    undivided = {word: value for word, value in free.items() if word != "dynamic_img_pad"}
    # what is tried, and what is then built: positions of their own for a size that the patches divide
    ways = [({}, free), ({**built, **undivided}, {**built, **free}), (free, free), (built, built)]
    own = built and not free and _holds_sizes(name, given, create)
    # tables of positions: without values, it would take sizes for which they are too short
    refused = ["  as it is: its parameters are made for its own size"] if own else []
    for tried_with, arguments in ways:
        words = ", ".join(f"{word}={value}" for word, value in tried_with.items())
        start = f"  with {words}: " if words else "  as it is: "
        if any(line.startswith(start) for line in refused):
            continue
        problem = _refusal(name, {**given, **tried_with}, create, size)
        if not problem:
            return arguments, []
        refused.append(start + problem)
    return None, refused


def _holds_sizes(name: str, given: Mapping[str, Any], create: Create) -> bool:
    """Whether shapes of parameters depend on the size that the architecture is built for."""
    _, height, width = input_size(_on_meta(name, given, create))
    larger = {"img_size": (2 * height, 2 * width)}
    try:
        plain, other = (third_party(_on_meta, name, {**given, **more}, create).state_dict() for more in ({}, larger))
    except ThirdPartyError:
        return True
    return {key: tensor.shape for key, tensor in plain.items()} != {key: t.shape for key, t in other.items()}


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


def _on_meta(name: str, given: Mapping[str, Any], create: Create) -> nn.Module:
    with torch.device("meta"):
        return create(name, given)


def _refusal(name: str, given: Mapping[str, Any], create: Create, size: tuple[int, int]) -> str:
    """Why the architecture cannot be built so for images of that size; nothing if it can."""
    try:
        model = third_party(_on_meta, name, given, create)
    except ThirdPartyError as error:
        return in_short(error.original)
    levels, twin = declared_by(model), twin_of(model)
    read, images = partial(intermediates, levels=range(len(levels))), images_for(twin, input_size(model)[0], size)
    try:
        *_, shape = shapes_of(twin, read, images)
    except ThirdPartyError as error:
        undecided = "meta tensors" in str(error)  # an architecture that looks at values: only a real run can tell
        return "" if undecided else in_short(error.original)
    if not fits(size, shape, levels[-1].reduction):
        return f"it resizes them, its maps are {shape[2:]}"
    return ""
