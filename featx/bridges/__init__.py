"""Models of other packages under the contract: `timm/…`, `torchvision/…` and `transformers/…`.

A bridge is a module here that is named after its package, which it imports when it is called, and has two functions:
`build`, a name to the package's own model, and `pyramid`, such a model to a source of maps.
"""

from importlib import import_module
from importlib.util import find_spec
from os import PathLike
from types import ModuleType

from torch import nn

from ..errors import ArgumentError, MissingPackageError

PACKAGES = ("timm", "torchvision", "transformers")
NAMED = ("timm", "torchvision")  # whose models have names of their own, beside the kinds that transformers lists


def bridge_of(name: str) -> tuple[ModuleType, str] | None:
    """The bridge of a name such as "timm/swin_tiny_patch4_window7_224", and the name there; None for our own names.

    Raises MissingPackageError if the package is not installed, and ArgumentError for a name that is no string.
    """
    if not isinstance(name, str):
        hint = f"for a folder, 'local-dir:{name}'" if isinstance(name, PathLike) else "such as 'resnet50'"
        raise ArgumentError(f"{name!r} is not the name of a model: expected a string, {hint}")
    package, slash, rest = name.partition("/")
    return (_bridge(package), rest) if slash and package in PACKAGES else None


def bridge_to(model: nn.Module) -> ModuleType | None:
    """The bridge for a model in hand, by the package its class is from; None if there is none."""
    packages = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    found = next((package for package in PACKAGES if package in packages), None)
    return _bridge(found) if found else None


def _bridge(package: str) -> ModuleType:
    try:
        import_module(package)
    except ImportError as error:
        raise MissingPackageError(f"models of {package} need the package: pip install 'featx[{package}]'") from error
    return import_module(f"{__name__}.{package}")


def names_elsewhere() -> list[str]:
    """The names, with their prefix, of all models of the installed packages whose models have names of their own."""
    installed = [package for package in NAMED if find_spec(package)]
    return [f"{package}/{name}" for package in installed for name in _bridge(package).names()]
