"""Masks of class ids beside images, cropped as the model's images are, and read at the grid of a map."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..bulk.preview import ConfiguredModule
from ..errors import ArgumentError, ImageError, in_short, names_in
from ..picture_formats import identified
from ..preprocessing import DataConfig, cropped
from .segmentation import IGNORED

ID_MODES = ("1", "L", "P", "I;16", "I")  # modes whose pixels are ids


@dataclass(frozen=True, slots=True)
class MaskFolder:
    """A folder of PNG files whose pixels are class ids: 0 to 254, and 255 for pixels without a label.

    The mask of the image cat/1.jpg is cat/1.png.

    Attributes:
        folder: its path.
        classes: number of classes, so that larger ids but 255 are errors; None takes the largest id of all masks.
    """

    folder: Path
    classes: int | None = None

    def require(self, ids: Iterable[str]) -> None:
        """Raise ArgumentError if images have no mask."""
        if not self.folder.is_dir():
            raise ArgumentError(f"masks {self.folder}: the folder does not exist")
        ids = list(ids)
        if missing := [id_ for id_ in ids if not self.path_of(id_).is_file()]:
            raise ArgumentError(
                f"{len(missing)} of {len(ids)} images have no mask, such as {names_in(missing, 3)}: expected "
                f"{self.path_of(missing[0])}, a PNG file of class ids with the name of its image"
            )

    def path_of(self, id_: str) -> Path:
        return self.folder / PurePosixPath(id_.lstrip("/")).with_suffix(".png")

    def read(self, id_: str, size: tuple[int, int]) -> np.ndarray:
        """The ids (H, W) in uint8 of an image of `size`, (width, height) in pixels.

        Raises:
            ArgumentError: the mask has another size, colors instead of ids, or unknown ids.
        """
        path = self.path_of(id_)
        try:
            with identified(path.read_bytes()) as image:
                mode, pixels = image.mode, np.asarray(image)
        except (ImageError, OSError, ValueError, SyntaxError) as error:
            raise ArgumentError(f"mask {path} cannot be read: {in_short(error)}") from error
        if mode not in ID_MODES:
            raise ArgumentError(
                f"mask {path} has colors ({mode}) and not class ids: save it with one channel, 8 bits or a palette"
            )
        if pixels.shape[::-1] != size:
            shown = "×".join(map(str, pixels.shape[::-1]))
            raise ArgumentError(
                f"mask {path} has {shown} pixels, and its image {size[0]}×{size[1]}: save masks in the size of their "
                "images, resized with nearest neighbors"
            )
        self._require_ids(path, np.unique(pixels))
        return pixels.astype(np.uint8)

    def _require_ids(self, path: Path, ids: np.ndarray) -> None:
        count = IGNORED if self.classes is None else self.classes
        if unknown := [int(id_) for id_ in ids if not 0 <= id_ < count and id_ != IGNORED]:
            raise ArgumentError(
                f"mask {path} has the ids {names_in(unknown, 4)}: expected 0 to {count - 1} for {count} classes, or "
                f"{IGNORED} for pixels without a label"
            )


@dataclass(frozen=True, slots=True)
class MaskCrop:
    """Applies the resizing and cropping of a model's images to masks, with nearest neighbors.

    Attributes:
        config: of the images; None for whole images.
    """

    config: DataConfig | None

    def __call__(self, ids: np.ndarray) -> Tensor:
        """The ids (h, w) of the pixels that the model receives; a border outside the image is 255."""
        if self.config is None:
            return torch.from_numpy(ids)
        config = replace(self.config, mean=(0.0,), std=(1.0,), interpolation="nearest")
        shifted = Image.fromarray(ids + np.uint8(1))  # 255 becomes 0, the color of borders
        return torch.from_numpy(np.array(cropped(ConfiguredModule(config))(shifted)) - np.uint8(1))
