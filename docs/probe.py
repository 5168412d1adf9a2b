"""Write the table of docs/probe.md and its chart: probes of trained and of random weights on two small sets of images.

Run `python docs/probe.py`. The photographs are scikit-image's; the trained weights are in packages of the dependency
group `trained`.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import featx
from featx.bulk.inputs import Input
from featx.probe import ComputedMaps, ProbeOptions, Report, Score, chart, measure
from featx.probe.report import TITLES
from featx.viz import save_figure

PAGE = Path(__file__).with_suffix(".md")
PICTURE = PAGE.with_suffix(".png")
START, END = "<!-- written by docs/probe.py -->\n", "<!-- end of the table -->\n"
SIZE = 224
PER_CLASS, MOSAICS, PAIRS = 12, 30, 30
OPTIONS = ProbeOptions(pairs=PAIRS)


def models() -> Iterator[tuple[str, nn.Module]]:
    """Yield the extractors, each with trained and with random weights, and their names."""
    from support.trained_networks import dinov2_small, lite0

    blocks = [2, 5, 8, 11]
    yield "DINOv2 ViT-S/14, trained", dinov2_small(out_indices=blocks)
    yield "DINOv2 ViT-S/14, random", untrained("vit_small_patch14_dinov2", out_indices=blocks)
    yield "EfficientNet-Lite0, trained", lite0(features_only=True)
    yield "EfficientNet-Lite0, random", untrained("tf_efficientnet_lite0")


def untrained(name: str, **arguments: object) -> nn.Module:
    """Return an extractor with random weights from seed 0."""
    torch.manual_seed(0)
    return featx.create_model(name, features_only=True, **arguments).eval()


def sources(images: Input) -> list[ComputedMaps]:
    """Return the maps of the images by all models."""
    return [ComputedMaps(images, model, name=name, size=SIZE, device="cpu") for name, model in models()]


def measured(folder: Path) -> Report:
    """Return the scores of crops of photographs, together with the mean IoU of mosaics of textures."""
    from support.probe_images import save_crops, save_mosaics

    crops = save_crops(folder / "crops", PER_CLASS)
    mosaics = save_mosaics(folder / "mosaics", folder / "masks", MOSAICS)
    first = measure(sources(crops), tasks=["knn", "linear", "correspondence", "rank"], options=OPTIONS)
    second = measure(sources(mosaics), tasks=["segmentation"], masks=folder / "masks", options=OPTIONS)
    rows = [
        replace(row, scores={**row.scores, **other.scores}) for row, other in zip(first.rows, second.rows, strict=True)
    ]
    return replace(first, rows=rows)


def table(report: Report) -> str:
    """Return the table in Markdown; the best scores are bold."""
    titles = [TITLES[task] for task in report.tasks]
    lines = [f"| model | level | channels | reduction | {' | '.join(titles)} |", "|---" * (4 + len(titles)) + "|"]
    for row in report.rows:
        scores = [cell(row.scores[task], row in report.best(task), task == "rank") for task in report.tasks]
        facts = [row.model, f"`{row.level.name}`", f"{row.level.chs}", f"{row.level.reduction}"]
        lines.append(f"| {' | '.join([*facts, *scores])} |")
    return "\n".join([*lines, ""])


def cell(score: Score, is_best: bool, is_rank: bool) -> str:
    """Return a score and half of the width of its interval, in percent unless it is a rank."""
    factor = 1 if is_rank else 100
    text = f"{factor * score.value:.1f} ± {factor * (score.high - score.low) / 2:.1f}"
    return f"**{text}**" if is_best else text


def main() -> None:
    sys.path[:0] = [str(PAGE.parents[1] / name) for name in ("tests", "examples")]
    with tempfile.TemporaryDirectory() as folder:
        report = measured(Path(folder))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n{table(report)}\n{END}{after}", encoding="utf-8")
    save_figure(chart(report, "95 % intervals over images; diamonds: the best level of all"), PICTURE)


if __name__ == "__main__":
    main()
