"""Parameters in the groups that an optimiser takes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from ..errors import ArgumentError
from ..wrappers.extractor import source_of
from .parts import Part, backbone_in

# Of transformers: last parts of names. Positions and tokens are no weights of a product, whatever their shape.
NO_DECAY = ("pos_embed", "cls_token", "dist_token", "reg_token", "position_embeddings")


def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    layer_decay: float | None = None,
    lr: float | None = None,
    no_decay: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """All parameters that are trained, each in one group, as `torch.optim` takes them.

    weight_decay: of all but biases and scales (what has one axis or none), positions and tokens of transformers, those
        the model names in `no_weight_decay()`, and those in `no_decay`: names, or the last parts of names.
    layer_decay, lr: what lies deepest has the learning rate `lr`, and every depth before it `layer_decay` times that of
        the next (BEiT, https://arxiv.org/abs/2106.08254). A depth is a level with all that no shallower one needs; the
        stem before the first level is one as well, and so is all that comes after the levels. Groups then have `lr`,
        and `lr_scale` to read.

    Raises ArgumentError for a `layer_decay` without `lr`, because optimisers would ignore it, and for names in
    `no_decay` that no parameter has.
    """
    if (layer_decay is None) != (lr is None):
        raise ArgumentError("layer_decay and lr go together: optimisers know rates of groups, not factors of them")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    spared = _spared(model, tuple(no_decay))
    depths = _depths(model) if layer_decay is not None else {}
    behind = max(depths.values(), default=-1) + 1
    last = max((depths.get(name, behind) for name in trained), default=0)
    groups: dict[tuple[int, float], dict[str, Any]] = {}
    for name, parameter in trained.items():
        depth = depths.get(name, behind)
        decay = 0.0 if parameter.ndim <= 1 or name in spared else weight_decay
        group = groups.setdefault((depth, decay), {"params": [], "weight_decay": decay})
        group["params"].append(parameter)
        if layer_decay is not None and lr is not None:
            scale = layer_decay ** (last - depth)
            group.update(lr=lr * scale, lr_scale=scale)
    return [groups[key] for key in sorted(groups)]


def _spared(model: nn.Module, no_decay: tuple[str, ...]) -> set[str]:
    """Names of the parameters that do not decay, whatever their shape."""
    names = [name for name, _ in model.named_parameters()]
    unknown = [ending for ending in no_decay if not any(_ends(name, ending) for name in names)]
    if unknown:
        raise ArgumentError(f"no_decay={list(no_decay)}: no parameter is called {unknown}")
    endings = (*no_decay, *NO_DECAY, *_declared(model))
    return {name for name in names if any(_ends(name, ending) for ending in endings)}


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _declared(model: nn.Module) -> Iterator[str]:
    """What modules, or those that extractors stand in for, say in timm's way."""
    for module in model.modules():
        source: Any = source_of(module)
        declare: Callable[[], Iterable[str]] | None = getattr(source, "no_weight_decay", None)
        if declare is not None:
            yield from declare()


def _depths(model: nn.Module) -> dict[str, int]:
    """How deep each parameter of the backbone lies, from 0; its head is missing."""
    part = backbone_in(model)
    found: dict[str, int] = {}
    for position in range(part.deepest + 1):
        for name in sorted(part.names(position) - found.keys()):
            found[name] = position + 1 if position or _within(name, part) else 0
    ranks = {depth: rank for rank, depth in enumerate(sorted(set(found.values())))}
    return {name: ranks[depth] for name, depth in found.items()}


def _within(name: str, part: Part) -> bool:
    """Whether it is a parameter of the module whose output the first level is, and not of the stem before that."""
    return name.startswith(f"{part.prefix}{part.levels[0].name}.")
