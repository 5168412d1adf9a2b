"""The engine: image files in, batches of maps out, decoded ahead of the model."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..errors import ImageError
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import maps_in
from .images import open_image

Prepare = Callable[[Image.Image], Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """Maps of the images that could be read: one (n, chs, h, w) tensor per level, on the CPU, rows as in `sources`.

    sizes: (width, height) of each file's image in pixels. failed: reason by file.
    """

    sources: list[Path]
    sizes: list[tuple[int, int]]
    maps: list[Tensor]
    failed: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image file as the model wants it, or the reason why not."""

    source: Path
    size: tuple[int, int] = (0, 0)
    pixels: Tensor | None = None
    reason: str = ""


def map_batches(
    extractor: FeatureExtractWrapper, paths: Sequence[Path], prepare: Prepare, *, batch_size: int, dtype: torch.dtype
) -> Iterator[Batch]:
    """Maps of every image, `batch_size` files at a time, in order.

    prepare: from an RGB image to the model's input. dtype: of the returned maps; an image whose maps do not fit into it
    has failed. The next batch is decoded in threads while the model works on this one.
    """
    chunks = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    with ThreadPoolExecutor() as pool:
        ahead = [pool.submit(_decode, path, prepare) for path in chunks[0]]
        for following in [*chunks[1:], []]:
            current, ahead = ahead, [pool.submit(_decode, path, prepare) for path in following]
            yield _run(extractor, [future.result() for future in current], dtype)


def _decode(path: Path, prepare: Prepare) -> Decoded:
    try:
        image = open_image(path)
    except ImageError as error:
        return Decoded(path, reason=str(error))
    return Decoded(path, image.size, prepare(image))


@torch.inference_mode()
def _run(extractor: FeatureExtractWrapper, images: list[Decoded], dtype: torch.dtype) -> Batch:
    failed = {image.source: image.reason for image in images if image.reason}
    good = [image for image in images if image.pixels is not None]
    if not good:
        return Batch([], [], [], failed)
    device = next(extractor.parameters(), torch.empty(0)).device
    maps = extractor(torch.stack([image.pixels for image in good if image.pixels is not None]).to(device))
    maps = [map_.to("cpu", dtype) for map_ in maps_in(maps)]
    finite = torch.stack([map_.flatten(1).isfinite().all(1) for map_ in maps]).all(0).tolist()
    for image in (image for image, is_finite in zip(good, finite, strict=True) if not is_finite):
        failed[image.source] = f"its maps do not fit into {dtype}: they hold infinite values or NaN"
    kept = [row for row, is_finite in enumerate(finite) if is_finite]
    return Batch(
        [good[row].source for row in kept], [good[row].size for row in kept], [map_[kept] for map_ in maps], failed
    )
