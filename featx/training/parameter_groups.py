"""Parameter groups for optimizers."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from ..errors import ArgumentError
from ..wrappers.extractor import source_of
from .backbone_part import BackbonePart, backbone_in

# Suffixes of names in transformers: positions and tokens are not weights of a matrix product, whatever their shape.
NO_DECAY = ("pos_embed", "cls_token", "dist_token", "reg_token", "position_embeddings")


def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    layer_decay: float | None = None,
    lr: float | None = None,
    no_decay: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Groups of all trainable parameters for `torch.optim`, with weight decay and layer-wise learning rates.

    With layer-wise decay (BEiT, https://arxiv.org/abs/2106.08254), the last depth has the learning rate `lr`, and each
    earlier depth `layer_decay` times the rate of the next. A depth is a level with all modules that no shallower level
    needs; the stem before the first level is a depth, and so is everything after the levels. Groups then have the keys
    `lr` and `lr_scale`.

    Args:
        model: the model.
        weight_decay: for all parameters except biases and scales (at most one axis), positions and tokens of
            transformers, the names in the model's `no_weight_decay()`, and those in `no_decay`.
        layer_decay: factor between the learning rates of consecutive depths.
        lr: learning rate of the last depth; required with `layer_decay`.
        no_decay: names, or suffixes of names, of parameters without weight decay.

    Returns:
        Dictionaries with `params` and options. Each parameter is in one group.

    Raises:
        ArgumentError: only one of `layer_decay` and `lr` is given, or no parameter has a name in `no_decay`.
    """
    if (layer_decay is None) != (lr is None):
        raise ArgumentError("layer_decay and lr go together: optimizers know rates of groups, not factors of them")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    undecayed = _undecayed(model, tuple(no_decay))
    depths = _depths(model) if layer_decay is not None else {}
    after_levels = max(depths.values(), default=-1) + 1
    last = max((depths.get(name, after_levels) for name in trained), default=0)
    groups: dict[tuple[int, float], dict[str, Any]] = {}
    for name, parameter in trained.items():
        depth = depths.get(name, after_levels)
        decay = 0.0 if parameter.ndim <= 1 or name in undecayed else weight_decay
        group = groups.setdefault((depth, decay), {"params": [], "weight_decay": decay})
        group["params"].append(parameter)
        if layer_decay is not None and lr is not None:
            scale = layer_decay ** (last - depth)
            group.update(lr=lr * scale, lr_scale=scale)
    return [groups[key] for key in sorted(groups)]


def _undecayed(model: nn.Module, no_decay: tuple[str, ...]) -> set[str]:
    """Names of the parameters without weight decay, whatever their shape."""
    names = [name for name, _ in model.named_parameters()]
    unknown = [suffix for suffix in no_decay if not any(_has_suffix(name, suffix) for name in names)]
    if unknown:
        raise ArgumentError(f"no_decay={list(no_decay)}: no parameter is called {unknown}")
    suffixes = (*no_decay, *NO_DECAY, *_declared(model))
    return {name for name in names if any(_has_suffix(name, suffix) for suffix in suffixes)}


def _has_suffix(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _declared(model: nn.Module) -> Iterator[str]:
    """Names that modules, or the models inside extractors, return from `no_weight_decay()`, timm's convention."""
    for module in model.modules():
        source: Any = source_of(module)
        declare: Callable[[], Iterable[str]] | None = getattr(source, "no_weight_decay", None)
        if declare is not None:
            yield from declare()


def _depths(model: nn.Module) -> dict[str, int]:
    """The depth of each parameter of the backbone, from 0, without parameters after the levels."""
    part = backbone_in(model)
    depths: dict[str, int] = {}
    for position in range(part.deepest + 1):
        for name in sorted(part.names(position) - depths.keys()):
            depths[name] = position + 1 if position or _in_first_level(name, part) else 0
    ranks = {depth: rank for rank, depth in enumerate(sorted(set(depths.values())))}
    return {name: ranks[depth] for name, depth in depths.items()}


def _in_first_level(name: str, part: BackbonePart) -> bool:
    """Whether a parameter belongs to the module that returns the first level, not to the stem before it."""
    return name.startswith(f"{part.prefix}{part.levels[0].name}.")
