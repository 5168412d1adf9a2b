"""Find near duplicates and the nearest images in a folder, and draw them.

Without a folder, it makes one of scikit-image's photographs: each photograph whole, cropped, mirrored and darker.

python examples/search.py [FOLDER] [--model resnet18] [--checkpoint-path FILE] [--threshold 0.9]
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import skimage
import typer
from matplotlib.figure import Figure
from PIL import Image, ImageEnhance, ImageOps

import featx

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "ihc.png",
    "brick.png",
)
ROWS, NEAREST = 6, 5  # of the figure: queries, and images beside each
FIGURE = Path("demo/search.png")


def main(
    folder: Annotated[
        Path | None, typer.Argument(help="images to search; by default photographs of scikit-image")
    ] = None,
    model: Annotated[str, typer.Option(help="any model of create_model")] = "resnet18",
    checkpoint_path: Annotated[str | None, typer.Option(help="weights; by default the published ones")] = None,
    threshold: Annotated[float, typer.Option(help="smallest cosine of near duplicates")] = 0.9,
) -> None:
    """Print near duplicates, and save a figure of the nearest images of some."""
    try:
        backbone = featx.create_model(
            model,
            features_only=True,
            out_indices=[-1],
            pretrained=checkpoint_path is None,
            checkpoint_path=checkpoint_path,
        ).eval()
    except featx.FeatxError as error:
        raise typer.BadParameter(str(error)) from error
    with TemporaryDirectory() as temporary:
        images = folder or variants(Path(temporary, "images"))
        featx.extract(images, backbone, Path(temporary, "maps"), pooling="mean")
        dataset = featx.FeatureDataset(Path(temporary, "maps"))
        for pair in dataset.duplicates(threshold):
            print(f"{pair.similarity:.3f}  {pair.first}  {pair.second}")
        FIGURE.parent.mkdir(exist_ok=True)
        draw(images, dataset).savefig(FIGURE)
    print(f"The figure is {FIGURE}.")


def variants(folder: Path) -> Path:
    """Write each photograph whole, cropped, mirrored and darker to the folder, and return it."""
    folder.mkdir()
    for name in PHOTOGRAPHS:
        image = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
        width, height = image.size
        changed = {
            "whole": image,
            "cropped": image.crop((width // 10, height // 10, width - width // 10, height - height // 10)),
            "mirrored": ImageOps.mirror(image),
            "darker": ImageEnhance.Brightness(image).enhance(0.6),
        }
        for change, picture in changed.items():
            picture.save(folder / f"{Path(name).stem}-{change}.jpg", quality=85)
    return folder


def draw(images: Path, dataset: featx.FeatureDataset) -> Figure:
    """Return a figure with some images of the folder, each beside the images whose vectors are nearest to its own."""
    queries = dataset.ids[:: max(1, len(dataset) // ROWS)][:ROWS]
    figure = Figure((2 * (NEAREST + 1), 2 * len(queries)), layout="constrained")
    axes = figure.subplots(len(queries), NEAREST + 1, squeeze=False)
    for line, query in zip(axes, queries, strict=True):
        shown = [(query, "query"), *((near.id, f"{near.similarity:.3f}") for near in dataset.nearest(query, NEAREST))]
        for axis, (name, title) in zip(line, shown, strict=False):
            axis.imshow(Image.open(images / name).convert("RGB"))
            axis.set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


if __name__ == "__main__":
    typer.run(main)
