"""ICC profiles: the colours of a picture in sRGB, which is what models were trained on."""

from functools import lru_cache
from io import BytesIO
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageCms

ColorManagement = Literal["srgb", "none"]
COLOR_MANAGEMENT = get_args(ColorManagement)
# A transform that moves no colour of a grid further than this leaves sRGB alone: profiles of it differ by rounding.
SAME = 1
GRID = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), axis=-1).reshape(1, -1, 3)
# Modes that a profile is applied in, by the mode that Pillow decodes to.
PLAIN = {"P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "YCbCr": "RGB"}


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture in sRGB; itself if that is what its profile says, if it has none, or if the profile is broken."""
    if image.mode == "LAB":
        profile = _lab()
    if not profile or image.mode == "1":
        return image
    if image.has_transparency_data and "A" not in image.getbands():
        image = image.convert("RGBA")
    if image.mode in PLAIN:
        image = image.convert(PLAIN[image.mode])
    colours = image.convert(image.mode[:-1]) if image.mode in ("LA", "RGBA") else image
    transform = _transform(profile, colours.mode)
    if transform is None:
        return image
    converted = ImageCms.applyTransform(colours, transform)
    assert converted is not None
    if colours is not image:
        converted.putalpha(image.getchannel("A"))
    return converted


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile to sRGB; None if it is sRGB, for other channels than the picture's, or broken."""
    try:
        given = ImageCms.ImageCmsProfile(BytesIO(profile))
        found = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")
        grid = Image.fromarray(GRID)
        moved = ImageCms.applyTransform(grid, found) if mode == "RGB" else None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    is_srgb = moved is not None and np.abs(np.asarray(moved).astype(int) - GRID).max() <= SAME
    return None if is_srgb else found


@lru_cache(maxsize=1)
def _lab() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
