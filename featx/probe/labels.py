"""Labels of images: the subfolder of each image, or a CSV file of paths and labels."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ArgumentError, in_short, names_in

COLUMNS = ("path", "label")
LEAST_IMAGES = 2  # per class: one to predict, and another to learn from


@dataclass(frozen=True, slots=True)
class Labels:
    """The class of each image.

    Attributes:
        classes: names, sorted.
        indices: class of each image, (n,).
    """

    classes: tuple[str, ...]
    indices: Tensor


def labels_of(ids: Sequence[str], labels: str | Path | Mapping[str, str] | None = None) -> Labels:
    """The labels of images.

    Args:
        ids: of the images: their paths below the folder of images.
        labels: labels by id, or a CSV file with the columns path and label; None takes the first folder of each id.

    Raises:
        ArgumentError: images have no label, there is one class, a class has one image, or the file cannot be read.
    """
    if labels is None:
        named = {id_: id_.split("/")[0] for id_ in ids if "/" in id_}
        advice = "move each image into a folder named after its class, or pass labels: a CSV file of path,label"
    else:
        named = labels if isinstance(labels, Mapping) else read_labels(labels)
        advice = f"the paths are those below the folder of images, and the labels have {names_in(named, 2)}"
    if missing := [id_ for id_ in ids if id_ not in named]:
        raise ArgumentError(
            f"{len(missing)} of {len(ids)} images have no label, such as {names_in(missing, 3)}: {advice}"
        )
    found = [named[id_] for id_ in ids]
    classes = tuple(sorted(set(found)))
    _require_classes(Counter(found))
    position = {name: index for index, name in enumerate(classes)}
    return Labels(classes, torch.tensor([position[name] for name in found]))


def read_labels(path: str | Path) -> dict[str, str]:
    """The labels by path of a CSV file with the columns path and label; further columns are ignored.

    Raises:
        ArgumentError: the file cannot be read, lacks a column, or has two labels for a path.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows, header = [*reader], reader.fieldnames or ()
    except (OSError, ValueError, csv.Error) as error:
        raise ArgumentError(f"labels {path}: expected a CSV file of path,label: {in_short(error)}") from error
    if missing := [column for column in COLUMNS if column not in header]:
        raise ArgumentError(
            f"labels {path}: the columns {names_in(header)} lack {names_in(missing)}: name both in the first row"
        )
    found: dict[str, str] = {}
    for row in rows:
        image, label = row["path"], row["label"]
        if not label:
            raise ArgumentError(f"labels {path}: {image!r} has an empty label: fill it in, or remove the row")
        if found.setdefault(image, label) != label:
            raise ArgumentError(f"labels {path}: {image!r} has the labels {found[image]!r} and {label!r}: keep one")
    return found


def _require_classes(counts: Counter[str]) -> None:
    if len(counts) < 2:
        raise ArgumentError(
            f"all images are of one class, {names_in(counts)}: a probe tells classes apart; label at least two (by "
            "subfolder, the class is the first folder below the folder of images)"
        )
    if single := [name for name, count in counts.items() if count < LEAST_IMAGES]:
        raise ArgumentError(
            f"classes with one image, which cannot be learned and predicted: {names_in(single)}; add images of them, "
            "or leave them out"
        )
