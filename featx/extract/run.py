"""Extract a folder of images: the engine and the writer put together."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image

from ..errors import ArgumentError
from ..preprocessing import transform
from ..wrappers import FeatureExtractWrapper
from .batches import map_batches
from .images import find_images
from .writer import MapsWriter


@dataclass(frozen=True, slots=True)
class Summary:
    """What an extraction did: images written, reason by file for those that were not, files of maps and their bytes."""

    written: int
    failed: dict[Path, str]
    shards: list[Path]
    nbytes: int


def extract(
    inputs: Iterable[str | Path],
    extractor: FeatureExtractWrapper,
    out: str | Path,
    *,
    size: int | None = None,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    made_by: dict[str, Any] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Summary:
    """Write the maps of all images in `inputs` (files and folders) to the folder `out` (see `writer`).

    A bad image is recorded with its reason and does not stop the others.

    size: pixels of the square each image is resized and cropped to; None is what the weights expect.
    made_by: what `meta.json` says about the model and its weights beside levels and preprocessing.
    progress: called with (files done, files in all) after every batch.

    Raises ArgumentError for inputs that do not exist, a batch size below 1 or a model in training mode, OutputError if
    `out` cannot be written, InputError for a size the model does not take.
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size={batch_size}: expected a positive number of images")
    if extractor.training:
        raise ArgumentError("the model is in training mode, where maps depend on the batch: call model.eval() first")
    paths = find_images(inputs)
    prepare = transform(extractor, size=size)
    extractor._check(prepare(Image.new("RGB", (8, 8)))[None])  # before anything is written
    written, failed = 0, {}
    with MapsWriter(out, extractor.feature_info, _meta(extractor, size, dtype, made_by or {})) as writer:
        for batch in map_batches(extractor, paths, prepare, batch_size=batch_size, dtype=dtype):
            writer.add(batch)
            written += len(batch.sources)
            failed |= batch.failed
            if progress is not None:
                progress(written + len(failed), len(paths))
    return Summary(written, failed, writer.shards, sum(shard.stat().st_size for shard in writer.shards))


def _meta(
    extractor: FeatureExtractWrapper, size: int | None, dtype: torch.dtype, made_by: dict[str, Any]
) -> dict[str, Any]:
    config = extractor.data_config
    return {
        **made_by,
        "levels": [asdict(level) for level in extractor.feature_info],
        "dtype": str(dtype).removeprefix("torch."),
        "preprocessing": {**(asdict(config) if config else {}), **({"size": [size, size]} if size else {})},
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
    }
