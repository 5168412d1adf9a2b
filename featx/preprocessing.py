"""How images become the tensors that a model's weights expect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from .errors import ArgumentError

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


def transform(model: nn.Module, *, size: int | None = None) -> Callable[[Any], Tensor]:
    """A function from an RGB PIL image to the (3, size, size) float tensor that the model's weights expect.

    The image is resized at its own aspect so that it just covers size / crop, its centre is cropped and normalised.
    `size` (pixels) replaces the configured one. Raises ArgumentError for a size below 1 and for a model without
    `data_config`.
    """
    from torchvision.transforms import v2

    return v2.Compose([cropped(model, size=size), *_scale(_config(model, size))])


def transform_whole(model: nn.Module, *, size: int | None = None) -> Callable[[Any], Tensor]:
    """Like `transform`, but the whole image at its own aspect, its shorter side resized to `size`."""
    from torchvision.transforms import v2

    config = _config(model, size)
    return v2.Compose([_resize(config, min(config.size)), *_scale(config)])


def cropped(model: nn.Module, *, size: int | None = None) -> Callable[[Any], Any]:
    """What `transform` does to the PIL image before its pixels become numbers: to the part that the model sees."""
    from torchvision.transforms import v2

    config = _config(model, size)
    return v2.Compose([_resize_to_cover(config), v2.CenterCrop(config.size)])


def _config(model: nn.Module, size: int | None) -> DataConfig:
    config = getattr(model, "data_config", None)
    if not isinstance(config, DataConfig):
        raise ArgumentError(f"{type(model).__name__} has no data_config: set model.data_config = featx.DataConfig(...)")
    if size is not None and size < 1:
        raise ArgumentError(f"size={size}: expected a positive number of pixels")
    return config if size is None else replace(config, size=(size, size))


def _resize(config: DataConfig, shorter: int) -> Any:
    from torchvision.transforms import v2

    return v2.Resize(shorter, interpolation=v2.InterpolationMode(config.interpolation))


def _resize_to_cover(config: DataConfig) -> Any:
    height, width = (int(side / config.crop) for side in config.size)
    if height == width:
        return _resize(config, height)
    return partial(_cover, height=height, width=width, interpolation=config.interpolation)


def _cover(image: Any, *, height: int, width: int, interpolation: str) -> Any:
    """The PIL image at its own aspect, as small as still covers height x width pixels."""
    from torchvision.transforms import v2

    ratio = min(image.height / height, image.width / width)
    sides = [round(image.height / ratio), round(image.width / ratio)]
    return v2.functional.resize(image, sides, v2.InterpolationMode(interpolation))


def _scale(config: DataConfig) -> list[Any]:
    from torchvision.transforms import ToTensor, v2

    # ToTensor divides by 255, as in training; v2.ToDtype multiplies by 1 / 255, which rounds differently
    return [ToTensor(), v2.Normalize(config.mean, config.std)]
