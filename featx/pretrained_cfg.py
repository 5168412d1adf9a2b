"""The `pretrained_cfg` of a model, with timm's keys, for tools that read timm models."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import nn

from .preprocessing import TIMM_CROP_MODES, DataConfig

if TYPE_CHECKING:
    from .backbone import Backbone


def pretrained_cfg(model: "Backbone") -> Mapping[str, Any]:
    """A read-only mapping with timm's keys: source of the weights, preprocessing, first convolution and classifier.

    `input_size` (C, H, W) and `pool_size` (rows and columns of the last map, None for tokens) account for the model's
    input channels and output stride.
    """
    data, deepest = model.data_config, model.feature_info[-1].reduction
    published = {"hf_hub_id": f"timm/{model.architecture}.{model.tag}"} if model.tag else {}
    labels = {"label_names": model.label_names} if model.label_names else {}
    return MappingProxyType(
        {
            **published,
            "architecture": model.architecture,
            "tag": model.tag,
            "custom_load": False,
            "fixed_input_size": False,
            **preprocessing(data, model.in_chans),
            "num_classes": model.num_classes,
            **labels,
            "pool_size": None if model.gives_tokens else tuple(model.size_rule(side, deepest) for side in data.size),
            "first_conv": first_conv(model),
            "classifier": model.last_linear,
        }
    )


def preprocessing(data: DataConfig, in_chans: int) -> dict[str, Any]:
    """The preprocessing under timm's keys."""
    return {
        "input_size": (in_chans, *data.size),
        "mean": data.mean,
        "std": data.std,
        "interpolation": data.interpolation,
        "crop_pct": data.crop,
        "crop_mode": data.crop_mode if data.crop_mode in TIMM_CROP_MODES else "center",
    }


def first_conv(model: "Backbone") -> str | tuple[str, ...]:
    """Path of the first convolution, or paths of all that read the images; "" if the model has no convolution."""
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    several = tuple(name for name in model.first_convs if name in convs)
    return several or next(iter(convs), "")
