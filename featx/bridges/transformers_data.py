"""How the weights of a model of transformers expect images: its preprocessor_config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..preprocessing import DataConfig

FILE = "preprocessor_config.json"
FIELDS = ("size", "crop_size", "crop_pct", "resample", "image_mean", "image_std", "do_center_crop", "do_normalize")

# PIL's numbers of its filters.
FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def data_config(where: str, config: Any, cache_dir: str | Path | None = None, revision: str = "main") -> DataConfig:
    """What the file at `where` states, and the package's image processor for `config` where it is silent.

    The size is the model's own where no file says another.
    """
    from transformers.utils.hub import cached_file

    silent = ("missing_entries", "gated_repo", "connection_errors")
    silence: dict[str, Any] = {f"_raise_exceptions_for_{kind}": False for kind in silent}
    path = cached_file(where, FILE, cache_dir=cache_dir, revision=revision, **silence) if where else None
    if path:
        return _stated({**_defaults(config), **json.loads(Path(path).read_bytes())})
    own = getattr(config, "image_size", None)
    data = _defaults(config)
    return _stated({**data, "size": own, "crop_size": None} if own else data)


def _defaults(config: Any) -> dict[str, Any]:
    """Class attributes of the image processor for this type of model, if it has one."""
    import transformers
    from transformers.models.auto import image_processing_auto

    known: Mapping[str, Any] = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
    kind = config.model_type
    found = known.get(kind) or known.get(kind.removesuffix("_vision_model"))
    name = found.get("pil") or found.get("torchvision") if isinstance(found, Mapping) else found
    processor = getattr(transformers, name, None) if name else None
    return {field: getattr(processor, field, None) for field in FIELDS} if processor else {}


def _stated(data: Mapping[str, Any]) -> DataConfig:
    """The fields of an image processor as ours."""
    default = DataConfig()
    known = "image_mean" in data  # a processor without them, or told not to use them, leaves pixels in [0, 1]
    normal = data.get("do_normalize", True) and data.get("image_mean")
    resized, cropped = _sides(data.get("size")), _sides(data.get("crop_size"))
    crop = data.get("crop_pct") or 1.0
    if cropped and resized and data.get("do_center_crop") is not False:
        crop = min(cropped[0] / resized[0], 1.0)
    return DataConfig(
        size=cropped or resized or default.size,
        mean=tuple(data["image_mean"]) if normal else (0.0,) * 3 if known else default.mean,
        std=tuple(data["image_std"]) if normal else (1.0,) * 3 if known else default.std,
        interpolation=FILTERS.get(int(data.get("resample") or 3), "bicubic"),
        crop=crop,
    )


def _sides(size: Any) -> tuple[int, int] | None:
    """(height, width) of the ways in which the package writes sizes."""
    if isinstance(size, Mapping):
        shortest = size.get("shortest_edge")
        size = (size.get("height", shortest), size.get("width", shortest))
    if isinstance(size, int):
        size = (size, size)
    return (int(size[0]), int(size[1])) if size and None not in size else None
