"""Preprocessing of transformers' models: preprocessor_config.json as a DataConfig.

`featx.transform` then returns the values of the package's image processors with the backend "pil". With the backend
"torchvision" these resize tensors, which changes values by at most 1/255.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, CheckpointError
from ..preprocessing import DataConfig, share
from ..weights.hub_config import LARGEST_SIDE, NUMBERS, WORD, JsonType, read_json, require_json_types

FILE = "preprocessor_config.json"
Fields = Mapping[str, Any]
Sides = tuple[int, int]

# Settings of image processors: attributes of their classes, or entries of a file.
FIELDS = (
    *("do_resize", "size", "default_to_square", "crop_size", "crop_pct", "resample", "do_center_crop", "do_thumbnail"),
    *("do_pad", "keep_aspect_ratio", "ensure_multiple_of", "size_divisor", "do_flip_channel_order", "include_top"),
    *("do_rescale", "rescale_factor", "rescale_offset", "do_normalize", "image_mean", "image_std"),
)

# Settings of processors that no field changes.
FIXED: Mapping[str, Fields] = {
    "MobileViTImageProcessor": {"do_normalize": False},
    "PPLCNetImageProcessor": {"do_flip_channel_order": True, "do_pad": True},  # rounds the longer side differently
}


def _are_sides(value: Any) -> bool:
    """Whether the value is a side, [height, width], or a dictionary of sides."""
    sides = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    valid = all(side is None or (type(side) is int and 0 < side <= LARGEST_SIDE) for side in sides)
    return valid and not (isinstance(value, list) and len(value) != 2)


def _are_channels(value: Any) -> bool:
    return NUMBERS.matches(value) and len(value) == 3 if isinstance(value, list) else NUMBERS.matches([value])


SIDES = JsonType(f"sides of at most {LARGEST_SIDE} pixels", _are_sides)
CHANNELS = JsonType("a number, or one for each of 3 channels", _are_channels)
NUMBER = JsonType("a number", lambda value: NUMBERS.matches([value]))
COUNT = JsonType("a count", lambda value: type(value) is int and 0 <= value <= LARGEST_SIDE)
KINDS = {
    **dict.fromkeys(("size", "crop_size"), SIDES),
    **dict.fromkeys(("image_mean", "image_std"), CHANNELS),
    **dict.fromkeys(("crop_pct", "rescale_factor"), NUMBER),
    **dict.fromkeys(("ensure_multiple_of", "size_divisor"), COUNT),
    "resample": JsonType("the number of a filter", lambda value: type(value) is int and 0 <= value <= 5),
    **dict.fromkeys(("image_processor_type", "feature_extractor_type"), WORD),
}


def data_config(where: str, config: Any, cache_dir: str | Path | None = None, revision: str = "main") -> DataConfig:
    """The preprocessing of the file at `where`, completed by the class of the image processor for `config`.

    Args:
        where: repository or folder; "" for a model type.
        config: the model's configuration, whose image size is used if there is no file.
        cache_dir: folder for downloads.
        revision: revision of the repository.

    Raises:
        CheckpointError: the file contains invalid values, such as a crop_pct of 0.
    """
    from transformers.utils.hub import cached_file

    kinds = ("missing_entries", "gated_repo", "connection_errors")
    no_errors: dict[str, Any] = {f"_raise_exceptions_for_{kind}": False for kind in kinds}
    path = cached_file(where, FILE, cache_dir=cache_dir, revision=revision, **no_errors) if where else None
    if not path:
        name, own = _processor_for(config.model_type), getattr(config, "image_size", None)
        fields = _fields_of(name)
        return _converted(_scaled(fields, own), name) if fields else DataConfig(_sides(own) or (224, 224), crop=1.0)
    file = read_json(Path(path), f" of {where}")
    require_json_types(file, KINDS, f"{FILE} of {where}")
    processor = file.get("image_processor_type") or file.get("feature_extractor_type") or ""
    name = _without_backend(processor) or _processor_for(config.model_type)
    try:
        return _converted({**_fields_of(name), **file}, name)
    except ArgumentError as error:
        raise CheckpointError(f"{FILE} of {where} contains an invalid value: {error}") from error


def _processor_for(model_type: str) -> str:
    """The name of the image processor for a model type; "" if it has none."""
    from transformers.models.auto import image_processing_auto

    names: Mapping[str, Any] = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
    name = names.get(model_type) or names.get(model_type.removesuffix("_vision_model")) or ""
    return _without_backend(name if isinstance(name, str) else name.get("pil") or name["torchvision"])


def _without_backend(name: str) -> str:
    """The name of a processor without its backend, in the spelling of the current version of the package."""
    return name.removesuffix("Pil").removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")


def _fields_of(name: str) -> dict[str, Any]:
    """Class attributes of a processor; none if the package has no such class, as for a repository's own code."""
    import transformers

    processor = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name, None) if name else None
    return {field: getattr(processor, field, None) for field in FIELDS} if processor else {}


def _scaled(data: Fields, image_size: Any) -> Fields:
    """The fields for a model of that image size: it becomes the size of the crop, and the resizing scales with it."""
    size, resized = _sides(image_size), _sides(data.get("size"))
    current = _sides(data.get("crop_size")) if _does_crop(data) else resized
    if size is None or size == current:
        return data
    height, width = (round(size[i] * resized[i] / current[i]) if resized and current else size[i] for i in (0, 1))
    sides = {"shortest_edge": min(height, width)} if _keeps_aspect(data) else {"height": height, "width": width}
    return {**data, "size": sides, "crop_size": {"height": size[0], "width": size[1]}}


def _converted(data: Fields, name: str) -> DataConfig:
    """The fields of an image processor as a DataConfig, with crop mode "other" if no other mode is equivalent."""
    data = {**data, **FIXED.get(name, {})}
    mean, std = _statistics(data)
    order = "bgr" if data.get("do_flip_channel_order") else "rgb"
    size = _sides(data.get("crop_size" if _does_crop(data) else "size")) or DataConfig().size
    other = DataConfig(size, mean, std, _interpolation(data), 1.0, "other", order, "down")
    if _varies(data):
        return other
    resized, mode, size = CROPS.get(name, _cropped)(data)
    if size is None:
        return other
    config = replace(other, size=size, crop=share(size[0], resized[0]), crop_mode=mode)
    return config if config.resized() == resized else other


def _varies(data: Fields) -> bool:
    """Whether the size of the result depends on the image's aspect ratio, or images get a border."""
    sides, multiple = _sides(data.get("size")), data.get("ensure_multiple_of") or 1
    if sides is None or sides[0] % multiple or sides[1] % multiple or not data.get("do_resize", True):
        return True
    return (data.get("size_divisor") or 1) > 1 or any(
        data.get(field) for field in ("do_pad", "do_thumbnail", "keep_aspect_ratio")
    )


def _cropped(data: Fields) -> tuple[Sides, str, Sides | None]:
    """The sides that the image is resized to, the crop mode, and the sides of the crop; None if it has none."""
    resized = _sides(data["size"])
    assert resized is not None
    size = _sides(data["crop_size"]) if _does_crop(data) else None
    return (resized, "center", size) if _keeps_aspect(data) else (resized, "squash", size or resized)


def _cropped_below_384(data: Fields) -> tuple[Sides, str, Sides | None]:
    """ConvNeXt: images of 384 pixels or more are not cropped."""
    (side, _), _, _ = _cropped(data)
    resized = _enlarged(side, data) if side < 384 else side
    return (resized, resized), "center" if side < 384 else "squash", (side, side)


def _cropped_by_share(data: Fields) -> tuple[Sides, str, Sides | None]:
    """PoolFormer: `size` is the crop of `crop_pct`, and squares keep the image's aspect ratio."""
    (height, width), _, size = _cropped(data)
    mode = "center" if height == width else "squash"
    return (_enlarged(height, data), _enlarged(width, data)), mode, size


def _cropped_from_256(data: Fields) -> tuple[Sides, str, Sides | None]:
    """LeViT: the shorter side becomes 256/224 of `size`."""
    (side, width), mode, size = _cropped(data)
    enlarged = int(256 / 224 * side)
    return ((enlarged, enlarged) if mode == "center" else (side, width)), mode, size


CROPS: Mapping[str, Callable[[Fields], tuple[Sides, str, Sides | None]]] = {
    "ConvNextImageProcessor": _cropped_below_384,
    "PoolFormerImageProcessor": _cropped_by_share,
    "LevitImageProcessor": _cropped_from_256,
}


def _enlarged(side: int, data: Fields) -> int:
    fraction = data.get("crop_pct") or 0
    if not 1e-3 <= fraction <= side:
        raise ArgumentError(f"crop_pct={data.get('crop_pct')}: expected a positive share, such as 0.875")
    return int(side / fraction)


def _does_crop(data: Fields) -> bool:
    return bool(data.get("do_center_crop", "crop_size" in data))


def _keeps_aspect(data: Fields) -> bool:
    size = data.get("size")
    return "shortest_edge" in size if isinstance(size, Mapping) else data.get("default_to_square") is False


def _statistics(data: Fields) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for pixels in [0, 1] that are equivalent to a processor's operations on pixels in [0, 255]."""
    if "image_mean" not in data:
        return DataConfig().mean, DataConfig().std
    mean, std = (_per_channel(data.get(field)) for field in ("image_mean", "image_std"))
    rescales = data.get("do_rescale", True)
    scale = 255 * ((data.get("rescale_factor") or 1 / 255) if rescales else 1)
    offset = 1 if rescales and data.get("rescale_offset") else 0
    second_std = std if data.get("include_top") else (1.0,) * 3
    if not data.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    return (
        tuple((value + offset) / scale for value in mean),
        tuple(first * second / scale for first, second in zip(std, second_std, strict=True)),
    )


def _per_channel(value: Any) -> tuple[float, ...]:
    """The value per channel; 1 for None."""
    if value is None:
        return (1.0,) * 3
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(value)


def _interpolation(data: Fields) -> str:
    """Pillow's name of the filter; by default bilinear, as in the package."""
    from PIL import Image

    resample = data.get("resample")
    return Image.Resampling(2 if resample is None else int(resample)).name.lower()


def _sides(size: Any) -> Sides | None:
    """(height, width) of a size in any of the package's formats; None if it does not determine both."""
    if isinstance(size, Mapping):
        if {"longest_edge", "max_height", "max_width"} & {key for key, value in size.items() if value}:
            return None
        shortest = size.get("shortest_edge")
        size = (size.get("height", shortest), size.get("width", shortest))
    if isinstance(size, int):
        size = (size, size)
    return (int(size[0]), int(size[1])) if size and None not in size else None
