"""How images become the tensors that a model's weights expect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import ArgumentError
from .resize import resampling, resized, resized_centre

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

# Fields of DataConfig that go together.
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
CLIP = {"mean": CLIP_MEAN, "std": CLIP_STD}
INCEPTION = {"mean": HALF, "std": HALF}


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What images looked like when the weights were trained.

    size: sides in pixels (height, width) of the crop.
    crop: share of the resized image's shorter side that the centre crop keeps.
    mean, std: per channel, of pixels in [0, 1], in RGB.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop: float = 0.875


def from_hub(cfg: Mapping[str, Any], default: DataConfig) -> DataConfig:
    """The preprocessing a timm-style `config.json` or `default_cfg` states; `default` where it is silent."""
    size = cfg.get("input_size")
    stated = {
        "size": tuple(size[1:]) if size else None,
        "mean": tuple(cfg["mean"]) if "mean" in cfg else None,
        "std": tuple(cfg["std"]) if "std" in cfg else None,
        "interpolation": cfg.get("interpolation"),
        "crop": cfg.get("crop_pct"),
    }
    return replace(default, **{key: value for key, value in stated.items() if value is not None})


def transform(model: nn.Module, *, size: int | None = None) -> "Callable[[Image], Tensor]":
    """A function from an RGB PIL image to the (3, size, size) float tensor that the model's weights expect.

    The image is resized at its own aspect so that it just covers size / crop, its centre is cropped and normalised.
    `size` (pixels) replaces the configured one. Raises ArgumentError for a size below 1, for a model without
    `data_config` and for an interpolation that Pillow does not have.
    """
    return partial(_normalised, prepare=cropped(model, size=size), config=_config(model, size))


def transform_whole(model: nn.Module, *, size: int | None = None) -> "Callable[[Image], Tensor]":
    """Like `transform`, but the whole image at its own aspect, its shorter side resized to `size`."""
    config = _config(model, size)
    whole = partial(_whole, shorter=min(config.size), interpolation=config.interpolation)
    return partial(_normalised, prepare=whole, config=config)


def cropped(model: nn.Module, *, size: int | None = None) -> "Callable[[Image], Image]":
    """What `transform` does to the PIL image before its pixels become numbers: to the part that the model sees."""
    return partial(_cropped, config=_config(model, size))


def _config(model: nn.Module, size: int | None) -> DataConfig:
    config = getattr(model, "data_config", None)
    if not isinstance(config, DataConfig):
        raise ArgumentError(f"{type(model).__name__} has no data_config: set model.data_config = featx.DataConfig(...)")
    if size is not None and size < 1:
        raise ArgumentError(f"size={size}: expected a positive number of pixels")
    resampling(config.interpolation)
    return config if size is None else replace(config, size=(size, size))


def _cropped(image: "Image", *, config: DataConfig) -> "Image":
    height, width = (int(side / config.crop) for side in config.size)
    if height == width:
        size = _with_shorter(image, height)
    else:  # as small as still covers them
        ratio = min(image.height / height, image.width / width)
        size = round(image.width / ratio), round(image.height / ratio)
    crop = config.size[1], config.size[0]
    return resized_centre(image, size, crop, config.interpolation)


def _whole(image: "Image", *, shorter: int, interpolation: str) -> "Image":
    return resized(image, _with_shorter(image, shorter), interpolation)


def _with_shorter(image: "Image", shorter: int) -> tuple[int, int]:
    """(width, height) at the image's aspect, the shorter of them so many pixels, the longer rounded down."""
    width, height = (int(shorter * side / min(image.size)) for side in image.size)
    return width, height


def _normalised(image: "Image", *, prepare: "Callable[[Image], Image]", config: DataConfig) -> Tensor:
    """(chs, height, width); divided by 255 as in training, where a product with 1 / 255 would round differently."""
    pixels = np.array(prepare(image))
    channels = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    return channels.to(torch.float32).div_(255).sub_(mean).div_(std)
