"""What a model's weights expect, under the keys of timm's `pretrained_cfg`, which tools for timm's models read."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import nn

from .preprocessing import TIMM_CROP_MODES, DataConfig

if TYPE_CHECKING:
    from .backbone import Backbone


def pretrained_cfg(model: "Backbone") -> Mapping[str, Any]:
    """A read-only view of what the model says of its weights: where they are, what images and which layers they have.

    `input_size` and `pool_size`, the cells of the last map (None for tokens), are those of this model, with its input
    channels and its output stride.
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
    """The images, as timm describes them."""
    return {
        "input_size": (in_chans, *data.size),
        "mean": data.mean,
        "std": data.std,
        "interpolation": data.interpolation,
        "crop_pct": data.crop,
        "crop_mode": data.crop_mode if data.crop_mode in TIMM_CROP_MODES else "center",
    }


def first_conv(model: "Backbone") -> str | tuple[str, ...]:
    """Path of the first convolution, or paths of those that read the images; "" if there is none."""
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    several = tuple(name for name in model.first_convs if name in convs)
    return several or next(iter(convs), "")
