"""Conversion of images with ICC profiles to sRGB, which models were trained on."""

from functools import lru_cache
from io import BytesIO
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageCms

ColorManagement = Literal["srgb", "none"]
COLOR_MANAGEMENT = get_args(ColorManagement)
# A transform that moves no color of the grid further than this counts as sRGB: sRGB profiles differ by rounding.
SAME = 1
GRID = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), axis=-1).reshape(1, -1, 3)
# The mode to convert to before applying a profile, by the mode that Pillow decodes to.
PLAIN = {"P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "YCbCr": "RGB"}


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image to sRGB. An image without a profile, with an sRGB profile or with a broken one is returned."""
    if image.mode == "LAB":
        profile = _lab()
    if not profile or image.mode == "1":
        return image
    if image.has_transparency_data and "A" not in image.getbands():
        image = image.convert("RGBA")
    if image.mode in PLAIN:
        image = image.convert(PLAIN[image.mode])
    opaque = image.convert(image.mode[:-1]) if image.mode in ("LA", "RGBA") else image
    transform = _transform(profile, opaque.mode)
    if transform is None:
        return image
    converted = ImageCms.applyTransform(opaque, transform)
    assert converted is not None
    if opaque is not image:
        converted.putalpha(image.getchannel("A"))
    return converted


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from the profile to sRGB; None for an sRGB profile, one for other channels, or a broken one."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        grid = Image.fromarray(GRID)
        moved = ImageCms.applyTransform(grid, transform) if mode == "RGB" else None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    is_srgb = moved is not None and np.abs(np.asarray(moved).astype(int) - GRID).max() <= SAME
    return None if is_srgb else transform


@lru_cache(maxsize=1)
def _lab() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
