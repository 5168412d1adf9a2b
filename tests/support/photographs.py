"""Photographs in many formats and color spaces."""

import io
import struct

import numpy as np
from PIL import Image, ImageCms

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 65536, (32, 48), dtype=np.uint16)
COLORS = RNG.integers(0, 65536, (32, 48, 3), dtype=np.uint16)
PHOTOGRAPH = Image.fromarray((COLORS[:8, :12] >> 8).astype(np.uint8)).resize((120, 80), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def profile(primaries: dict[str, tuple[float, float, float]], gamma: float) -> bytes:
    """An ICC profile of a display: XYZ of its primaries under D50, and one exponent."""

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
    }
    tags |= {b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    tags |= {f"{name}XYZ".encode(): xyz(values) for name, values in primaries.items()}
    tags |= {f"{name}TRC".encode(): curve for name in primaries}
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + body


ADOBE_RGB = {"r": (0.60974, 0.31111, 0.01947), "g": (0.20528, 0.62567, 0.06087), "b": (0.14919, 0.06322, 0.74457)}
ADOBE = profile(ADOBE_RGB, 563 / 256)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def to_srgb(colors: np.ndarray) -> np.ndarray:
    """AdobeRGB to sRGB by their definitions: 8 bits, linear light, the primaries' matrices, and back."""
    linear = (colors / 255) ** (563 / 256)
    matrix = np.array([ADOBE_RGB[name] for name in "rgb"]).T
    srgb = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    light = np.clip(linear @ (np.linalg.inv(srgb) @ matrix).T, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
