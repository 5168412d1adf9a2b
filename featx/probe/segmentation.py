"""Linear segmentation: the mean IoU of logistic regression on the cells of a map."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .bootstrap import REPLICATES, Score, counts_of, draws, percentile_score
from .classification import linear_classes

IGNORED = 255  # the id of unlabeled pixels, as in PASCAL VOC and Cityscapes
MOST_CELLS = 256  # per image, of those drawn at levels of high resolution
MOST_OF_ALL = 65_536  # cells of all images


@dataclass(frozen=True, slots=True)
class Cells:
    """Labeled cells of the maps of a level.

    Attributes:
        vectors: (cells, chs).
        labels: class of each cell, (cells,).
        images: index of the image of each cell, (cells,).
    """

    vectors: Tensor
    labels: Tensor
    images: Tensor


def cells_per_image(images: int) -> int:
    """The largest number of cells of each image that are used."""
    return max(1, min(MOST_CELLS, MOST_OF_ALL // images))


def cell_labels(mask: Tensor, height: int, width: int) -> Tensor:
    """The id (height, width) that covers most of each cell; of equal areas, the smallest.

    Args:
        mask: ids (H, W) of pixels.
        height: rows of the map.
        width: columns of the map.
    """
    ids = mask.unique()
    areas = F.adaptive_avg_pool2d((mask == ids[:, None, None]).float(), (height, width))
    return ids[areas.argmax(0)]


def overlaps(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Numbers (3, classes) of cells: classified correctly, classified as the class, and of the class."""
    parts = (truth[truth == predicted], predicted, truth)
    return torch.stack([torch.bincount(part, minlength=classes) for part in parts])


def mean_iou(counts: Tensor) -> Tensor:
    """The mean intersection over union of the classes that occur in the truth or the prediction.

    Args:
        counts: (..., 3, classes), see `overlaps`.

    Returns:
        (...), as torchmetrics' MeanIoU of all cells together; NaN without cells.
    """
    intersection, predicted, truth = counts.double().unbind(-2)
    union = predicted + truth - intersection
    occurs = union > 0
    ratios = torch.where(occurs, intersection / union.clamp(min=1), 0)
    return ratios.sum(-1) / occurs.sum(-1)


def segmentation_score(cells: Cells, folds: Tensor, classes: int, seed: int) -> Score:
    """The mean IoU of a linear classifier of cells, with its interval over images.

    Args:
        cells: of all images.
        folds: of each image, (n,). The cells of an image are classified by the other folds.
        classes: number of classes.
        seed: of the draws.
    """
    counts = torch.zeros(len(folds), 3, classes, dtype=torch.float64)
    predicted = linear_classes(cells.vectors, cells.labels, folds[cells.images])
    _add(counts, cells.images, cells.labels, predicted)
    weights = counts_of(draws(len(folds), REPLICATES, seed))
    replicates = mean_iou((weights @ counts.flatten(1)).unflatten(1, (3, classes)))
    return percentile_score(mean_iou(counts.sum(0)).item(), replicates)


def _add(counts: Tensor, images: Tensor, truth: Tensor, predicted: Tensor) -> None:
    """Add cells to the `overlaps` (images, 3, classes) of their images, in place."""
    correct = truth == predicted
    for row, (image, class_) in enumerate(((images[correct], truth[correct]), (images, predicted), (images, truth))):
        counts.index_put_((image, torch.tensor(row), class_), torch.ones((), dtype=counts.dtype), accumulate=True)
