"""The table of bridges: which package's names and models each one takes, and where its code is."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from os import PathLike
from types import ModuleType

from torch import nn

from .errors import ArgumentError, MissingPackageError


@dataclass(frozen=True, slots=True)
class Bridge:
    """A package whose models can be asked for as "package/name", or handed over.

    module: path of the module with the functions `build`, `pyramid` and `names`; it is imported when it is needed.
    has_own_names: whether its models have names of their own, beside the kinds that transformers lists.
    """

    package: str
    module: str
    has_own_names: bool = True

    def owns(self, kind: type) -> bool:
        """Whether a class is the package's."""
        return kind.__module__.partition(".")[0] == self.package

    def load(self) -> ModuleType:
        """The bridge's module; MissingPackageError if the package is not installed."""
        try:
            import_module(self.package)
        except ImportError as error:
            raise MissingPackageError(
                f"models of {self.package} need the package: pip install 'featx[{self.package}]'"
            ) from error
        return import_module(self.module)


_bridges: dict[str, Bridge] = {}


def register_bridge(bridge: Bridge) -> None:
    """Add a bridge; raises ArgumentError if there is one for its package."""
    if bridge.package in _bridges:
        raise ArgumentError(f"already registered: a bridge for {bridge.package}")
    _bridges[bridge.package] = bridge


def bridged_packages() -> tuple[str, ...]:
    """Names of the packages that have a bridge, which are the prefixes of names."""
    return tuple(_bridges)


def bridge_of(name: str) -> tuple[ModuleType, str] | None:
    """The bridge of a name such as "timm/swin_tiny_patch4_window7_224", and the name there; None for our own names.

    Raises MissingPackageError if the package is not installed, and ArgumentError for a name that is not a string.
    """
    if not isinstance(name, str):
        hint = f"for a folder, 'local-dir:{name}'" if isinstance(name, PathLike) else "such as 'resnet50'"
        raise ArgumentError(f"{name!r} is not the name of a model: expected a string, {hint}")
    package, slash, rest = name.partition("/")
    return (_bridges[package].load(), rest) if slash and package in _bridges else None


def bridge_named(package: str) -> ModuleType:
    """The bridge of a package; MissingPackageError if the package is not installed."""
    return _bridges[package].load()


def bridge_to(model: nn.Module) -> ModuleType | None:
    """The bridge for a model in hand, by the package its class is from; None if there is none."""
    kinds = type(model).__mro__
    found = next((bridge for bridge in _bridges.values() if any(map(bridge.owns, kinds))), None)
    return found.load() if found else None


def names_elsewhere() -> list[str]:
    """The names, with their prefix, of all models of the installed packages whose models have names of their own."""
    installed = [bridge for bridge in _bridges.values() if bridge.has_own_names and find_spec(bridge.package)]
    return [f"{bridge.package}/{name}" for bridge in installed for name in bridge.load().names()]
