"""The likely cause of the differences between a checkpoint and a model, in one sentence with what to do."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, NamedTuple, cast

from torch import nn

from ..backbone import Backbone
from ..errors import names_in
from ..meta_init import init_empty_weights
from ..registry import Variant, list_models, lookup
from .key_groups import COUNTER
from .layout import all_layouts
from .state_dict_keys import State

MOST_NAMED = 3  # variants or families in a message
SIMILAR = 0.5  # share of common names of two models of one family
# Parts of names that only these frameworks write.
FRAMEWORKS = {
    r"(?:^|[/.])(?:moving_(?:mean|variance)|depthwise_kernel)(?::0)?$": "TensorFlow, Keras or MindSpore",
    r"(?:^|[/.])kernel(?::0)?$": "Flax, TensorFlow or Keras",
}


class Difference(NamedTuple):
    """A tensor that does not fit. kind: "missing", "unexpected", "misshaped", "mistyped", "no values", "not finite"."""

    kind: str
    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model, its tensors `wanted`, those of a checkpoint by the model's names, and the differences."""

    model: nn.Module
    wanted: State
    tensors: State
    differences: tuple[Difference, ...]


def likely_cause(compared: Comparison) -> str | None:
    """A sentence on the cause of the differences and on what to do; None if no known cause explains them."""
    return next(filter(None, (find(compared) for find in CAUSES)), None)


def _classifier(compared: Comparison) -> str | None:
    """The cause if only the classifier differs."""
    head = getattr(compared.model, "last_linear", None)
    if head is None or not all(difference.name.startswith(f"{head}.") for difference in compared.differences):
        return None
    weight = f"{head}.weight"
    if weight in compared.wanted and weight not in compared.tensors:
        return (
            "only the classifier is missing: pass features_only=True or num_classes=0 to create_model, or "
            f"skip=('{head}.',) to load_weights"
        )
    classes = len(compared.tensors[weight]) if weight in compared.tensors and compared.tensors[weight].ndim else None
    if weight in compared.wanted and classes is not None and classes != len(compared.wanted[weight]):
        return f"only the classifier differs: the checkpoint has {classes} classes, pass num_classes={classes}"
    return None


def _variant(compared: Comparison) -> str | None:
    """The cause if the tensors are those of another native model."""
    names = matching_variants(compared.tensors)
    more = ", …" * (len(names) > MOST_NAMED)
    return f"the checkpoint fits {', '.join(names[:MOST_NAMED])}{more}: create that model" if names else None


def matching_variants(tensors: State) -> list[str]:
    """Names of the native models that have these tensors, whatever their classifier."""
    families: dict[Any, list[str]] = {}
    for name in list_models():
        if isinstance(variant := lookup(name), Variant):
            families.setdefault(variant.build, []).append(name)
    found, own_hashes = list[str](), dict[str, int]()
    for first, *others in families.values():
        names = _names(first)
        if len(names & tensors.keys()) >= SIMILAR * min(len(names), len(tensors)):
            for name in (first, *others):
                classifier, expected = _shapes_hash(name)
                own_hashes.setdefault(classifier, _hash_without(classifier, tensors))
                found += [name] * (own_hashes[classifier] == expected)
    return found


def _empty(name: str) -> Backbone:
    variant = cast(Variant[Any], lookup(name))
    with init_empty_weights():
        return variant.build(variant.config)


@cache
def _names(name: str) -> frozenset[str]:
    """State dict keys of a native model."""
    return frozenset(_empty(name).state_dict())


@cache  # building a model on the meta device takes some 20 ms, those of a family one or two seconds
def _shapes_hash(name: str) -> tuple[str, int]:
    """The classifier of a native model, and a hash of the names and shapes of its other tensors."""
    model = _empty(name)
    return model.last_linear, _hash_without(model.last_linear, model.state_dict())


def _hash_without(classifier: str, state: State) -> int:
    """A hash of names and shapes, without those of the classifier and of the counters of batch norms."""
    shapes = ((name, tuple(tensor.shape)) for name, tensor in state.items() if not name.endswith(COUNTER))
    return hash(frozenset((name, shape) for name, shape in shapes if not name.startswith(f"{classifier}.")))


def _other_family(compared: Comparison) -> str | None:
    """The cause if the tensors are in the layout of another family."""
    found = {layout.family: layout.system for layout in all_layouts() if layout.recognizes(compared.tensors)}
    found.pop(type(compared.model).__name__, None)
    named = " or ".join(f"{family} in the layout {system}" for family, system in islice(found.items(), MOST_NAMED))
    return f"the checkpoint looks like {named}: create a model of that family" if named else None


def _framework(compared: Comparison) -> str | None:
    """The cause if the names are those of another framework."""
    for pattern, framework in FRAMEWORKS.items():
        foreign, own = (any(re.search(pattern, name) for name in s) for s in (compared.tensors, compared.wanted))
        if foreign and not own:
            return f"the names are those of {framework}, in a layout that is not known for this model: rename them"
    return None


def _unrelated(compared: Comparison) -> str | None:
    """The cause if no name of the checkpoint is one of the model."""
    if compared.tensors.keys() & compared.wanted.keys():
        return None
    parts = dict.fromkeys(name.partition(".")[0] for name in compared.tensors)
    return (
        f"no name is one of the model's; they begin with [{names_in(parts, 5)}]. If one of these is the model, pass it "
        "as container="
    )


CAUSES: tuple[Callable[[Comparison], str | None], ...] = (_classifier, _variant, _other_family, _framework, _unrelated)
