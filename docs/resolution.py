"""Write the figure and the table of docs/resolution.md: DINOv2 ViT-S/14 with trained weights.

Run `python docs/resolution.py`. The photographs are scikit-image's; the weights are those of the tests.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import featx
from featx import FeatureExtractWrapper
from featx.upsampling import Bilinear, JointBilateral, Upsampler
from featx.viz import Basis

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "examples"))
from support.composites import (  # noqa: E402
    BACKGROUNDS,
    OUTLINES,
    Probe,
    composite,
    motorcycle,
    photograph,
    scores,
    share_of_cells,
)
from support.trained_networks import dinov2_small  # noqa: E402

PAGE = Path(__file__).with_suffix(".md")
FIGURE = ROOT / "docs" / "pictures" / "resolution.png"
MARK, END = "<!-- written by docs/resolution.py -->\n", "<!-- end -->\n"
SIDES = (224, 336)  # pixels of composites
DISPARITIES = range(20, 46, 5)  # pixels
SHOWN, SHOWN_SIDE = ("astronaut", "chelsea"), 392
SHIFTS = 2


@dataclass(frozen=True)
class Method:
    """A way to a dense map: shifts per axis, 1 for none, then an upsampler."""

    shifts: int
    upsampler: Upsampler


METHODS = {
    "bilinear": Method(1, Bilinear()),
    "guided": Method(1, JointBilateral()),
    "shifted, bilinear": Method(SHIFTS, Bilinear()),
    "shifted, guided": Method(SHIFTS, JointBilateral()),
}


def dense_maps(extractors: dict[int, FeatureExtractWrapper], x: Tensor) -> dict[str, Tensor]:
    """The maps (chs, H, W) of one image, by method. extractors: by shifts."""
    maps = {shifts: extractor(x) for shifts, extractor in extractors.items()}
    return {
        name: featx.upsample(maps[m.shifts], x, extractors[m.shifts].feature_info, m.upsampler)[0][0]
        for name, m in METHODS.items()
    }


def measured(extractors: dict[int, FeatureExtractWrapper], x: Tensor, masks: list[Tensor], known: Tensor) -> Tensor:
    """Both scores of each mask and method, (masks, methods, 2), with a probe of the cells of the map."""
    reduction = extractors[1].feature_info[0].reduction
    (map_,), dense = extractors[1](x), dense_maps(extractors, x)
    cells = share_of_cells(known, reduction) > 0.9
    probes = [Probe.of(map_[0], share_of_cells(mask, reduction) > 0.5, cells) for mask in masks]
    rows = [
        [scores(probe(one) & known, mask, known) for one in dense.values()]
        for probe, mask in zip(probes, masks, strict=True)
    ]
    return torch.tensor(rows)


def cases(extractors: dict[int, FeatureExtractWrapper]) -> Iterator[tuple[str, Tensor]]:
    """A caption and the scores (masks, methods, 2) for each set of images."""
    for side in SIDES:
        prepare, found = featx.transform_whole(extractors[1], size=side), []
        for name, background in product(OUTLINES, BACKGROUNDS):
            image, mask = composite(name, background, side)
            found.append(measured(extractors, prepare(image)[None], [mask], torch.ones_like(mask)))
        yield f"{len(found)} composites, {side} pixels", torch.cat(found)
    image, disparity = motorcycle()
    known = disparity.isfinite()
    x = featx.transform_whole(extractors[1], size=image.height)(image)[None]
    masks = [known & (disparity > least) for least in DISPARITIES]
    yield f"motorcycle, {len(masks)} depths, {image.height} pixels", measured(extractors, x, masks, known)


def table(extractors: dict[int, FeatureExtractWrapper]) -> str:
    """The mean scores as a Markdown table, and in how many masks a method is better than bilinear interpolation."""
    lines = ["| images | method | IoU | IoU near edges | better near edges |", "| --- | --- | ---: | ---: | ---: |"]
    for caption, found in cases(extractors):
        means, better = found.mean(0), (found[..., 1] > found[:, :1, 1]).sum(0).tolist()
        for name, (whole, edge), count in zip(METHODS, means.tolist(), better, strict=True):
            share = "" if name == "bilinear" else f"{count} of {len(found)}"
            lines.append(f"| {caption} | {name} | {whole:.3f} | {edge:.3f} | {share} |")
    return "\n".join([*lines, ""])


def draw(extractors: dict[int, FeatureExtractWrapper]) -> None:
    """Write the figure: per photograph one row, in colors of the principal components of its own map."""
    prepare = featx.transform_whole(extractors[1], size=SHOWN_SIDE)
    captions = ["photograph", *METHODS]
    figure = Figure(figsize=(2 * len(captions), 2.15 * len(SHOWN)), dpi=125, layout="constrained")
    axes = figure.subplots(len(SHOWN), len(captions), squeeze=False)
    for row, name in zip(axes, SHOWN, strict=True):
        image = square(photograph(name))
        x = prepare(image)[None]
        basis = Basis.of(extractors[1](x))
        colors = [basis.colors(map_).numpy() for map_ in dense_maps(extractors, x).values()]
        for axis, caption, panel in zip(row, captions, [image, *colors], strict=True):
            axis.imshow(panel, interpolation="nearest")
            axis.set_axis_off()
            axis.set_title(caption if name == SHOWN[0] else "", fontsize=9)
    figure.savefig(FIGURE)
    with Image.open(FIGURE) as drawn:
        drawn.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2).save(FIGURE, optimize=True)


def square(image: Image.Image) -> Image.Image:
    """The square in the middle, at the size that is shown."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cropped = image.crop((left, top, left + side, top + side))
    return cropped.resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)


@torch.no_grad()
def main() -> None:
    extractor = dinov2_small(out_indices=[-1])
    assert isinstance(extractor, FeatureExtractWrapper)
    extractors = {1: extractor, SHIFTS: featx.shifted(extractor, SHIFTS)}
    draw(extractors)
    rows = table(extractors)  # takes minutes, in which the page may be edited
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARK)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{MARK}\n{rows}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
