"""Backbones for MMEngine (https://mmengine.readthedocs.io) and packages that build on it, such as MMDetection.

`channels` returns the channels of the levels, for the `in_channels` of necks and heads in a configuration.
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
from .requirements import maps_of, require_package

INSTALL = "pip install -U onedl-mmengine, or mmengine"


def register(registry: Any) -> type[nn.Module]:
    """Register the class `FeatxBackbone`, for configurations such as dict(type="FeatxBackbone", model="resnet50", …).

    Arguments of `FeatxBackbone` are `model`, a name for `create_model`, and further arguments of `create_model`; and as
    in MMEngine's backbones `out_indices`; `frozen_stages`, the index of the last frozen level (0 is the stem if that is
    a level, -1 freezes nothing; earlier levels are frozen, too); `norm_eval`, which keeps BatchNorm in evaluation mode;
    `init_cfg`, where dict(type="Pretrained", checkpoint=…) loads any checkpoint that `featx.load_weights` accepts.

    Args:
        registry: such as `mmdet.registry.MODELS` or `mmengine.registry.MODELS`.

    Returns:
        The class.

    Raises:
        MissingPackageError: MMEngine is not installed.
    """
    backbone_class = _class()
    registry.register_module(name="FeatxBackbone", module=backbone_class, force=True)
    return backbone_class


def channels(model: str, out_indices: Sequence[int], **arguments: Any) -> list[int]:
    """Channels of the levels, for `in_channels` of a neck in a configuration.

    Args:
        model: a name for `create_model`.
        out_indices: the levels.
        arguments: further arguments of `create_model`.
    """
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
            """Load the checkpoint of `init_cfg`, if any. Otherwise the weights from `create_model` stay."""
            if self.init_cfg and not self.is_init:
                load_weights(self.body, self.init_cfg["checkpoint"])
            self.is_init = True

    FeatxBackbone.__qualname__ = "FeatxBackbone"  # pickle finds it through __getattr__
    return FeatxBackbone


def _require_pretrained(init_cfg: Mapping[str, Any] | None) -> None:
    if init_cfg and (init_cfg.get("type") != "Pretrained" or set(init_cfg) != {"type", "checkpoint"}):
        raise ArgumentError(
            f"init_cfg={dict(init_cfg)}: expected dict(type='Pretrained', checkpoint=…), or None to keep the family's "
            "initialization or the weights of pretrained=True"
        )


def __getattr__(name: str) -> Any:
    if name == "FeatxBackbone":
        return _class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
