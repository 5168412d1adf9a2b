"""embed: a vector per image, in memory, the same that extract would store."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, Unpack

import numpy as np
from PIL import Image
from torch import nn

from ..errors import ArgumentError, ImageError, shortened
from ..features import OutIndices
from ..wrappers import FeatureExtractWrapper
from .config import Fields, Pooling, Recipe, Resources, parted
from .decoder import decoder_for
from .extractor import extractor_for
from .inference import Model, fastest_batch_size, is_filled
from .inputs import Input, find_items
from .meta import Plan
from .pipeline import shards
from .shard import Failure
from .sources import Items

ROWS = 1024  # images whose vectors are put together at once
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # of pictures that a PNG holds as they are
TIFF_MODES = ("I", "F", "CMYK", "LAB")

Picture = Input | Image.Image
Member = tuple[Items, int] | Image.Image


def embed(
    images: Picture | Items | Iterable[Picture],
    model: str | nn.Module,
    pool: Pooling = "mean",
    *,
    out_indices: OutIndices | None = None,
    errors: Literal["raise", "nan"] = "raise",
    **fields: Unpack[Fields],
) -> np.ndarray:
    """A vector per image, (images, chs) in float32 and in the order given: what `featx.extract` stores, in memory.

    For as many images as fit into memory with their vectors; `featx.extract` is for folders of any size, and goes on.

    images: a picture, or several: files, PIL images, and what `featx.bulk.find_items` finds images in, such as folders,
        whose images come in the order of their names.
    model: a name, which takes its published weights, or a module in eval mode: an extractor of one level, or a model
        that can be made one, such as a classifier, whose deepest level is taken unless `out_indices` chooses another.
    pool: from a map to a vector; see `featx.bulk.Recipe`.
    errors: "raise" an ImageError that names the images which cannot be decoded, or have them be rows of NaN.
    fields: of a `featx.bulk.Recipe` and of `featx.bulk.Resources`, such as size, device and batch_size.

    Raises ArgumentError for inputs that do not exist, for another pool or model, and for an extractor of several
    levels; ImageError for images that cannot be decoded, unless they are to be rows of NaN.
    """
    if pool == "none" or not isinstance(pool, str):
        raise ArgumentError(
            f"pool={pool!r}: expected one that gives a vector, such as 'mean'; featx.extract keeps maps"
        )
    if errors not in ("raise", "nan"):
        raise ArgumentError(f"errors={errors!r}: choose 'raise' or 'nan'")
    if taken := [name for name in ("pooling", "dtype") if name in fields]:
        raise ArgumentError(f"embed takes no {taken[0]}: pool is the pooling, and vectors are in float32")
    recipe, resources = parted(None, None, {**fields, "pooling": pool}, ("pool", "out_indices", "errors"))
    if out_indices is None and pool != "pre_logits" and not _has_levels(model):
        out_indices = [-1]
    extractor, _ = extractor_for(model, out_indices, recipe)
    if len(extractor.feature_info) != 1:
        names = extractor.feature_info.names()
        raise ArgumentError(f"embed gives one vector per image, and this extractor has the levels {names}: choose one")
    if extractor.training:
        raise ArgumentError("the model is in training mode, where maps depend on the batch: call model.eval() first")
    return _vectors(extractor, recipe, resources.settled(), Gathered(tuple(_members(images))), errors)


def _has_levels(model: object) -> bool:
    """Whether it is an extractor, whose levels were chosen when it was made."""
    return isinstance(model, FeatureExtractWrapper)


def _vectors(
    extractor: FeatureExtractWrapper, recipe: Recipe, resources: Resources, given: "Gathered", errors: str
) -> np.ndarray:
    items = Items([given], [""])
    decoder, model = decoder_for(extractor, items, recipe), Model(extractor, recipe, resources)
    model.batch_size = resources.batch_size or fastest_batch_size(model, decoder.pixels(Image.new("RGB", (96, 64))))
    model.fills = is_filled(len(items), model.batch_size, recipe)
    made = np.full((len(items), extractor.feature_info[0].chs), np.nan, np.float32)
    failed: list[Failure] = []
    plan = Plan({}, len(items), "", ROWS)
    for shard in shards(plan, range(plan.shards), decoder, model, resources, lambda *_: None):
        failed += shard.failed
        for id_, vector in zip(shard.ids, shard.maps[0] if shard.maps else [], strict=True):
            made[int(id_)] = vector.numpy()
    if failed and errors == "raise":
        listed = "".join(f"\n  {line}" for line in shortened(f"{one.source}: {one.reason}" for one in failed))
        raise ImageError(f"{len(failed)} of {len(items)} images have no vector (errors='nan' goes on):{listed}")
    return made


def _members(images: Picture | Items | Iterable[Picture]) -> Iterator[Member]:
    if isinstance(images, Items):
        yield from ((images, index) for index in range(len(images)))
        return
    for one in [images] if isinstance(images, str | os.PathLike | Image.Image) else images:
        if isinstance(one, Image.Image):
            yield one
        elif isinstance(one, str | os.PathLike):
            found = find_items(one)
            yield from ((found, index) for index in range(len(found)))
        else:
            raise ArgumentError(f"images has a {type(one).__name__}: expected paths and PIL images")


@dataclass(frozen=True, slots=True)
class Gathered:
    """Images in the order in which they were given, as often as they were."""

    members: Sequence[Member]

    @property
    def names(self) -> Sequence[str]:
        return [str(index) for index in range(len(self.members))]

    def where(self, index: int) -> str:
        """The path or address of an image, or its place among those given."""
        member = self.members[index]
        return f"images[{index}]" if isinstance(member, Image.Image) else member[0].where(member[1])

    def read(self, index: int) -> bytes:
        """The file of an image, or one of the same pixels, profile and orientation."""
        member = self.members[index]
        return _as_file(member) if isinstance(member, Image.Image) else member[0].read(member[1])


def _as_file(image: Image.Image) -> bytes:
    """A file without loss, so that pictures in memory are decoded by the same rules as others."""
    kind = "TIFF" if image.mode in TIFF_MODES else "PNG"
    kept = image if image.mode in (*PNG_MODES, *TIFF_MODES) else image.convert("RGB")
    file = BytesIO()
    try:
        kept.save(file, kind, exif=image.getexif(), **({"compress_level": 0} if kind == "PNG" else {}))
    except Exception as error:  # one that is decoded only now raises whatever its decoder does
        raise ImageError(f"{error}" or type(error).__name__) from error
    return file.getvalue()
