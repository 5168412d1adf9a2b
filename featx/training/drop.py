"""Stochastic depth of a model that is there already."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from ..backbone import BackboneConfig
from ..errors import ArgumentError
from ..models.layers.drop_path import DropPath, require_rate
from ..registry import lookup
from ..wrappers.extractor import source_of
from .parts import backbone_in


def drop_path(model: nn.Module, rate: float) -> None:
    """Drop residual branches in training, in place, as `create_model(..., drop_path_rate=rate)` would have it.

    The rates rise from the first block of the full backbone to the last, as its family defines. 0 takes them away.
    `model` is a backbone of a family of featx, its extractor, or anything around one. ArgumentError for others, which
    take `drop_path_rate` when they are created, and for a rate that is not at least 0 and less than 1 (https://arxiv.org/abs/1603.09382).
    """
    require_rate(rate)
    part = backbone_in(model)
    twin = _twin(part.module, rate)
    rates = {path: m.rate for path, m in twin.named_modules() if isinstance(m, DropPath)}
    ours = dict(part.module.named_modules(remove_duplicate=False))
    for path in [path for path, module in ours.items() if isinstance(module, DropPath) or path in rates]:
        part.module.set_submodule(path, _branch(rates.get(path, 0.0), ours[path].training))


def _branch(rate: float, training: bool) -> nn.Module:
    return (DropPath(rate) if rate else nn.Identity()).train(training)


def _twin(backbone: nn.Module, rate: float) -> nn.Module:
    """The same variant with that rate, without values."""
    source: Any = source_of(backbone)
    name, config = getattr(source, "architecture", None), getattr(source, "config", None)
    if name is None or not isinstance(config, BackboneConfig) or "drop_path_rate" not in _fields(config):
        raise ArgumentError(
            f"{type(source).__name__} is not of a family of featx with stochastic depth: pass drop_path_rate to "
            "create_model, if its package has it"
        )
    variant: Any = lookup(name)
    with torch.device("meta"):
        return variant.build(replace(config, drop_path_rate=rate))


def _fields(config: BackboneConfig) -> list[str]:
    return [field.name for field in fields(config)]
