"""Preprocessing: DataConfig, and transforms from PIL images to the tensors that a model's weights expect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from math import nextafter
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from .arguments import fits, require_number
from .errors import ArgumentError, shortened
from .image_checks import LARGEST_SIDE
from .json_checks import Value
from .resize import ROUNDINGS, Box, Rounding, resampling, resized, resized_center

if TYPE_CHECKING:
    from PIL.Image import Image

    from .images import Picture

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

# Common values of `mean` and `std` of a DataConfig.
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
CLIP = {"mean": CLIP_MEAN, "std": CLIP_STD}
INCEPTION = {"mean": HALF, "std": HALF}


TIMM_CROP_MODES = ("center", "squash", "border")
CROP_MODES = (*TIMM_CROP_MODES, "other")
CHANNEL_ORDERS = ("rgb", "bgr")
SMALLEST_CROP = 0.01
# Parsers of the fields of a DataConfig in a JSON file.
FROM_JSON: Mapping[str, Callable[[Value], Any]] = {
    "size": lambda value: tuple(value.numbers(1, LARGEST_SIDE, 2)),
    "mean": lambda value: tuple(one.real() for one in value.each()),
    "std": lambda value: tuple(one.real() for one in value.each()),
    "interpolation": lambda value: value.text(),
    "crop": lambda value: value.real(),
    "crop_mode": lambda value: value.text(CROP_MODES),
    "channel_order": lambda value: value.text(CHANNEL_ORDERS),
    "crop_rounding": lambda value: value.text(ROUNDINGS),
}


@dataclass(frozen=True, slots=True)
class DataConfig:
    """The preprocessing that weights were trained with.

    Args:
        size: (height, width) of the crop in pixels.
        mean: per channel, of pixels in [0, 1], in RGB order.
        std: per channel, of pixels in [0, 1], in RGB order.
        interpolation: name of Pillow's filter for resizing.
        crop: fraction of the resized image's sides that the crop keeps.
        crop_mode: how an image of another aspect ratio is fitted to `size`. "center" resizes it, keeping the aspect
            ratio, to cover size / crop, and crops the center; "squash" resizes it to size / crop, ignoring the aspect
            ratio, and crops the center; "border" resizes it, keeping the aspect ratio, to fit into size / crop, and
            fills the border with the mean; "other" is a method of the model's own package, which `transform` refuses.
        channel_order: "rgb" or "bgr", the order of the model's input channels.
        crop_rounding: start of a crop whose center lies between two pixels: "nearest", ties to even, as in torchvision
            and timm, or "down", as in transformers.

    Raises:
        ArgumentError: a field has an invalid value; the message lists all of them.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop: float = 0.875
    crop_mode: str = "center"
    channel_order: str = "rgb"
    crop_rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value!r}: choose one of {known}"
            for name, value, known in (
                ("crop_mode", self.crop_mode, CROP_MODES),
                ("channel_order", self.channel_order, CHANNEL_ORDERS),
                ("crop_rounding", self.crop_rounding, ROUNDINGS),
            )
            if value not in known
        ]
        if not fits(self.size, tuple[int, int]) or not all(0 < side <= LARGEST_SIDE for side in self.size):
            problems.append(f"size={self.size}: expected (height, width) in pixels, at most {LARGEST_SIDE}")
        elif not fits(self.crop, float) or not max(self.size) / LARGEST_SIDE <= self.crop <= min(self.size):
            problems.append(f"crop={self.crop!r}: expected a positive share of the resized image, such as 0.875")
        per_channel = fits(self.mean, tuple[float, ...]) and fits(self.std, tuple[float, ...])
        if not per_channel or len(self.mean) != len(self.std) or not all(self.std):
            problems.append(f"mean={self.mean}, std={self.std}: expected one of each per channel, no std of 0")
        if not isinstance(self.interpolation, str):
            problems.append(f"interpolation={self.interpolation!r}: expected the name of a filter, such as 'bicubic'")
        if problems:
            raise ArgumentError("; ".join(shortened(problems)))

    @classmethod
    def from_json(cls, json: Value) -> Self:
        """Read a DataConfig from the JSON form of its `dataclasses.asdict`. Missing fields have their defaults.

        Raises:
            JsonError: the value is not a valid DataConfig.
        """
        if unknown := sorted(json.object().keys() - cls.__slots__):
            raise json.mismatch(f"an object without {unknown[0][:80]!r}")
        parsed: dict[str, Any] = {name: FROM_JSON[name](json[name]) for name in json.object()}
        values = {**{field.name: field.default for field in fields(cls)}, **parsed}
        if len(values["mean"]) != len(values["std"]) or not all(values["std"]):
            raise json.mismatch("a mean and a std per channel, no std of 0")
        if not SMALLEST_CROP <= values["crop"] <= min(values["size"]):
            raise json.mismatch(f"a crop of at least {SMALLEST_CROP}")
        return cls(**parsed)

    def resized(self) -> tuple[int, int]:
        """(height, width) in pixels that images are resized to before the crop."""
        return int(self.size[0] / self.crop), int(self.size[1] / self.crop)


def from_hub(cfg: Mapping[str, Any], default: DataConfig) -> DataConfig:
    """The preprocessing in a timm-style `config.json` or `default_cfg`; missing fields are those of `default`.

    Raises:
        ArgumentError: a value is invalid, such as a crop_pct of 0.
    """
    size = cfg.get("input_size")
    values = {
        "size": tuple(size[-2:]) if size else None,
        "mean": tuple(cfg["mean"]) if cfg.get("mean") else None,
        "std": tuple(cfg["std"]) if cfg.get("std") else None,
        "interpolation": cfg.get("interpolation") or None,
        "crop": cfg.get("crop_pct"),
        "crop_mode": cfg.get("crop_mode") or None,
    }
    return replace(default, **{key: value for key, value in values.items() if value is not None})


def share(part: int, whole: int) -> float:
    """The `crop` fraction for cropping `part` pixels from an image resized to exactly `whole` pixels."""
    fraction = part / whole
    return fraction if int(part / fraction) == whole else nextafter(fraction, 0)


@dataclass(frozen=True, slots=True)
class Transform:
    """A function from an image to the tensor (chs, H, W) in float32 that a model's weights expect.

    An image is a path; an array (H, W) or (H, W, 1, 3 or 4) of uint8; or a PIL image of any mode, whose transparency is
    blended with white. Raises ArgumentError for other objects, and ImageError for a file that is not an image.

    Attributes:
        config: size, crop and normalization.
        prepare: resizes and crops a PIL image.
    """

    config: DataConfig
    prepare: "Callable[[Image], Image]" = field(repr=False)

    def __call__(self, image: "Picture") -> Tensor:
        """The tensor. Values are divided by 255, since multiplying by 1 / 255 rounds differently."""
        from .images import as_image  # and Pillow, which `import featx` does not need

        pixels = np.array(self.prepare(as_image(image)))
        channels = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.config.mean, self.config.std))
        numbers = channels.to(torch.float32).div_(255).sub_(mean).div_(std)
        return numbers.flip(0) if self.config.channel_order == "bgr" else numbers


def transform(model: nn.Module, *, size: int | None = None) -> Transform:
    """The preprocessing of a model: a function from an image to a float32 tensor (chs, size, size).

    An image is a path, an array of uint8 or a PIL image of any mode. It is resized and cropped according to `crop_mode`
    of the model's DataConfig, and normalized. For a model of one channel it is converted to gray.

    Args:
        model: a model with `data_config`.
        size: side in pixels, instead of the configured size.

    Raises:
        ArgumentError: `size` is below 1; the model has no `data_config`, or one with another number of channels; Pillow
            does not have the interpolation; or the crop mode is "other".
    """
    return Transform(expected(model, size), cropped(model, size=size))


def transform_whole(model: nn.Module, *, size: int | None = None) -> Transform:
    """Preprocessing without cropping: a function from an image to a float32 tensor (chs, H, W).

    The shorter side is resized to `size`, keeping the aspect ratio. For a model with a `size_divisor`, both sides are
    rounded to multiples of it.

    Args:
        model: a model with `data_config`.
        size: shorter side in pixels, instead of the configured size.

    Raises:
        ArgumentError: `size` is below 1; the model has no `data_config`, or one with another number of channels; or
            Pillow does not have the interpolation.
    """
    return Transform(expected(model, size), uncropped(model, size=size))


def cropped(model: nn.Module, *, size: int | None = None) -> "Callable[..., Image]":
    """The resizing and cropping of `transform`: a function from a PIL image to a PIL image.

    For an image that was decoded at a fraction of its size, the function also accepts `whole`, (width, height) at full
    size, and `box`, the left, upper, right and lower edge of the picture in pixels of the image.
    """
    config = expected(model, size)
    if config.crop_mode == "other":
        raise ArgumentError(
            f"{type(model).__name__}: the package that its weights are from prepares images in a way that no crop mode "
            "has: prepare them there, keep their aspect (featx.transform_whole, keep_aspect=True), or choose a mode "
            "yourself: model.data_config = dataclasses.replace(model.data_config, crop_mode='squash')"
        )
    return partial(_cropped, config=config)


def uncropped(model: nn.Module, *, size: int | None = None) -> "Callable[..., Image]":
    """The resizing of `transform_whole`: a function from a PIL image to a PIL image.

    The function also accepts `whole` and `box`, like that of `cropped`.
    """
    return partial(_whole, config=expected(model, size), divisor=getattr(model, "size_divisor", 1))


def with_channels(image: "Image", count: int) -> "Image":
    """Convert an image to gray (`count` 1) or RGB (3). A float image is kept for one channel."""
    mode = "L" if count == 1 else "RGB"
    return image if image.mode == mode or (count == 1 and image.mode == "F") else image.convert(mode)


def expected(model: nn.Module, size: int | None = None) -> DataConfig:
    """The model's DataConfig, with `size` if given. ArgumentError unless it has 1 or 3 channels, as PIL images do."""
    config = stated(model, size)
    if len(config.mean) not in (1, 3):
        raise ArgumentError(
            f"{type(model).__name__} takes {len(config.mean)} channels: a PIL image has 3, or 1 if it is gray; featx "
            "extract takes files of any number of channels"
        )
    return config


def stated(model: nn.Module, size: int | None = None) -> DataConfig:
    """The model's DataConfig, with `size` if given. ArgumentError if it is missing or does not fit the model."""
    config = getattr(model, "data_config", None)
    if not isinstance(config, DataConfig):
        raise ArgumentError(f"{type(model).__name__} has no data_config: set model.data_config = featx.DataConfig(...)")
    if size is not None:
        require_number(size, "size", 1, "a positive number of pixels")
    channels = getattr(model, "in_chans", None) or len(config.mean)
    if len(config.mean) != channels:
        raise ArgumentError(
            f"{type(model).__name__} takes {channels} channels and its data_config has {len(config.mean)} means: give "
            "the model a DataConfig with one mean and std for each"
        )
    resampling(config.interpolation)
    return config if size is None else replace(config, size=(size, size))


def _cropped(
    image: "Image", *, config: DataConfig, whole: tuple[int, int] | None = None, box: Box | None = None
) -> "Image":
    whole = whole or image.size
    height, width = config.resized()
    if config.crop_mode == "squash":
        size = width, height
    elif config.crop_mode == "center" and height == width:
        size = _with_shorter(whole, height)
    else:
        ratios = whole[1] / height, whole[0] / width
        ratio = max(ratios) if config.crop_mode == "border" else min(ratios)
        size = max(1, round(whole[0] / ratio)), max(1, round(whole[1] / ratio))
    fill = tuple(round(255 * mean) for mean in config.mean) if config.crop_mode == "border" else None
    crop = config.size[1], config.size[0]
    return resized_center(
        with_channels(image, len(config.mean)), size, crop, config.interpolation, config.crop_rounding, fill, box
    )


def _whole(
    image: "Image", *, config: DataConfig, divisor: int, whole: tuple[int, int] | None = None, box: Box | None = None
) -> "Image":
    sides = _with_shorter(whole or image.size, min(config.size))
    width, height = (max(divisor, round(side / divisor) * divisor) for side in sides)
    return resized(with_channels(image, len(config.mean)), (width, height), config.interpolation, box)


def _with_shorter(whole: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) with the aspect ratio of `whole`: `shorter` pixels and the longer side rounded down."""
    width, height = (int(shorter * side / min(whole)) for side in whole)
    return width, height
