"""Small labeled sets of images, made of scikit-image's photographs and textures, to probe trained networks on."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from skimage import data

SIDE = 224  # pixels of an image
CLASSES = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "moon", "rocket")
TEXTURES = ("brick", "grass", "gravel")
SMALLEST, LARGEST = 0.45, 0.9  # side of a crop, relative to the shorter side of the photograph


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(data, name)()).convert("RGB")


def random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A square crop, rotated, perhaps mirrored, in gray, of another brightness and contrast: color tells nothing."""
    side = round(min(image.size) * rng.uniform(SMALLEST, LARGEST))
    left, top = (rng.integers(whole - side + 1) for whole in image.size)
    crop = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    crop = crop.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC)
    crop = ImageOps.mirror(crop) if rng.random() < 0.5 else crop
    return jittered(crop, rng)


def jittered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    gray = ImageOps.autocontrast(image.convert("L")).convert("RGB")
    return ImageEnhance.Brightness(ImageEnhance.Contrast(gray).enhance(rng.uniform(0.4, 1.2))).enhance(
        rng.uniform(0.5, 1.3)
    )


def save_crops(folder: Path, per_class: int, seed: int = 0) -> Path:
    """Random crops of each photograph, in a folder per photograph."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        image = photograph(name)
        for number in range(per_class):
            random_crop(image, rng).save(folder / name / f"{number:03d}.png")
    return folder


def save_mosaics(folder: Path, masks: Path, count: int, seed: int = 0) -> Path:
    """Mosaics of three textures, and masks of their ids: each pixel has the texture of the nearest of four points."""
    rng = np.random.default_rng(seed)
    for place in (folder, masks):
        place.mkdir(parents=True)
    textures = [photograph(name) for name in TEXTURES]
    for number in range(count):
        points, ids = rng.uniform(0, SIDE, (4, 2)), rng.permutation([0, 1, 2, rng.integers(3)])
        grid = np.stack(np.mgrid[:SIDE, :SIDE], -1)[:, :, None]
        mask = ids[np.linalg.norm(grid - points, axis=-1).argmin(-1)].astype(np.uint8)
        layers = np.stack([np.asarray(random_crop(texture, rng)) for texture in textures])
        pixels = np.take_along_axis(layers, mask[None, :, :, None].astype(int), 0)[0]
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        Image.fromarray(mask).save(masks / f"{number:03d}.png")
    return folder
