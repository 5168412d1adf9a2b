"""How images become the tensors that a model's weights expect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
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
from .resize import ROUNDINGS, Box, Rounding, resampling, resized, resized_centre

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

# Fields of DataConfig that go together.
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
CLIP = {"mean": CLIP_MEAN, "std": CLIP_STD}
INCEPTION = {"mean": HALF, "std": HALF}


TIMM_CROP_MODES = ("center", "squash", "border")
CROP_MODES = (*TIMM_CROP_MODES, "other")
CHANNEL_ORDERS = ("rgb", "bgr")
SMALLEST_CROP = 0.01
# How each field of a DataConfig is read from a file.
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
    """What images looked like when the weights were trained.

    size: sides in pixels (height, width) of the crop.
    crop: share of the resized image's sides that the crop keeps.
    mean, std: per channel, of pixels in [0, 1], in RGB.
    crop_mode: how an image of another aspect becomes one of `size`: "center" resizes it at its own aspect so that it
        covers size / crop, and keeps its centre; "squash" resizes it to size / crop whatever its aspect, and keeps the
        centre; "border" resizes it at its own aspect so that it fits into size / crop, and fills the border with the
        mean; "other" is what only the model's own package does: `transform` refuses it.
    channel_order: "rgb" or "bgr": the order of the channels that the model takes.
    crop_rounding: where the crop starts if the centre lies between two pixels: at the "nearest" even one, as in
        torchvision and timm, or the next one "down", as in transformers.

    Raises ArgumentError naming every field that has no such value.
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
    def from_json(cls, stated: Value) -> Self:
        """The DataConfig whose `dataclasses.asdict` was written as JSON; the defaults for fields that it lacks.

        Raises JsonError for anything else.
        """
        if unknown := sorted(stated.object().keys() - cls.__slots__):
            raise stated.mismatch(f"an object without {unknown[0][:80]!r}")
        read: dict[str, Any] = {name: FROM_JSON[name](stated[name]) for name in stated.object()}
        made = {**{field.name: field.default for field in fields(cls)}, **read}
        if len(made["mean"]) != len(made["std"]) or not all(made["std"]):
            raise stated.mismatch("a mean and a std per channel, no std of 0")
        if not SMALLEST_CROP <= made["crop"] <= min(made["size"]):
            raise stated.mismatch(f"a crop of at least {SMALLEST_CROP}")
        return cls(**read)

    def resized(self) -> tuple[int, int]:
        """The (height, width) in pixels that the image is resized to, before `size` is cropped from it."""
        return int(self.size[0] / self.crop), int(self.size[1] / self.crop)


def from_hub(cfg: Mapping[str, Any], default: DataConfig) -> DataConfig:
    """The preprocessing that a timm-style `config.json` or `default_cfg` states; `default` where it is silent.

    Raises ArgumentError for values that mean nothing, such as a crop_pct of 0.
    """
    size = cfg.get("input_size")
    stated = {
        "size": tuple(size[-2:]) if size else None,
        "mean": tuple(cfg["mean"]) if cfg.get("mean") else None,
        "std": tuple(cfg["std"]) if cfg.get("std") else None,
        "interpolation": cfg.get("interpolation") or None,
        "crop": cfg.get("crop_pct"),
        "crop_mode": cfg.get("crop_mode") or None,
    }
    return replace(default, **{key: value for key, value in stated.items() if value is not None})


def share(part: int, whole: int) -> float:
    """The `crop` of a DataConfig by which `part` pixels are cropped from an image resized to exactly `whole` pixels."""
    found = part / whole
    return found if int(part / found) == whole else nextafter(found, 0)


def transform(model: nn.Module, *, size: int | None = None) -> "Callable[[Image], Tensor]":
    """A function from an RGB PIL image to the (chs, size, size) float tensor that the model's weights expect.

    The image is resized and cropped as `crop_mode` of the model's DataConfig says, and normalised. `size` (pixels)
    replaces the configured one. A model of one channel is given the gray image.

    Raises ArgumentError for a size below 1, for a model without `data_config` or with one of other channels than it
    takes, for an interpolation that Pillow does not have, and for the crop mode "other".
    """
    return partial(_normalised, prepare=cropped(model, size=size), config=expected(model, size))


def transform_whole(model: nn.Module, *, size: int | None = None) -> "Callable[[Image], Tensor]":
    """Like `transform`, but the whole image at its own aspect, its shorter side resized to `size`.

    For a model with a `size_divisor`, both sides are rounded to multiples of it.
    """
    return partial(_normalised, prepare=uncropped(model, size=size), config=expected(model, size))


def cropped(model: nn.Module, *, size: int | None = None) -> "Callable[..., Image]":
    """What `transform` does to the PIL image before its pixels become numbers: to the part that the model sees.

    Of an image that was decoded at a fraction of its size, it also takes `whole`, (width, height) of the whole picture,
    and `box`, the left, upper, right and lower edge of the picture in pixels of the image.
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
    """What `transform_whole` does to the PIL image before its pixels become numbers.

    It takes `whole` and `box` too, as `cropped` does.
    """
    return partial(_whole, config=expected(model, size), divisor=getattr(model, "size_divisor", 1))


def with_channels(image: "Image", count: int) -> "Image":
    """The image in gray or in RGB, by the number of channels, 1 or 3; itself if it is, or if it is one of floats."""
    mode = "L" if count == 1 else "RGB"
    return image if image.mode == mode or (count == 1 and image.mode == "F") else image.convert(mode)


def expected(model: nn.Module, size: int | None = None) -> DataConfig:
    """The model's DataConfig, for `size` pixels if that is not None; ArgumentError if it is of no PIL images."""
    config = stated(model, size)
    if len(config.mean) not in (1, 3):
        raise ArgumentError(
            f"{type(model).__name__} takes {len(config.mean)} channels: a PIL image has 3, or 1 if it is gray; featx "
            "extract takes files of any number of channels"
        )
    return config


def stated(model: nn.Module, size: int | None = None) -> DataConfig:
    """The model's DataConfig, for `size` pixels if that is not None; ArgumentError if it is not one of the model."""
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
    return resized_centre(
        with_channels(image, len(config.mean)), size, crop, config.interpolation, config.crop_rounding, fill, box
    )


def _whole(
    image: "Image", *, config: DataConfig, divisor: int, whole: tuple[int, int] | None = None, box: Box | None = None
) -> "Image":
    sides = _with_shorter(whole or image.size, min(config.size))
    width, height = (max(divisor, round(side / divisor) * divisor) for side in sides)
    return resized(with_channels(image, len(config.mean)), (width, height), config.interpolation, box)


def _with_shorter(whole: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) at the aspect of the whole, the shorter of them so many pixels, the longer rounded down."""
    width, height = (int(shorter * side / min(whole)) for side in whole)
    return width, height


def _normalised(image: "Image", *, prepare: "Callable[[Image], Image]", config: DataConfig) -> Tensor:
    """(chs, height, width); divided by 255 as in training, where a product with 1 / 255 would round differently."""
    pixels = np.array(prepare(image))
    channels = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    numbers = channels.to(torch.float32).div_(255).sub_(mean).div_(std)
    return numbers.flip(0) if config.channel_order == "bgr" else numbers
