"""The table of named models: variants of the families, and creation functions that users register."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatch
from importlib import import_module
from inspect import signature
from pkgutil import iter_modules
from typing import Any, Generic, Self, TypeVar

from torch import nn

from . import models
from .backbone import Backbone
from .bridges import bridge_of
from .errors import ArgumentError, UnknownModelError
from .preprocessing import DataConfig

Config = TypeVar("Config")
Creation = Callable[..., nn.Module]
CreationT = TypeVar("CreationT", bound=Creation)


@dataclass(frozen=True, slots=True)
class Variant(Generic[Config]):
    """A backbone class and the configuration that makes it this variant.

    weights: tags of its published weights, the default first; `tag` is the Hub repository `timm/<name>.<tag>`.
    data: the preprocessing of the default weights.
    tags: the fields of `data` that other weights state otherwise, by their tag or, before that, by "name.tag": families
        share one table.
    """

    build: Callable[[Config], Backbone]
    config: Config
    weights: tuple[str, ...] = ()
    data: DataConfig = DataConfig()
    tags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def tagged(self, name: str, tag: str) -> Self:
        """The variant with the preprocessing of the weights of that tag. name: of the variant."""
        if not self.weights or tag == self.weights[0]:
            return self
        return replace(self, data=replace(self.data, **self.tags.get(f"{name}.{tag}", self.tags.get(tag, {}))))


_models: dict[str, Variant[Any] | Creation] = {}


def register(variants: Mapping[str, Variant[Any]]) -> None:
    """Add a family's variants; raises ArgumentError if a name is taken."""
    _add(variants)


def register_model(create: CreationT) -> CreationT:
    """Decorator: `create_model(<name of the function>)` calls it as `create(pretrained, **what the user gave)`.

    Raises ArgumentError if the name is taken.
    """
    _add({create.__name__: create})
    return create


def _add(entries: Mapping[str, Variant[Any] | Creation]) -> None:
    taken = sorted(entries.keys() & _models.keys())
    if taken:
        raise ArgumentError(f"already registered: {taken}; choose other names")
    _models.update(entries)


def list_models(pattern: str = "*", *, features_only: bool = False) -> list[str]:
    """Names of all models that match the shell-style `pattern`, sorted.

    A pattern such as "timm/*" lists another package's models; MissingPackageError if it is not installed.
    features_only: leave out models that cannot be asked for maps: users' creation functions that do not take
    `features_only`.
    """
    if (bridge := bridge_of(pattern)) is not None:
        package, theirs = bridge
        prefix = pattern.removesuffix(theirs)
        return sorted(prefix + name for name in package.names() if fnmatch(name, theirs))
    _load_families()
    names = (name for name, entry in _models.items() if not features_only or _gives_maps(entry))
    return sorted(name for name in names if fnmatch(name, pattern))


def lookup(name: str) -> Variant[Any] | Creation:
    """The entry of that name; UnknownModelError with the closest names if there is none."""
    _load_families()
    if name not in _models:
        close = get_close_matches(name, _models, n=5, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see featx.list_models()"
        raise UnknownModelError(f"no model is named {name!r}; {hint}")
    return _models[name]


def _gives_maps(entry: Variant[Any] | Creation) -> bool:
    if isinstance(entry, Variant):
        return True
    parameters = signature(entry).parameters.values()
    return any(p.name == "features_only" or p.kind is p.VAR_KEYWORD for p in parameters)


def _load_families() -> None:
    """Import every file of `featx.models` once, so that a family is registered by being there."""
    for module in iter_modules(models.__path__):
        if not module.ispkg:
            import_module(f"{models.__name__}.{module.name}")
