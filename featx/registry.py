"""The registry of named models: variants of the families, and user-registered creation functions."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from importlib import import_module
from inspect import signature
from pkgutil import iter_modules
from typing import Any, Generic, Self, TypeVar

from torch import nn

from . import models
from .arguments import require_strings
from .backbone import Backbone
from .bridge_registry import bridge_of, bridged_packages, names_elsewhere
from .errors import ArgumentError, UnknownModelError
from .preprocessing import DataConfig
from .spelling import closest

Config = TypeVar("Config")
Creation = Callable[..., nn.Module]
CreationT = TypeVar("CreationT", bound=Creation)


@dataclass(frozen=True, slots=True)
class Variant(Generic[Config]):
    """A named variant: a backbone class and its configuration.

    Attributes:
        build: the backbone class.
        config: the configuration.
        weights: tags of the published weights, the default first. A tag is the Hub repository `timm/<name>.<tag>`.
        data: the preprocessing of the default weights.
        tags: fields of `data` in which other weights differ, by "name.tag" (which has precedence) or by tag. The
            variants of a family share one table.
    """

    build: Callable[[Config], Backbone]
    config: Config
    weights: tuple[str, ...] = ()
    data: DataConfig = DataConfig()
    tags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def tagged(self, name: str, tag: str) -> Self:
        """The variant called `name`, with the preprocessing of the weights with that tag."""
        if not self.weights or tag == self.weights[0]:
            return self
        return replace(self, data=replace(self.data, **self.tags.get(f"{name}.{tag}", self.tags.get(tag, {}))))


_models: dict[str, Variant[Any] | Creation] = {}


def register(variants: Mapping[str, Variant[Any]]) -> None:
    """Add a family's variants. ArgumentError if a name is already registered."""
    _add(variants)


def register_model(create: CreationT) -> CreationT:
    """Decorator that registers a creation function under its name.

    `create_model(name, pretrained, **kwargs)` then calls `create(pretrained, **kwargs)`.

    Args:
        create: the function.

    Returns:
        The function itself.

    Raises:
        ArgumentError: the name is already registered.
    """
    _add({create.__name__: create})
    return create


def _add(entries: Mapping[str, Variant[Any] | Creation]) -> None:
    taken = sorted(entries.keys() & _models.keys())
    if taken:
        raise ArgumentError(f"already registered: {taken}; choose other names")
    _models.update(entries)


def list_models(
    filter: str | Iterable[str] = "*",
    module: str | Iterable[str] = "",
    pretrained: bool = False,
    exclude_filters: str | Iterable[str] = "",
    name_matches_cfg: bool = False,
    include_tags: bool | None = None,
    *,
    features_only: bool = False,
) -> list[str]:
    """Sorted names of all models that match shell-style patterns. The arguments are those of timm's function.

    Args:
        filter: one or more patterns, of which a name must match at least one. A pattern without a dot matches names
            with any tag. A pattern such as "timm/*" lists another package's models.
        module: one or more files of `featx.models` that define the models' classes, such as "resnet" or "vit". timm's
            files of the same models ("vision_transformer", "byobnet") are accepted.
        pretrained: only models with published weights.
        exclude_filters: one or more patterns that a name must not match.
        name_matches_cfg: only models with their own preprocessing, which excludes user-registered functions.
        include_tags: list each model with every tag of its published weights; by default only with `pretrained`.
        features_only: only models that return maps, which excludes user-registered functions without a `features_only`
            argument.

    Raises:
        ArgumentError: a pattern is not a string.
        MissingPackageError: the package of a pattern is not installed.
    """
    wanted, unwanted = _patterns(filter, "filter") or ("*",), _patterns(exclude_filters, "exclude_filters")
    _load_families()
    modules = {file for name in _patterns(module, "module") for file in TIMM_MODULES.get(name, (name,))}
    tagged = pretrained if include_tags is None else include_tags
    rows = (
        name
        for model, entry in _models.items()
        if not modules or _module_of(entry) in modules
        if not features_only or _gives_maps(entry)
        if not name_matches_cfg or isinstance(entry, Variant)
        for name in _names(model, entry, pretrained, tagged)
    )
    names = [name for name in rows if _matches(name, wanted)] + [n for pattern in wanted for n in _bridged(pattern)]
    return sorted(name for name in {*names} if not _matches(name, unwanted))


# timm's files, and the files of `featx.models` that define the same models.
TIMM_MODULES = {
    "vision_transformer": ("vit",),
    "eva": ("vit_rotary",),
    "byobnet": ("repvgg", "mobilevit", "mobilevitv2"),
}


def _bridged(pattern: str) -> Iterable[str]:
    """Names of another package's models that match a pattern with the package's prefix."""
    if (bridge := bridge_of(pattern)) is None:
        return ()
    package, theirs = bridge
    prefix = pattern.removesuffix(theirs)
    return [prefix + name for name in package.names() if fnmatch(name, theirs)]


def _patterns(patterns: str | Iterable[str], argument: str) -> tuple[str, ...]:
    """The non-empty patterns of one or several. ArgumentError for other types."""
    several = [patterns] if isinstance(patterns, str) else require_strings(patterns, argument, what="patterns")
    return tuple(pattern for pattern in several if pattern)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of the patterns; a pattern without a tag is matched without the name's tag, too."""
    base = name.partition(".")[0]
    return any(fnmatch(name, pattern) or ("." not in pattern and fnmatch(base, pattern)) for pattern in patterns)


def _module_of(entry: Variant[Any] | Creation) -> str:
    build: Any = entry.build if isinstance(entry, Variant) else entry
    return build.__module__.rpartition(".")[2]


def _names(model: str, entry: Variant[Any] | Creation, pretrained: bool, tagged: bool) -> Iterable[str]:
    """A model's name, or its names with tags; empty if `pretrained` and it has no weights."""
    tags = entry.weights if isinstance(entry, Variant) else ()
    if pretrained and not tags:
        return ()
    return [f"{model}.{tag}" for tag in tags] if tagged and tags else [model]


def lookup(name: str) -> Variant[Any] | Creation:
    """The entry of that name. UnknownModelError, with the closest names, if there is none."""
    _load_families()
    if name not in _models:
        raise UnknownModelError(f"no model is named {name!r}; {suggestion(name)}")
    return _models[name]


def suggestion(name: str, otherwise: str = "see featx.list_models()") -> str:
    """Advice for an unknown name: similar names of featx's and other packages' models.

    For a path or a repository, the advice is how to write it.

    Args:
        name: the unknown name.
        otherwise: the advice if no name is similar.
    """
    if (bridge := bridge_of(name)) is not None:
        package, theirs = bridge
        prefix = name.removesuffix(theirs)
        close = closest(theirs, [prefix + known for known in package.names()])
        return f"did you mean {' or '.join(close)}?" if close else otherwise
    if "/" in name or os.path.isdir(name):
        return _address(name)
    _load_families()
    elsewhere = names_elsewhere()
    if exact := [known for known in elsewhere if known.partition("/")[2] == name.partition(".")[0]]:
        tag = name.removeprefix(name.partition(".")[0])
        return f"another package has it: ask for {' or '.join(known + tag for known in exact)}"
    others = [known for known in elsewhere if known.partition("/")[2] not in _models]
    close = closest(name, [*sorted(_models), *others])
    return f"did you mean {' or '.join(close)}?" if close else otherwise


def _address(name: str) -> str:
    """Advice on how to write the name of a folder or a repository."""
    if name.startswith((".", "~", "/")) or os.path.isdir(name):
        return f"for a folder, ask for 'local-dir:{name}'"
    package, _, rest = name.partition("/")
    packages = bridged_packages()
    if package.lower() in packages:
        return f"ask for {package.lower()}/{rest}"
    if similar := closest(package, packages, 1):
        return f"did you mean {similar[0]}/{rest}?"
    return (
        f"for a repository on the Hub, ask for transformers/{name}, or, if timm or featx wrote it, for hf-hub:{name}; "
        f"for a folder, for local-dir:{name}"
    )


def _gives_maps(entry: Variant[Any] | Creation) -> bool:
    if isinstance(entry, Variant):
        return True
    parameters = signature(entry).parameters.values()
    return any(p.name == "features_only" or p.kind is p.VAR_KEYWORD for p in parameters)


def _load_families() -> None:
    """Import every file of `featx.models` once; each registers its family on import."""
    for module in iter_modules(models.__path__):
        if not module.ispkg:
            import_module(f"{models.__name__}.{module.name}")
