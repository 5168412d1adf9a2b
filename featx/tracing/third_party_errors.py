"""Calls of third-party code, such as models of users and other packages, whose exceptions become ThirdPartyError.

Exceptions of featx's own code stay what they are. Both run inside each other: a model calls back into featx's dispatch
modes, hooks and placeholders, which call PyTorch's operations for the model. The traceback tells them apart.
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

# Exceptions due to code or arguments; not those due to the machine (OSError, MemoryError) or the user (Ctrl-C).
CAUGHT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,  # a variable that only some branches set
    RuntimeError,
    StopIteration,  # next(module.parameters()) of a module without parameters
    TypeError,
    ValueError,
    PickleError,
    copy.Error,
)

# Packages whose exceptions belong to their callers.
NEUTRAL = {"torch", *sys.stdlib_module_names}
# Modules of featx that call a model's submodules. The exceptions of these submodules belong to the model.
HOSTS = (
    "featx.backbone",
    "featx.runtime.capture",
    "featx.sequence",
    "featx.wrappers.chain",
    "featx.wrappers.extractor",
    "featx.wrappers.rewritten",
)


class ThirdPartyError(Exception):
    """An exception of third-party code, with the text of the `original` exception."""

    def __init__(self, original: Exception) -> None:
        super().__init__(f"{original}" or type(original).__name__)
        self.original = original


# Exceptions of a trial run for which the model does not support the inputs.
REFUSED = (ThirdPartyError, ContractError, InputError)


def third_party(
    function: Callable[Parameters, Result], /, *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """Call a function of third-party code, and return its result.

    Raises:
        ThirdPartyError: third-party code raised an exception. Exceptions of featx's own code, in callbacks, are passed
            on.
    """
    try:
        return passed_on(function, *args, **kwargs)
    except FeatxError:
        raise
    except CAUGHT as error:
        if _is_ours(error):
            raise
        raise ThirdPartyError(error) from error


def passed_on(function: Callable[Parameters, Result], /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
    """Call a function whose exceptions count as third-party, and pass them on.

    This marks calls that featx makes on behalf of other code, such as the operation of a dispatch mode.
    """
    return function(*args, **kwargs)


def _is_ours(error: BaseException | None) -> bool:
    """Whether featx's code raised the exception, or one of its causes.

    The innermost frame that is not neutral decides. A function that featx calls directly counts as featx's, unless
    `passed_on` calls it, or it is a method of a model that a host calls.
    """
    while error is not None:
        ours, before = False, ""
        for frame, _ in walk_tb(error.__traceback__):
            module = _module_of(frame)
            if module.startswith("featx."):
                ours = frame.f_code is not passed_on.__code__
            elif _is_third_party(frame, module, before):
                ours = False
            before = module
        if ours:
            return True
        error = error.__cause__
    return False


def _is_third_party(frame: FrameType, module: str, caller: str) -> bool:
    """Whether third-party code starts at a frame of `module`, which code of the module `caller` called."""
    if caller in HOSTS:
        return _package(module) == "torch" or isinstance(_first_argument(frame), nn.Module)
    return _package(caller) == "torch" and _package(module) not in NEUTRAL


def _module_of(frame: FrameType) -> str:
    """The module of a frame's code; for an inherited method of an object of featx's, the module of its class."""
    module = frame.f_globals.get("__name__") or ""
    owner = type(_first_argument(frame)).__module__
    return owner if owner.startswith("featx.") and _package(module) not in NEUTRAL else module


def _first_argument(frame: FrameType) -> object:
    """The first argument of the frame's function."""
    first = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_varnames else None
    return first[0] if isinstance(first, tuple) and first else first


def _package(module: str) -> str:
    return module.partition(".")[0]


def drop_hooks(model: nn.Module, keep: tuple[type, ...] = ()) -> None:
    """Remove all forward hooks from the model, in place, except those of the classes `keep`.

    Exceptions are then the model's own, and not those of a user's hook.
    """
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not isinstance(hook, keep)]:
                del hooks[key]
