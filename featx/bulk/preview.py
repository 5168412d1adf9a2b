"""A preview of a folder: a picture of a few images beside their maps."""

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import ArgumentError, ImageError, OutputError
from ..features import FeatureInfo, Levels
from ..json_checks import Value
from ..locks import MOMENT
from ..preprocessing import DataConfig, cropped
from ..whole_files import alone, local, whole_file
from .feature_dataset import FeatureDataset, Features
from .filesystems import fetch_with_retries, is_address, read_whole
from .output_folder import require_complete
from .sources import read_file

if TYPE_CHECKING:
    from PIL.Image import Image

GONE = "#808080"  # in place of an image that cannot be opened


def save_picture(folder: str | Path, path: Path, count: int = 4, *, partial: bool = False) -> None:
    """Write a picture of images evenly spread over the folder, as the model receives them, beside their maps.

    Colors are principal components of all these maps together, so that they are comparable. An image that cannot be
    opened is gray.

    Args:
        folder: a path, or an address that fsspec supports.
        path: of the picture, which ends in .png.
        count: number of images.
        partial: allow an unfinished folder.

    Raises:
        ArgumentError: the count is below 1, or the folder has no maps but, for example, only vectors.
        OutputError: the folder is unfinished, or the picture cannot be written.
        MissingPackageError: matplotlib is not installed.
    """
    if count < 1:
        raise ArgumentError(f"count={count}: expected at least one image")
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path}: name a picture that ends with .png")
    path = local(path)
    dataset = FeatureDataset(folder)
    require_complete(f"{folder} is unfinished", dataset._meta, dataset._names, partial)
    decided = dataset.meta["decided"]
    levels = [level for level in dataset._meta.plan.levels if level.pooling == "none"]
    if not levels or not len(dataset):
        raise ArgumentError(f"{folder} has no maps to show: its levels are stored as vectors, or no image is there")
    dataset.levels = [level.name for level in levels]
    count = min(count, len(dataset))
    shown = [dataset[number * (len(dataset) - 1) // max(1, count - 1)] for number in range(count)]
    sources = _sources(dataset)
    pictures = [_model_view(sources[features.id], features, decided) for features in shown]
    _save(path, shown, pictures, [FeatureInfo(level.chs, level.reduction, level.name) for level in levels])


def _sources(dataset: FeatureDataset) -> dict[str, str]:
    return {
        id_: source if is_address(source) else os.path.join(header.directory, source)
        for header in dataset._headers
        for id_, source in zip(header.ids, header.sources, strict=True)
    }


def _model_view(source: str, features: Features, decided: dict[str, Any]) -> "Image":
    """The part of the image that the model receives."""
    from PIL import Image

    from ..images import Opening, open_image

    opening = Opening(
        "srgb" if decided.get("color_management") == "srgb" else "none", decided.get("allow_truncated") is True
    )
    try:
        content = fetch_with_retries(lambda: read_whole(source)) if is_address(source) else read_file(source)
        image = open_image(BytesIO(content), opening)
    except (ImageError, ArgumentError):  # in a tar, or moved or changed since
        image = Image.new("RGB", features.size, GONE)
    config = DataConfig.from_json(Value(decided["preprocessing"]))
    if len(config.mean) not in (1, 3):  # bands that are not colors
        return Image.new("RGB", features.size, GONE)
    return image if decided["keep_aspect"] else cropped(ConfiguredModule(config), size=decided["size"])(image)


class ConfiguredModule(nn.Module):
    """A placeholder for the model, with its data_config."""

    def __init__(self, config: DataConfig) -> None:
        super().__init__()
        self.data_config = config


def _save(path: Path, shown: list[Features], pictures: "list[Image]", levels: list[FeatureInfo]) -> None:
    """One figure per image, one below the other."""
    from PIL import Image

    from ..viz import maps_grid, shared_bases
    from ..viz.figure import pixels_of

    maps = [[map_.float() for map_ in features.maps.values()] for features in shown]
    bases = shared_bases(maps)
    figures = [
        pixels_of(maps_grid(image, image_maps, Levels(levels), title=features.id, basis=bases))
        for image, image_maps, features in zip(pictures, maps, shown, strict=True)
    ]
    size = max(figure.width for figure in figures), sum(figure.height for figure in figures)
    sheet = Image.new("RGB", size, "white")
    top = 0
    for figure in figures:
        sheet.paste(figure, (0, top))
        top += figure.height
    with alone(path, MOMENT), whole_file(path) as part:
        sheet.save(part, "PNG")
