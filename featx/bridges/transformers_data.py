"""How the weights of a model of transformers expect images: its preprocessor_config.json.

The package's image processors are stated as a DataConfig, so that `featx.transform` gives what they give with the
backend "pil"; with the backend "torchvision" they resize tensors, which moves values by up to one step of 255.
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

# What a processor does, as attributes of its class or entries of a file.
FIELDS = (
    *("do_resize", "size", "default_to_square", "crop_size", "crop_pct", "resample", "do_center_crop", "do_thumbnail"),
    *("do_pad", "keep_aspect_ratio", "ensure_multiple_of", "size_divisor", "do_flip_channel_order", "include_top"),
    *("do_rescale", "rescale_factor", "rescale_offset", "do_normalize", "image_mean", "image_std"),
)

# What processors do whatever their fields say.
ALWAYS: Mapping[str, Fields] = {
    "MobileViTImageProcessor": {"do_normalize": False},
    "PPLCNetImageProcessor": {"do_flip_channel_order": True, "do_pad": True},  # rounds the longer side, as no other
}


def _are_sides(value: Any) -> bool:
    """A side, [height, width], or sides by name."""
    sides = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    counted = all(side is None or (type(side) is int and 0 < side <= LARGEST_SIDE) for side in sides)
    return counted and not (isinstance(value, list) and len(value) != 2)


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
    """What the file at `where` states, and the package's image processor for `config` where it is silent.

    The size is the model's own where no file says another. Raises CheckpointError for a file that states what cannot
    be, such as a crop_pct of 0.
    """
    from transformers.utils.hub import cached_file

    silent = ("missing_entries", "gated_repo", "connection_errors")
    silence: dict[str, Any] = {f"_raise_exceptions_for_{kind}": False for kind in silent}
    path = cached_file(where, FILE, cache_dir=cache_dir, revision=revision, **silence) if where else None
    if not path:
        name, own = _processor_for(config.model_type), getattr(config, "image_size", None)
        fields = _fields_of(name)
        return _stated(_fitted(fields, own), name) if fields else DataConfig(_sides(own) or (224, 224), crop=1.0)
    read = read_json(Path(path), f" of {where}")
    require_json_types(read, KINDS, f"{FILE} of {where}")
    named = read.get("image_processor_type") or read.get("feature_extractor_type") or ""
    name = _without_backend(named) or _processor_for(config.model_type)
    try:
        return _stated({**_fields_of(name), **read}, name)
    except ArgumentError as error:
        raise CheckpointError(f"{FILE} of {where} states what cannot be: {error}") from error


def _processor_for(kind: str) -> str:
    """The name of the image processor for a type of model; "" if it has none."""
    from transformers.models.auto import image_processing_auto

    known: Mapping[str, Any] = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
    found = known.get(kind) or known.get(kind.removesuffix("_vision_model")) or ""
    return _without_backend(found if isinstance(found, str) else found.get("pil") or found["torchvision"])


def _without_backend(name: str) -> str:
    """The name of a processor whatever its backend, also of one that an older version of the package wrote."""
    return name.removesuffix("Pil").removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")


def _fields_of(name: str) -> dict[str, Any]:
    """Class attributes of a processor; none if the package has no such class, as for a repository's own code."""
    import transformers

    processor = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name, None) if name else None
    return {field: getattr(processor, field, None) for field in FIELDS} if processor else {}


def _fitted(data: Fields, own: Any) -> Fields:
    """The fields for a model of images of that size: what is cropped has it, what is resized in proportion."""
    size, resized = _sides(own), _sides(data.get("size"))
    made = _sides(data.get("crop_size")) if _does_crop(data) else resized
    if size is None or size == made:
        return data
    height, width = (round(size[at] * resized[at] / made[at]) if resized and made else size[at] for at in (0, 1))
    sides = {"shortest_edge": min(height, width)} if _keeps_aspect(data) else {"height": height, "width": width}
    return {**data, "size": sides, "crop_size": {"height": size[0], "width": size[1]}}


def _stated(data: Fields, name: str) -> DataConfig:
    """The fields of an image processor of that class as ours; crop mode "other" where no mode does what it does."""
    data = {**data, **ALWAYS.get(name, {})}
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
    """Whether images of other aspects come out in other sizes, or with a border."""
    sides, multiple = _sides(data.get("size")), data.get("ensure_multiple_of") or 1
    if sides is None or sides[0] % multiple or sides[1] % multiple or not data.get("do_resize", True):
        return True
    return (data.get("size_divisor") or 1) > 1 or any(
        data.get(field) for field in ("do_pad", "do_thumbnail", "keep_aspect_ratio")
    )


def _cropped(data: Fields) -> tuple[Sides, str, Sides | None]:
    """The sides that the image is resized to, the mode, and the sides of the crop, None if it has none of its own."""
    resized = _sides(data["size"])
    assert resized is not None
    size = _sides(data["crop_size"]) if _does_crop(data) else None
    return (resized, "center", size) if _keeps_aspect(data) else (resized, "squash", size or resized)


def _cropped_below_384(data: Fields) -> tuple[Sides, str, Sides | None]:
    """ConvNeXt's way: large images are not cropped."""
    (side, _), _, _ = _cropped(data)
    resized = _enlarged(side, data) if side < 384 else side
    return (resized, resized), "center" if side < 384 else "squash", (side, side)


def _cropped_by_share(data: Fields) -> tuple[Sides, str, Sides | None]:
    """PoolFormer's way: `size` is what is left by `crop_pct`, and squares keep the image's aspect."""
    (height, width), _, size = _cropped(data)
    mode = "center" if height == width else "squash"
    return (_enlarged(height, data), _enlarged(width, data)), mode, size


def _cropped_from_256(data: Fields) -> tuple[Sides, str, Sides | None]:
    """LeViT's way: the shorter side becomes 256 of 224 pixels."""
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
    """Mean and std of pixels in [0, 1] that come to the same as what a processor computes of pixels in [0, 255]."""
    if "image_mean" not in data:
        return DataConfig().mean, DataConfig().std
    mean, std = (_per_channel(data.get(field)) for field in ("image_mean", "image_std"))
    rescales = data.get("do_rescale", True)
    scale = 255 * ((data.get("rescale_factor") or 1 / 255) if rescales else 1)
    offset = 1 if rescales and data.get("rescale_offset") else 0
    last = std if data.get("include_top") else (1.0,) * 3
    if not data.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    return (
        tuple((one + offset) / scale for one in mean),
        tuple(one * again / scale for one, again in zip(std, last, strict=True)),
    )


def _per_channel(stated: Any) -> tuple[float, ...]:
    """A number or one per channel; none changes nothing."""
    if stated is None:
        return (1.0,) * 3
    return (float(stated),) * 3 if isinstance(stated, int | float) else tuple(stated)


def _interpolation(data: Fields) -> str:
    """Pillow's name of the filter; the package takes bilinear where none is stated."""
    from PIL import Image

    resample = data.get("resample")
    return Image.Resampling(2 if resample is None else int(resample)).name.lower()


def _sides(size: Any) -> Sides | None:
    """(height, width) of the ways in which the package writes sizes; None for those that leave one open."""
    if isinstance(size, Mapping):
        if {"longest_edge", "max_height", "max_width"} & {key for key, value in size.items() if value}:
            return None
        shortest = size.get("shortest_edge")
        size = (size.get("height", shortest), size.get("width", shortest))
    if isinstance(size, int):
        size = (size, size)
    return (int(size[0]), int(size[1])) if size and None not in size else None
