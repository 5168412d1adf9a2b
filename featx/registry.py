"""The table of named models: variants of the families, and creation functions that users register."""

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
    """Names of all models that match the shell-style patterns, sorted; the arguments are those of timm's function.

    A pattern such as "timm/*" lists another package's models; MissingPackageError if it is not installed.

    Args:
        filter: a pattern or several, of which a name matches at least one. A pattern without a dot matches tags, too.
        module: the file of `featx.models` that defines the model's class, such as "resnet" or "vit", or several; timm's
            files of the same models ("vision_transformer", "byobnet") are understood.
        pretrained: leave out models without published weights.
        exclude_filters: a pattern or several, of which a name matches none.
        name_matches_cfg: leave out models without preprocessing of their own, as users' creation functions are.
        include_tags: list each model with every tag of its published weights; by default with `pretrained` alone.
        features_only: leave out models that cannot be asked for maps: users' creation functions that do not take
            `features_only`.
    """
    wanted, unwanted = _patterns(filter, "filter") or ("*",), _patterns(exclude_filters, "exclude_filters")
    _load_families()
    modules = {file for name in _patterns(module, "module") for file in TIMMS_MODULES.get(name, (name,))}
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


# Files of timm, and the files here that define the same models.
TIMMS_MODULES = {"vision_transformer": ("vit",), "byobnet": ("repvgg", "mobilevit", "mobilevitv2")}


def _bridged(pattern: str) -> Iterable[str]:
    """Names of another package's models that match the pattern, if it is one of such names."""
    if (bridge := bridge_of(pattern)) is None:
        return ()
    package, theirs = bridge
    prefix = pattern.removesuffix(theirs)
    return [prefix + name for name in package.names() if fnmatch(name, theirs)]


def _patterns(patterns: str | Iterable[str], argument: str) -> tuple[str, ...]:
    """The patterns that are not empty, of one or several; ArgumentError for what are none."""
    several = [patterns] if isinstance(patterns, str) else require_strings(patterns, argument, what="patterns")
    return tuple(pattern for pattern in several if pattern)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name, or where the pattern has no tag the name without its own, matches one of the patterns."""
    base = name.partition(".")[0]
    return any(fnmatch(name, pattern) or ("." not in pattern and fnmatch(base, pattern)) for pattern in patterns)


def _module_of(entry: Variant[Any] | Creation) -> str:
    made: Any = entry.build if isinstance(entry, Variant) else entry
    return made.__module__.rpartition(".")[2]


def _names(model: str, entry: Variant[Any] | Creation, pretrained: bool, tagged: bool) -> Iterable[str]:
    """The name of a model, or with its tags; nothing if it has no weights although they are asked for."""
    tags = entry.weights if isinstance(entry, Variant) else ()
    if pretrained and not tags:
        return ()
    return [f"{model}.{tag}" for tag in tags] if tagged and tags else [model]


def lookup(name: str) -> Variant[Any] | Creation:
    """The entry of that name; UnknownModelError with the closest names if there is none."""
    _load_families()
    if name not in _models:
        raise UnknownModelError(f"no model is named {name!r}; {suggestion(name)}")
    return _models[name]


def suggestion(name: str, otherwise: str = "see featx.list_models()") -> str:
    """What to ask for instead of a name that no model has: names like it, of featx's models and other packages'.

    A name that looks like a path or a repository is answered with the spelling of that, and one that is like none with
    what is to be said `otherwise`.
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
        return f"another package has it: ask for {' or '.join(found + tag for found in exact)}"
    others = [known for known in elsewhere if known.partition("/")[2] not in _models]
    close = closest(name, [*sorted(_models), *others])
    return f"did you mean {' or '.join(close)}?" if close else otherwise


def _address(name: str) -> str:
    """How to ask for a folder or a repository."""
    if name.startswith((".", "~", "/")) or os.path.isdir(name):
        return f"for a folder, ask for 'local-dir:{name}'"
    package, _, rest = name.partition("/")
    packages = bridged_packages()
    if package.lower() in packages:
        return f"ask for {package.lower()}/{rest}"
    if meant := closest(package, packages, 1):
        return f"did you mean {meant[0]}/{rest}?"
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
    """Import every file of `featx.models` once, so that a family is registered by being there."""
    for module in iter_modules(models.__path__):
        if not module.ispkg:
            import_module(f"{models.__name__}.{module.name}")
