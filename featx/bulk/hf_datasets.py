"""Images of a Hugging Face dataset in a folder that `save_to_disk` wrote."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import ArgumentError, ImageError, MissingPackageError
from .sources import read_file

MARKS = ("dataset_dict.json", "state.json")  # files that only `save_to_disk` writes


@dataclass(frozen=True, slots=True)
class DatasetImages:
    """Rows of a dataset, in the order of its splits; each process opens the dataset itself."""

    folder: str
    column: str
    names: Sequence[str]

    def where(self, index: int) -> str:
        return f"{self.folder}/{self.names[index]}"

    def read(self, index: int) -> bytes:
        split, _, row = self.names[index].rpartition("/")
        cell = _opened(self.folder, self.column)[split][int(row)][self.column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise ImageError("the row has no image")
        if cell["bytes"] is not None:
            return cell["bytes"]
        return read_file(cell["path"])


def is_dataset(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, mark)) for mark in MARKS)


def dataset_images(folder: str, column: str | None = None) -> DatasetImages:
    """The rows of all splits; ArgumentError if not exactly one column, or not the requested one, contains images."""
    splits = _splits(folder)
    image = _datasets().Image
    columns = {
        name for part in splits.values() for name, feature in part.features.items() if isinstance(feature, image)
    }
    if column is not None and column not in columns:
        raise ArgumentError(f"{folder}: column {column} holds no images, those that do are {sorted(columns)}")
    if column is None and len(columns) != 1:
        hint = ": name one (--column, or column= of find_items)" if columns else ""
        raise ArgumentError(f"{folder}: expected a dataset with one column of images, it has {sorted(columns)}{hint}")
    names = [f"{split}/{row}" if split else f"{row}" for split, part in splits.items() for row in range(len(part))]
    return DatasetImages(folder, column or columns.pop(), names)


def _splits(folder: str) -> dict[str, Any]:
    """The splits by name; a dataset without splits has the name ""."""
    datasets = _datasets()
    try:
        loaded = datasets.load_from_disk(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ArgumentError(f"{folder} cannot be read as a dataset: {error}") from error
    return {"": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)


@lru_cache(maxsize=8)
def _opened(folder: str, column: str) -> dict[str, Any]:
    """The splits with images as bytes, so that featx decodes them like all other images."""
    undecoded = _datasets().Image(decode=False)
    return {
        split: part.select_columns([column]).cast_column(column, undecoded) for split, part in _splits(folder).items()
    }


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError(
            "reading a folder of the package datasets needs that package: pip install 'featx[datasets]'"
        ) from error
    return datasets
