"""A picture of a few images of a folder of maps, each beside its maps."""

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
from .filesystems import fetched, is_address, read_whole
from .output_folder import require_complete
from .sources import read_file

if TYPE_CHECKING:
    from PIL.Image import Image

GONE = "#808080"  # in place of a picture that cannot be opened any more


def save_picture(folder: str | Path, path: Path, count: int = 4, *, partial: bool = False) -> None:
    """Write a picture (.png) of `count` images evenly spread over the folder, as the model saw them, and their maps.

    Colours are principal components of all of these together, so that they mean the same in each. An image that is not
    where it was is gray. Raises ArgumentError for a count below 1, and for a folder without maps, such as one of
    vectors; OutputError if the folder is unfinished, unless `partial` allows that, and if the picture cannot be
    written; MissingPackageError without matplotlib.
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
    pictures = [_seen(sources[one.id], one, decided) for one in shown]
    _save(path, shown, pictures, [FeatureInfo(level.chs, level.reduction, level.name) for level in levels])


def _sources(dataset: FeatureDataset) -> dict[str, str]:
    return {
        id_: source if is_address(source) else os.path.join(header.directory, source)
        for header in dataset._headers
        for id_, source in zip(header.ids, header.sources, strict=True)
    }


def _seen(source: str, features: Features, decided: dict[str, Any]) -> "Image":
    """The part of the image that the model saw."""
    from PIL import Image

    from ..images import Opening, open_image

    opening = Opening(
        "srgb" if decided.get("color_management") == "srgb" else "none", decided.get("allow_truncated") is True
    )
    try:
        content = fetched(lambda: read_whole(source)) if is_address(source) else read_file(source)
        image = open_image(BytesIO(content), opening)
    except (ImageError, ArgumentError):  # in a tar, moved or changed since
        image = Image.new("RGB", features.size, GONE)
    config = DataConfig.from_json(Value(decided["preprocessing"]))
    if len(config.mean) not in (1, 3):  # bands of no colours
        return Image.new("RGB", features.size, GONE)
    return image if decided["keep_aspect"] else cropped(_Expecting(config), size=decided["size"])(image)


class _Expecting(nn.Module):
    """What there is of the model: how its images look."""

    def __init__(self, config: DataConfig) -> None:
        super().__init__()
        self.data_config = config


def _save(path: Path, shown: list[Features], pictures: "list[Image]", levels: list[FeatureInfo]) -> None:
    """One figure per image, one below the other."""
    from PIL import Image

    from ..viz import maps_grid, shared_bases
    from ..viz.figure import pixels_of

    maps = [[map_.float() for map_ in one.maps.values()] for one in shown]
    bases = shared_bases(maps)
    figures = [
        pixels_of(maps_grid(image, own, Levels(levels), title=one.id, basis=bases))
        for image, own, one in zip(pictures, maps, shown, strict=True)
    ]
    sheet = Image.new("RGB", (max(one.width for one in figures), sum(one.height for one in figures)), "white")
    top = 0
    for figure in figures:
        sheet.paste(figure, (0, top))
        top += figure.height
    with alone(path, MOMENT), whole_file(path) as part:
        sheet.save(part, "PNG")
