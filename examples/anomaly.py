"""Find defects in textures without having seen one: PatchCore (https://arxiv.org/abs/2106.08265) on a backbone's maps.

A memory bank holds cells of the maps of good images. The score of a cell is its distance to the closest cell in the
bank, the score of an image that of its worst cell. Images and defects are made from scikit-image's textures.

python examples/anomaly.py [--model resnet18] [--checkpoint-path FILE]
"""

from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from matplotlib.figure import Figure
from skimage import data
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

import featx
from featx import FeatureExtractWrapper

TEXTURES = {"brick": data.brick, "grass": data.grass, "gravel": data.gravel}
SIDE, DEFECT = 160, 36  # pixels of an image, and of the diameter of its defect
GOOD, JUDGED = 40, 40  # images of the memory bank; images to judge, every second one with a defect
REDUCTIONS = (8, 16)  # of the levels, as in the paper
KEPT = 0.1  # share of cells that the memory bank keeps
FIGURE = Path("demo/anomaly.png")


def main(
    model: Annotated[str, typer.Option(help="any model of create_model with maps at strides of 8 and 16")] = "resnet18",
    checkpoint_path: Annotated[str | None, typer.Option(help="weights; by default the published ones")] = None,
) -> None:
    """Print how well defects are found in each texture, and save a figure."""
    torch.manual_seed(0)
    backbone = create_backbone(model, checkpoint_path)
    rows = {}
    for name, load in TEXTURES.items():
        texture = torch.from_numpy(load()).float() / 255
        bank = coreset(cells(backbone, torch.stack([crop(texture[:, :256]) for _ in range(GOOD)])).flatten(0, 2))
        images = torch.stack([crop(texture[:, 256:]) for _ in range(JUDGED)])
        masks = torch.stack([spot() if position % 2 else torch.zeros(SIDE, SIDE) for position in range(JUDGED)])
        images = torch.where(masks > 0, changed(images), images)
        heats = distances(cells(backbone, images), bank)
        heats = heats / heats.max()  # torchmetrics takes larger values for logits
        by_image = binary_auroc(heats.amax((1, 2)), masks.amax((1, 2)).int())
        by_pixel = binary_auroc(heats, masks.int())
        print(
            f"{name:8} AUROC of images {by_image:.3f}, of pixels {by_pixel:.3f}, bank of {len(bank)} cells", flush=True
        )
        rows[name] = list(zip(images[1:6:2], masks[1:6:2], heats[1:6:2], strict=True))
    FIGURE.parent.mkdir(exist_ok=True)
    draw(rows).savefig(FIGURE)
    print(f"The figure is {FIGURE}.")


def create_backbone(model: str, checkpoint_path: str | None) -> FeatureExtractWrapper:
    """Return an extractor of the deepest level at each of the reductions."""
    try:
        full = featx.create_model(
            model, features_only=True, pretrained=checkpoint_path is None, checkpoint_path=checkpoint_path
        ).eval()
    except featx.FeatxError as error:
        raise typer.BadParameter(str(error)) from error
    levels = {row["reduction"]: row["index"] for row in full.feature_info.info}
    return FeatureExtractWrapper(full.source, [levels[reduction] for reduction in REDUCTIONS])


def crop(texture: Tensor) -> Tensor:
    """Return a random square of a gray picture (h, w), half of the time mirrored."""
    top, left = (int(torch.randint(side - SIDE + 1, ())) for side in texture.shape)
    square = texture[top : top + SIDE, left : left + SIDE]
    return square.flip(1) if torch.rand(()) < 0.5 else square


def spot() -> Tensor:
    """Return a mask (h, w) of ones in a random circle."""
    y, x = torch.randint(DEFECT, SIDE - DEFECT, (2,)).tolist()
    rows, columns = torch.arange(SIDE)[:, None], torch.arange(SIDE)
    return ((rows - y) ** 2 + (columns - x) ** 2 < (DEFECT / 2) ** 2).float()


def changed(images: Tensor) -> Tensor:
    """Return images (N, h, w) that are blurred, darker, or twice as large, one after the other."""
    middle = images[:, None, SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4]
    larger = F.interpolate(middle, (SIDE, SIDE), mode="bicubic")[:, 0].clamp(0, 1)
    changes = torch.stack([F.avg_pool2d(images[:, None], 9, 1, 4)[:, 0], images * 0.5, larger])
    number = torch.arange(len(images))
    return changes[number // 2 % len(changes), number]


@torch.no_grad()
def cells(backbone: FeatureExtractWrapper, images: Tensor) -> Tensor:
    """Return the averaged cells (N, h, w, chs) of gray images, with all levels at the size of the first one."""
    config = backbone.data_config or featx.DataConfig()
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    maps = [F.avg_pool2d(map_, 3, 1, 1) for map_ in backbone((images[:, None].expand(-1, 3, -1, -1) - mean) / std)]
    size = maps[0].shape[2:]
    return torch.cat([F.interpolate(map_, size, mode="bilinear") for map_ in maps], 1).movedim(1, -1)


def coreset(vectors: Tensor) -> Tensor:
    """Return a share of the vectors (n, chs) that covers all: each next one is farthest from those chosen before."""
    projected = vectors @ (torch.randn(vectors.shape[1], 64) / 8)  # keeps distances, as in the paper
    chosen, nearest = [0], (projected - projected[0]).norm(dim=1)
    while len(chosen) < KEPT * len(vectors):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (projected - projected[chosen[-1]]).norm(dim=1))
    return vectors[chosen]


def distances(vectors: Tensor, bank: Tensor) -> Tensor:
    """Return for each pixel (N, SIDE, SIDE) the distance of its cell to the closest one in the memory bank."""
    closest = torch.stack([torch.cdist(row, bank).amin(-1) for row in vectors.flatten(1, 2)])
    return F.interpolate(closest.view(vectors.shape[:3])[:, None], (SIDE, SIDE), mode="bicubic")[:, 0]


def draw(rows: dict[str, list[tuple[Tensor, Tensor, Tensor]]]) -> Figure:
    """Return a figure with three images per texture, each beside its scores and the outline of its defect."""
    figure = Figure((13, 7), layout="constrained")
    axes = figure.subplots(len(rows), 6)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        most = max(float(heat.max()) for _, _, heat in images)
        for place, (image, mask, heat) in enumerate(images):
            line[2 * place].imshow(image, cmap="gray", vmin=0, vmax=1)
            line[2 * place + 1].imshow(heat, cmap="magma", vmin=0, vmax=most)
            line[2 * place + 1].contour(mask, [0.5], colors="cyan", linewidths=1)
        line[0].set_title(name, loc="left")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle("Images, and the distance of their cells to those of good images (outlined: the defect)")
    return figure


if __name__ == "__main__":
    typer.run(main)
