"""Backbones for what is built from configurations by MMEngine (https://mmengine.readthedocs.io): MMDetection and so on.

Channels of the levels stand in the `in_channels` of necks and heads there; `channels` tells them for a configuration.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..factory import create_model
from ..training import freeze, freeze_norms
from ..weights import load_weights
from .source import maps_of, require_package

INSTALL = "pip install -U onedl-mmengine, or mmengine"


def register(registry: Any) -> type[nn.Module]:
    """Register the class `FeatxBackbone`, so that configurations say dict(type="FeatxBackbone", model="resnet50", …).

    registry: such as `mmdet.registry.MODELS` or `mmengine.registry.MODELS`.

    Its arguments: `model`, a name for `create_model`, and further arguments of that; and, as backbones there have them,
    `out_indices`; `frozen_stages`, the index of the last level that is frozen with all before it (0 is the stem where
    that is a level, -1 freezes nothing); `norm_eval`, BatchNorm that keeps its statistics; `init_cfg`, where
    dict(type="Pretrained", checkpoint=…) loads what `featx.load_weights` takes.

    Raises MissingPackageError.
    """
    made = _class()
    registry.register_module(name="FeatxBackbone", module=made, force=True)
    return made


def channels(model: str, out_indices: Sequence[int], **arguments: Any) -> list[int]:
    """Channels of the levels, for `in_channels` of the neck in a configuration."""
    with torch.device("meta"):
        return create_model(model, features_only=True, out_indices=out_indices, **arguments).feature_info.channels()


@cache
def _class() -> type[nn.Module]:
    base: Any = require_package("mmengine.model", INSTALL).BaseModule

    class FeatxBackbone(base):
        """Images (N, C, H, W) to a tuple of maps."""

        def __init__(
            self,
            model: str,
            out_indices: Sequence[int],
            frozen_stages: int = -1,
            norm_eval: bool = False,
            init_cfg: Mapping[str, Any] | None = None,
            **arguments: Any,
        ) -> None:
            super().__init__(init_cfg=init_cfg)
            _require_pretrained(init_cfg)
            self.body = create_model(model, features_only=True, out_indices=tuple(out_indices), **arguments)
            if frozen_stages >= 0:
                freeze(self.body, frozen_stages)
            if norm_eval:
                freeze_norms(self.body, affine=False)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(maps_of(self.body, x))

        def init_weights(self) -> None:
            """Load what `init_cfg` names; without it the values stay, with which featx has begun."""
            if self.init_cfg and not self.is_init:
                load_weights(self.body, self.init_cfg["checkpoint"])
            self.is_init = True

    FeatxBackbone.__qualname__ = "FeatxBackbone"  # where pickle finds it: see __getattr__
    return FeatxBackbone


def _require_pretrained(init_cfg: Mapping[str, Any] | None) -> None:
    if init_cfg and (init_cfg.get("type") != "Pretrained" or set(init_cfg) != {"type", "checkpoint"}):
        raise ArgumentError(
            f"init_cfg={dict(init_cfg)}: expected dict(type='Pretrained', checkpoint=…) or None, with which the "
            "family's own initialisation or that of pretrained=True stays"
        )


def __getattr__(name: str) -> Any:
    if name == "FeatxBackbone":
        return _class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
