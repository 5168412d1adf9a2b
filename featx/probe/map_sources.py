"""Sources of maps to probe: a folder that `featx.extract` wrote, or images and an extractor."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, Unpack

import torch
from torch import Tensor, nn

from ..bulk.config import ImageFields, ResourcesFields, split_keywords
from ..bulk.decoder import decoder_for
from ..bulk.extractor import extractor_for
from ..bulk.feature_dataset import FeatureDataset, Features
from ..bulk.inference import InferenceModel, pooled
from ..bulk.inputs import Input, find_items
from ..bulk.meta import Plan
from ..bulk.output_folder import require_complete
from ..bulk.pipeline import shards
from ..bulk.shard import Failure
from ..bulk.sources import Items
from ..errors import ArgumentError, ImageError, shortened
from ..features import FeatureInfo, Levels, OutIndices
from ..json_checks import Value
from ..preprocessing import DataConfig, stated

ROWS = 32  # images whose maps are in memory at once
DEFAULT_BATCH = 16


class MapSource(Protocol):
    """Maps of labeled images.

    Attributes:
        name: of the model.
        levels: of the maps.
        vectors: names of levels that are stored as vectors.
        ids: of the images.
        config: preprocessing whose crop the maps cover; None if they cover whole images.
    """

    @property
    def name(self) -> str: ...
    @property
    def levels(self) -> Sequence[FeatureInfo]: ...
    @property
    def vectors(self) -> Sequence[str]: ...
    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def config(self) -> DataConfig | None: ...

    def __iter__(self) -> Iterator[Features]:
        """The maps of the images, in any order."""
        ...


class StoredMaps:
    """The maps in a folder that `featx.extract` wrote.

    Args:
        folder: a path, or an address that fsspec supports.
        out_indices: positions of the levels to probe, among those that are stored; None for all.
        out_names: their names, instead.
        name: of the model, for the report; by default that in the folder.

    Raises:
        OutputError: the folder has no maps, or is unfinished.
        OutIndicesError: a level does not exist.
        ArgumentError: no image was extracted.
    """

    def __init__(
        self,
        folder: str | Path,
        out_indices: OutIndices | None = None,
        *,
        out_names: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        dataset = FeatureDataset(folder)
        require_complete(f"{folder} is unfinished", dataset._meta, dataset._names, False)
        if not len(dataset):
            raise ArgumentError(f"{folder} has no image that was extracted: run featx stats {folder} for the reasons")
        self._dataset = dataset
        decided: dict[str, Any] = dataset.meta["decided"]
        stored = dataset._meta.plan.levels
        levels = Levels([FeatureInfo(level.chs, level.reduction, level.name) for level in stored])
        self.levels = list(levels.select(out_indices, out_names))
        dataset.levels = [level.name for level in self.levels]
        self.vectors = [level.name for level in stored if level.pooling != "none" and level.name in dataset.levels]
        self.name: str = name or decided["model"]
        self.ids = dataset.ids
        self.config = None if decided["keep_aspect"] else _preprocessing(decided)

    def __iter__(self) -> Iterator[Features]:
        return (self._dataset[row] for row in range(len(self._dataset)))


def _preprocessing(decided: dict[str, Any]) -> DataConfig:
    config, size = DataConfig.from_json(Value(decided["preprocessing"])), decided["size"]
    return config if size is None else replace(config, size=(size, size))


class ComputedFields(ImageFields, ResourcesFields, total=False):
    """The fields of a Recipe that determine a map, and of Resources, as keywords."""


class ComputedMaps:
    """The maps of images, computed when they are iterated over, and not stored.

    Args:
        images: see `featx.bulk.find_items`; ids are paths below the folder.
        model: a name, which loads its published weights, or a module in eval mode: an extractor, or a model that can be
            wrapped in one.
        out_indices: levels; not allowed for an extractor, which has its own levels.
        name: of the model, for the report; by default its own.
        fields: fields of `featx.bulk.Recipe` and `featx.bulk.Resources`, such as size, device and batch_size.

    Raises:
        ArgumentError: an input does not exist, or an argument is invalid.
    """

    vectors: Sequence[str] = ()

    def __init__(
        self,
        images: Input | Iterable[Input] | Items,
        model: str | nn.Module,
        *,
        out_indices: OutIndices | None = None,
        name: str | None = None,
        **fields: Unpack[ComputedFields],
    ) -> None:
        recipe, resources = split_keywords(None, None, fields, ("out_indices", "name"))
        self._items = images if isinstance(images, Items) else find_items(images)
        extractor, default_name = extractor_for(model, out_indices, recipe)
        if extractor.training:
            raise ArgumentError("the model is in training mode, where maps depend on the batch: call model.eval()")
        self.name = name or default_name
        self.ids = self._items.ids
        self.levels = list(extractor.feature_info)
        self.config = None if recipe.keep_aspect else stated(extractor, recipe.size)
        self._resources = replace(resources, batch_size=resources.batch_size or DEFAULT_BATCH).settled()
        self._decoder = decoder_for(extractor, self._items, recipe, resources.max_pixels)
        self._model = InferenceModel(extractor, recipe, self._resources)

    def __iter__(self) -> Iterator[Features]:
        """The maps of the images; ImageError at the end if some cannot be decoded."""
        names, failed = [level.name for level in self.levels], list[Failure]()
        plan = Plan({}, len(self._items), "", ROWS)
        numbers = range(plan.shards)
        for shard in shards(plan, numbers, self._decoder, self._model, self._resources, lambda *_: None):
            failed += shard.failed
            for row, id_ in enumerate(shard.ids):
                maps = {name: rows[row] for name, rows in zip(names, shard.maps, strict=True)}
                yield Features(id_, maps, shard.sizes[row])
        if failed:
            raise ImageError(_failures(failed, len(self._items)))

    @torch.inference_mode()
    def maps_of(self, images: Tensor) -> list[Tensor]:
        """The maps of a batch of preprocessed images, on the device of the model."""
        returned: Any = self._model.extractor(images)
        return [pooled(level, "none") for level in (returned.values() if isinstance(returned, dict) else returned)]

    def pixels(self, id_: str) -> Tensor:
        """The preprocessed image (chs, H, W), on the device of the model. ImageError if it cannot be decoded."""
        decoded = self._decoder(self.ids.index(id_))
        if decoded.pixels is None:
            raise ImageError(f"{id_}: {decoded.reason}")
        return self._model._images([decoded.pixels])[0]


def _failures(failed: Sequence[Failure], images: int) -> str:
    listed = "".join(f"\n  {line}" for line in shortened(f"{image.source}: {image.reason}" for image in failed))
    return f"{len(failed)} of {images} images have no maps: repair them, or leave them out (exclude):{listed}"
