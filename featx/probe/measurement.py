"""The function `measure`, which probes every level of several sources of maps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from ..bulk.feature_dataset import Features
from ..errors import ArgumentError, names_in, shortened
from .bootstrap import Score, mean_score
from .classification import knn_correct, linear_correct, stratified_folds
from .correspondence import THRESHOLD, correspondences
from .geometry import cka_scores, rank_score
from .labels import Labels, labels_of
from .map_sources import ComputedMaps, MapSource
from .masks import MaskFolder
from .report import Report, Row, Task
from .samples import LevelSamples, collect
from .segmentation import IGNORED, segmentation_score

Measured = Task | Literal["cka"]
TASKS: tuple[Measured, ...] = (*get_args(Task), "cka")


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """Options of a probe.

    Args:
        folds: of the cross-validation; every image is predicted once.
        neighbors: of the nearest-neighbor classifier.
        threshold: largest distance of a correct correspondence, relative to the longer side of the image.
        pairs: number of images, drawn at random, whose correspondences are measured.
        seed: of folds, draws and transformations.

    Raises:
        ArgumentError: a value is out of range.
    """

    folds: int = 5
    neighbors: int = 5
    threshold: float = THRESHOLD
    pairs: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("neighbors", 1), ("pairs", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ArgumentError(f"{name}={getattr(self, name)}: expected at least {least}")
        if not 0 < self.threshold <= 1:
            raise ArgumentError(f"threshold={self.threshold}: expected a fraction of the longer side, such as 0.1")


def measure(
    sources: Sequence[MapSource],
    *,
    labels: str | Path | Mapping[str, str] | None = None,
    masks: str | Path | MaskFolder | None = None,
    tasks: Sequence[Measured] | None = None,
    options: ProbeOptions = ProbeOptions(),
    progress: Callable[[str, int, int], object] = lambda *_: None,
) -> Report:
    """Score every level of several sources of maps, without training a backbone.

    Args:
        sources: `StoredMaps` and `ComputedMaps` of the same images.
        labels: classes of images by id, or a CSV file with the columns path and label; None takes the first folder of
            each id.
        masks: a folder of PNG files of class ids, with the names of their images, for the task "segmentation".
        tasks: "knn", "linear", "segmentation", "correspondence", "rank" and "cka"; None measures those that the inputs
            allow, and `omitted` of the report has the reasons for the others.
        options: of the probe.
        progress: called with the name of a model, the number of its images that were read, and the number of all.

    Returns:
        The report, with a row per model and level in the order of the sources.

    Raises:
        ArgumentError: the sources have different images, a task is unknown or the inputs do not allow it, or labels or
            masks do not fit the images.
        ImageError: images cannot be decoded.
        InputError: maps hold NaN or infinite values.
    """
    ids = _common_ids(sources)
    inputs = _Inputs(sources, ids, labels, MaskFolder(Path(masks)) if isinstance(masks, str | Path) else masks, options)
    chosen, omitted = inputs.choose(tasks)
    rows, vectors = [], []
    for name, source in zip(_names(sources), sources, strict=True):
        read = _reported(source, len(ids), lambda done, total, name=name: progress(name, done, total))
        samples = collect(source, ids, inputs.masks if "segmentation" in chosen else None, options.seed, read)
        pairs = _pairs(source, ids, options) if "correspondence" in chosen else [None] * len(samples)
        for level, pck in zip(samples, pairs, strict=True):
            rows.append(Row(name, level.level, inputs.scores(level, pck, chosen)))
            vectors.append(level.vectors)
    cka = cka_scores(vectors, options.seed) if "cka" in chosen else []
    classes = inputs.labels.classes if inputs.labels is not None else ()
    return Report(rows, cka, len(ids), classes, asdict(options), omitted)


class _Inputs:
    """Images with their labels and masks, and the tasks that they allow."""

    def __init__(
        self,
        sources: Sequence[MapSource],
        ids: Sequence[str],
        labels: str | Path | Mapping[str, str] | None,
        masks: MaskFolder | None,
        options: ProbeOptions,
    ) -> None:
        self.sources, self.ids, self.masks, self.options = sources, ids, masks, options
        self.labels: Labels | None = None
        self._given_labels = labels

    def choose(self, tasks: Sequence[Measured] | None) -> tuple[list[Measured], dict[str, str]]:
        """The tasks to measure, and the reasons why others are not."""
        if unknown := [task for task in tasks or () if task not in TASKS]:
            raise ArgumentError(f"tasks {names_in(unknown)}: choose among {names_in(TASKS)}")
        chosen, omitted = list[Measured](), dict[str, str]()
        for task in TASKS if tasks is None else tasks:
            reason = self._missing(task, tasks is not None or self._given_labels is not None or self.masks is None)
            if reason is None:
                chosen.append(task)
            elif tasks is None:
                omitted[task] = reason
            else:
                raise ArgumentError(f"task {task!r}: {reason}")
        return chosen, omitted

    def _missing(self, task: Measured, needs_labels: bool) -> str | None:
        """Why the inputs do not allow a task; None if they do. ArgumentError for labels that do not fit."""
        if task in ("knn", "linear"):
            return self._missing_labels(needs_labels)
        if task == "segmentation":
            return self._missing_masks()
        if task == "correspondence" and not all(isinstance(source, ComputedMaps) for source in self.sources):
            return "stored maps are of unchanged images: probe images with a model, which computes maps of changed ones"
        return None

    def _missing_labels(self, needed: bool) -> str | None:
        if self.labels is not None:
            return None
        try:
            self.labels = labels_of(self.ids, self._given_labels)
        except ArgumentError as error:
            if needed:
                raise
            return str(error)
        fewest = len(self.ids) - int(stratified_folds(self.labels.indices, self.options.folds, 0).bincount().max())
        if self.options.neighbors > fewest:
            raise ArgumentError(
                f"neighbors={self.options.neighbors}: the classifier learns from {fewest} images; choose at most that"
            )
        return None

    def _missing_masks(self) -> str | None:
        if self.masks is None:
            return "it needs masks: pass a folder of PNG files of class ids"
        if vectors := [f"{level} of {source.name}" for source in self.sources for level in source.vectors]:
            return f"it needs maps, and {', '.join(shortened(vectors, 3))} are vectors: extract with pooling none"
        self.masks.require(self.ids)
        return None

    def scores(self, samples: LevelSamples, pck: torch.Tensor | None, chosen: Sequence[Measured]) -> dict[Task, Score]:
        """The scores of a level, by task."""
        seed, found = self.options.seed, dict[Task, Score]()
        if self.labels is not None:
            indices = self.labels.indices
            folds = stratified_folds(indices, self.options.folds, seed)
            if "knn" in chosen:
                found["knn"] = mean_score(knn_correct(samples.vectors, indices, folds, self.options.neighbors), seed)
            if "linear" in chosen:
                found["linear"] = mean_score(linear_correct(samples.vectors, indices, folds), seed)
        if samples.cells is not None:
            found["segmentation"] = self._segmentation(samples)
        if pck is not None:
            found["correspondence"] = mean_score(pck, seed)
        if "rank" in chosen:
            found["rank"] = rank_score(samples.vectors, seed)
        return found

    def _segmentation(self, samples: LevelSamples) -> Score:
        cells, masks = samples.cells, self.masks
        assert cells is not None
        assert masks is not None
        ids, labeled = cells.labels.unique(), torch.zeros(len(self.ids), dtype=torch.long)
        labeled[cells.images] = 1
        if len(ids) < 2 or labeled.sum() < 2:
            raise ArgumentError(
                f"the masks {masks.folder} have {len(ids)} classes in {labeled.sum()} images at the grid of "
                f"{samples.level.name}: expected two or more of both; {IGNORED} does not count as a class"
            )
        folds = stratified_folds(labeled, self.options.folds, self.options.seed)  # in each fold images with labels
        return segmentation_score(cells, folds, masks.classes or int(ids.max()) + 1, self.options.seed)


def _common_ids(sources: Sequence[MapSource]) -> list[str]:
    """The ids of the images, sorted; ArgumentError unless all sources have the same."""
    if not isinstance(sources, Sequence) or not sources:
        raise ArgumentError(f"sources={sources!r}: expected a list of StoredMaps and ComputedMaps, one per model")
    first = set(sources[0].ids)
    for source in sources[1:]:
        if different := sorted(first ^ set(source.ids)):
            raise ArgumentError(
                f"{source.name} has other images than {sources[0].name}: {len(different)} are of one of them alone, "
                f"such as {names_in(different, 3)}; extract both from the same folder"
            )
    return sorted(first)


def _names(sources: Sequence[MapSource]) -> list[str]:
    """The names of the sources; the second one of a name is followed by (2)."""
    seen: dict[str, int] = {}
    names = []
    for source in sources:
        seen[source.name] = seen.get(source.name, 0) + 1
        names.append(source.name if seen[source.name] == 1 else f"{source.name} ({seen[source.name]})")
    return names


def _reported(source: MapSource, total: int, report: Callable[[int, int], object]) -> Iterator[Features]:
    """The maps of a source, counted."""
    for done, features in enumerate(source, 1):
        yield features
        report(done, total)


def _pairs(source: MapSource, ids: list[str], options: ProbeOptions) -> list[torch.Tensor]:
    """The PCK (images,) of each level."""
    assert isinstance(source, ComputedMaps)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(options.seed))[: options.pairs]
    images = [source.pixels(ids[row]) for row in order.tolist()]
    return list(correspondences(source.maps_of, images, options.threshold, options.seed).T)
