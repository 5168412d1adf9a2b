"""Calls of code that is not featx's: what that code raises becomes one error, and what featx's own code raises stays.

The two run inside each other: a model of another package calls back into featx's dispatch modes, hooks and
placeholders, and these call PyTorch's operations for the model. The traceback tells whose error it is.
"""

import copy
import sys
from collections.abc import Callable
from pickle import PickleError
from traceback import walk_tb
from types import FrameType
from typing import ParamSpec, TypeVar

from torch import nn

from ..errors import ContractError, FeatxError, InputError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# Every kind that is about what was passed, none that is about the machine (OSError, MemoryError) or the user (Ctrl-C).
KINDS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,  # a variable that only some of its paths set
    RuntimeError,
    StopIteration,  # of the parameters of a part that has none
    TypeError,
    ValueError,
    PickleError,
    copy.Error,
)

# Code that runs for whoever called it, and the modules of featx that run a model's parts: what these parts raise is
# the model's.
NEUTRAL = {"torch", *sys.stdlib_module_names}
HOSTS = (
    "featx.backbone",
    "featx.runtime.capture",
    "featx.sequence",
    "featx.wrappers.chain",
    "featx.wrappers.extractor",
    "featx.wrappers.rewritten",
)


class ThirdPartyError(Exception):
    """What code that is not featx's raised; its text is that of the `original` error."""

    def __init__(self, original: Exception) -> None:
        super().__init__(f"{original}" or type(original).__name__)
        self.original = original


# How a trial run of a model ends that does not run so: the model's own code fails, or featx says why it cannot be.
REFUSED = (ThirdPartyError, ContractError, InputError)


def third_party(
    function: Callable[Parameters, Result], /, *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """What the function returns; ThirdPartyError for what code that is not featx's raises in it.

    Errors of featx's own code, in callbacks from within the function, are not caught, FeatxError among them.
    """
    try:
        return passed_on(function, *args, **kwargs)
    except FeatxError:
        raise
    except KINDS as error:
        if _is_ours(error):
            raise
        raise ThirdPartyError(error) from error


def passed_on(function: Callable[Parameters, Result], /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
    """What the function returns, whose errors are not featx's: they are raised as they are.

    For what featx calls in the place of other code, such as an operation that a dispatch mode was asked for.
    """
    return function(*args, **kwargs)


def _is_ours(error: BaseException | None) -> bool:
    """Whether featx's code raised the error, or one that caused it.

    The innermost code decides that is not neutral. What featx calls directly counts as featx's own, unless
    `passed_on` calls it, or it is a method of a model that a host runs.
    """
    while error is not None:
        ours, before = False, ""
        for frame, _ in walk_tb(error.__traceback__):
            module = _module_of(frame)
            if module.startswith("featx."):
                ours = frame.f_code is not passed_on.__code__
            elif _begins(frame, module, before):
                ours = False
            before = module
        if ours:
            return True
        error = error.__cause__
    return False


def _begins(frame: FrameType, module: str, before: str) -> bool:
    """Whether other code begins at a frame of `module`, which code of the module `before` called."""
    if before in HOSTS:
        return _package(module) == "torch" or isinstance(_first(frame), nn.Module)
    return _package(before) == "torch" and _package(module) not in NEUTRAL


def _module_of(frame: FrameType) -> str:
    """The module of a frame's code: of the object, where the code is a method of one of featx's."""
    module = frame.f_globals.get("__name__") or ""
    owner = type(_first(frame)).__module__
    return owner if owner.startswith("featx.") and _package(module) not in NEUTRAL else module


def _first(frame: FrameType) -> object:
    """The first argument of the function that runs in the frame."""
    first = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_varnames else None
    return first[0] if isinstance(first, tuple) and first else first


def _package(module: str) -> str:
    return module.partition(".")[0]


def drop_hooks(model: nn.Module, keep: tuple[type, ...] = ()) -> None:
    """Take every hook on a forward out of the model, in place, but those of the classes to keep.

    What the model then raises is its own, and not what a user's hook does.
    """
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not isinstance(hook, keep)]:
                del hooks[key]
