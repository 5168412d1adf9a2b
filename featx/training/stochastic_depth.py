"""Stochastic depth (https://arxiv.org/abs/1603.09382), set on an existing model."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from ..backbone import BackboneConfig
from ..errors import ArgumentError
from ..models.layers.drop_path import DropPath, require_rate
from ..registry import lookup
from ..wrappers.extractor import source_of
from .backbone_part import backbone_in


def drop_path(model: nn.Module, rate: float) -> None:
    """Set the stochastic depth rate of a model in place, as `create_model(..., drop_path_rate=rate)` does.

    Rates increase from the first block of the full backbone to the last, as its family defines.

    Args:
        model: a native backbone, its extractor, or a model that contains one.
        rate: of the last block, at least 0 and less than 1; 0 removes stochastic depth.

    Raises:
        ArgumentError: the backbone is not native, or `rate` is out of range.
    """
    require_rate(rate)
    part = backbone_in(model)
    reference = _meta_variant(part.module, rate)
    rates = {path: m.rate for path, m in reference.named_modules() if isinstance(m, DropPath)}
    modules = dict(part.module.named_modules(remove_duplicate=False))
    for path in [path for path, module in modules.items() if isinstance(module, DropPath) or path in rates]:
        part.module.set_submodule(path, _branch(rates.get(path, 0.0), modules[path].training))


def _branch(rate: float, training: bool) -> nn.Module:
    return (DropPath(rate) if rate else nn.Identity()).train(training)


def _meta_variant(backbone: nn.Module, rate: float) -> nn.Module:
    """The same variant with that rate, on the meta device."""
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
