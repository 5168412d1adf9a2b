"""What tests of inputs share: images of one color each, so that what is read tells which image it is."""

import io
import pickle
import tarfile
from pathlib import Path

from PIL import Image
from torch import Tensor, nn

import featx
from featx.bulk import Items

COLORS = {"a.png": "red", "b/c.jpg": "lime", "b/d.png": "blue"}
RED, LIME, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
ALL = {"a.png": RED, "b/c.jpg": LIME, "b/d.png": BLUE}


class Mean(nn.Module):
    """One vector of an image: the means of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.AvgPool2d(8)
        self.feature_info = [{"chs": 3, "reduction": 8, "name": "mean"}]
        self.data_config = featx.DataConfig((8, 8), mean=(0, 0, 0), std=(1, 1, 1), crop=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(x)


def mean_of_pixels() -> featx.FeatureExtractWrapper:
    """Its maps tell the color of an image."""
    return featx.FeatureExtractWrapper(Mean()).eval()


def png(color: str | tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "PNG")
    return file.getvalue()


def save_photos(folder: Path) -> Path:
    """Three images, and a file that nobody would take for one."""
    (folder / "b").mkdir(parents=True)
    for name, color in COLORS.items():
        (folder / name).write_bytes(png(color))
    (folder / "notes.txt").write_text("a.png")
    return folder


def save_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in {"x.png": png("red"), "x.txt": b"a caption", "sub/y.png": png("blue")}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def colors(items: Items) -> dict[str, tuple[int, ...]]:
    """The color of every image by its id, after the trip that items make to other processes."""
    there = pickle.loads(pickle.dumps(items))
    return {id_: pixel_of(there.read(i)) for i, id_ in enumerate(there.ids)}


def pixel_of(content: bytes) -> tuple[int, ...]:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB").getpixel((0, 0))
