"""The function `embed`, which returns a vector per image in memory, equal to those that `extract` stores."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import numpy as np
from PIL import Image
from torch import nn

from ..errors import ArgumentError, ImageError, shortened
from ..features import OutIndices
from ..images import encoded
from ..wrappers import FeatureExtractWrapper
from .config import Pooling, Recipe, Resources, VectorFields, split_keywords
from .decoder import decoder_for
from .extractor import extractor_for
from .inference import InferenceModel, fastest_batch_size, pads_batches
from .inputs import Input, find_items
from .meta import Plan
from .pipeline import shards
from .shard import Failure
from .sources import Items

ROWS = 1024  # images per shard of the pipeline

Picture = Input | Image.Image
Member = tuple[Items, int] | Image.Image


def embed(
    images: Picture | Items | Iterable[Picture],
    model: str | nn.Module,
    pooling: Pooling = "mean",
    *,
    out_indices: OutIndices | None = None,
    errors: Literal["raise", "nan"] = "raise",
    **fields: Unpack[VectorFields],
) -> np.ndarray:
    """A vector per image, equal to the vectors that `featx.extract` stores.

    Use it for images whose vectors fit into memory; `featx.extract` handles folders of any size, and can resume.

    Args:
        images: an image or several: files, PIL images, and inputs of `featx.bulk.find_items`, such as folders, whose
            images are in the order of their names.
        model: a name, which loads its published weights, or a module in eval mode: an extractor of one level, or a
            model that can be wrapped in one, such as a classifier.
        pooling: from a map to a vector; see `featx.bulk.Recipe`.
        out_indices: the level; the deepest by default. Not allowed for an extractor.
        errors: "raise" an ImageError that lists the images that cannot be decoded, or set their rows to "nan".
        fields: fields of `featx.bulk.Recipe` and `featx.bulk.Resources`, such as size, device and batch_size.

    Returns:
        A float32 array (images, chs) in the order of `images`.

    Raises:
        ArgumentError: an input does not exist, an argument or the model is invalid, or the extractor has several
            levels.
        ImageError: images cannot be decoded, and `errors` is "raise".
    """
    if pooling == "none" or not isinstance(pooling, str):
        raise ArgumentError(
            f"pooling={pooling!r}: expected one that gives a vector, such as 'mean'; featx.extract keeps maps"
        )
    if errors not in ("raise", "nan"):
        raise ArgumentError(f"errors={errors!r}: choose 'raise' or 'nan'")
    if "dtype" in fields:
        raise ArgumentError("embed has no argument dtype: vectors are in float32")
    recipe, resources = split_keywords(None, None, {**fields, "pooling": pooling}, ("out_indices", "errors"))
    if out_indices is None and pooling != "pre_logits" and not _has_levels(model):
        out_indices = [-1]
    extractor, _ = extractor_for(model, out_indices, recipe)
    if len(extractor.feature_info) != 1:
        names = extractor.feature_info.names()
        raise ArgumentError(f"embed gives one vector per image, and this extractor has the levels {names}: choose one")
    if extractor.training:
        raise ArgumentError("the model is in training mode, where maps depend on the batch: call model.eval() first")
    return _vectors(extractor, recipe, resources.settled(), ImageCollection(tuple(_members(images))), errors)


def _has_levels(model: object) -> bool:
    """Whether the model is an extractor, whose levels are fixed."""
    return isinstance(model, FeatureExtractWrapper)


def _vectors(
    extractor: FeatureExtractWrapper, recipe: Recipe, resources: Resources, images: "ImageCollection", errors: str
) -> np.ndarray:
    items = Items([images], [""])
    decoder, model = decoder_for(extractor, items, recipe), InferenceModel(extractor, recipe, resources)
    model.batch_size = resources.batch_size or fastest_batch_size(model, decoder.pixels(Image.new("RGB", (96, 64))))
    model.pads = pads_batches(len(items), model.batch_size, recipe)
    vectors = np.full((len(items), extractor.feature_info[0].chs), np.nan, np.float32)
    failed: list[Failure] = []
    plan = Plan({}, len(items), "", ROWS)
    for shard in shards(plan, range(plan.shards), decoder, model, resources, lambda *_: None):
        failed += shard.failed
        for id_, vector in zip(shard.ids, shard.maps[0] if shard.maps else [], strict=True):
            vectors[int(id_)] = vector.numpy()
    if failed and errors == "raise":
        listed = "".join(f"\n  {line}" for line in shortened(f"{image.source}: {image.reason}" for image in failed))
        raise ImageError(
            f"{len(failed)} of {len(items)} images have no vector (errors='nan' gives rows of NaN):{listed}"
        )
    return vectors


def _members(images: Picture | Items | Iterable[Picture]) -> Iterator[Member]:
    if isinstance(images, Items):
        yield from ((images, index) for index in range(len(images)))
        return
    for image in [images] if isinstance(images, str | os.PathLike | Image.Image) else images:
        if isinstance(image, Image.Image):
            yield image
        elif isinstance(image, str | os.PathLike):
            items = find_items(image)
            yield from ((items, index) for index in range(len(items)))
        else:
            raise ArgumentError(f"images has a {type(image).__name__}: expected paths and PIL images")


@dataclass(frozen=True, slots=True)
class ImageCollection:
    """A source of the images passed to `embed`, in their order, repeated images included."""

    members: Sequence[Member]

    @property
    def names(self) -> Sequence[str]:
        return [str(index) for index in range(len(self.members))]

    def where(self, index: int) -> str:
        """The path or address of an image, or "images[index]" for a PIL image."""
        member = self.members[index]
        return f"images[{index}]" if isinstance(member, Image.Image) else member[0].where(member[1])

    def read(self, index: int) -> bytes:
        """The bytes of an image file; of a PIL image, a file with the same pixels, profile and orientation."""
        member = self.members[index]
        return encoded(member) if isinstance(member, Image.Image) else member[0].read(member[1])
