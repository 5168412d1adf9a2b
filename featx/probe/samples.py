"""What a probe keeps of the maps of all images: a vector per image and level, and labeled cells."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor

from ..bulk.feature_dataset import Features
from ..errors import InputError
from ..features import FeatureInfo
from .map_sources import MapSource
from .masks import MaskCrop, MaskFolder
from .segmentation import IGNORED, Cells, cell_labels, cells_per_image


@dataclass(frozen=True, slots=True)
class LevelSamples:
    """Samples of a level.

    Attributes:
        level: channels, reduction and name.
        vectors: the mean of the cells of each image, (n, chs), in the order of the ids.
        cells: labeled cells; None without masks.
    """

    level: FeatureInfo
    vectors: Tensor
    cells: Cells | None


def collect(
    source: MapSource, ids: Sequence[str], masks: MaskFolder | None, seed: int, features: Iterable[Features]
) -> list[LevelSamples]:
    """Samples of every level of a source.

    Args:
        source: whose levels are collected.
        ids: in the order of the samples.
        masks: None to collect no cells.
        seed: of the draw of cells.
        features: the maps of each image once, in any order.

    Raises:
        InputError: maps hold NaN or infinite values.
        ArgumentError: a mask does not fit its image.
    """
    position = {id_: row for row, id_ in enumerate(ids)}
    collectors = [_Collector(level, len(ids), seed) for level in source.levels]
    crop = MaskCrop(source.config)
    for image in features:
        row = position[image.id]
        labels = None
        if masks is not None:
            labels = cache(partial(cell_labels, crop(masks.read(image.id, image.size))))
        for collector in collectors:
            map_ = image.maps[collector.level.name].float()
            collector.add_vector(row, map_)
            if labels is not None:
                collector.add_cells(row, map_, labels(*map_.shape[1:]))
    return [collector.samples(masks is not None) for collector in collectors]


@dataclass(slots=True)
class _Collector:
    """Collects the samples of a level, image by image; results do not depend on the order of the images."""

    level: FeatureInfo
    images: int
    seed: int
    vectors: Tensor = field(init=False)
    cells: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.vectors = torch.zeros(self.images, self.level.chs)

    def add_vector(self, row: int, map_: Tensor) -> None:
        """Add a map (chs, h, w), or a vector (chs,)."""
        vector = map_ if map_.ndim == 1 else map_.mean((1, 2))
        if not vector.isfinite().all():
            raise InputError(f"level {self.level.name} holds NaN or infinite values: are the weights right?")
        self.vectors[row] = vector

    def add_cells(self, row: int, map_: Tensor, labels: Tensor) -> None:
        """Add some cells of a map (chs, h, w) whose labels (h, w) are not IGNORED."""
        labeled = (labels.flatten() != IGNORED).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(self.seed + row)
        order = torch.randperm(len(labeled), generator=generator)[: cells_per_image(self.images)]
        chosen = labeled[order]
        self.cells[row] = map_.flatten(1)[:, chosen].T.contiguous(), labels.flatten()[chosen].long()

    def samples(self, has_cells: bool) -> LevelSamples:
        if not has_cells:
            return LevelSamples(self.level, self.vectors, None)
        rows = sorted(self.cells)
        vectors, labels = (torch.cat(parts) for parts in zip(*(self.cells[row] for row in rows), strict=True))
        images = torch.cat([torch.full((len(self.cells[row][1]),), row) for row in rows])
        return LevelSamples(self.level, self.vectors, Cells(vectors, labels, images))
