"""featx show: figures of the maps and the attention of models on photographs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import featx

from ..images import find_images
from ..whole_files import local
from .options import CheckpointPath, Model, Pretrained, RandomWeights, Size, WeightSource, out, weight_source
from .show_figures import DRAW, FigureOptions, Inspection, LoadedModel, What, inspect

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from ..viz.cell_similarity import Point

Images = Annotated[list[Path], typer.Argument(help="Image files or folders; several need a report.")]
Out = Annotated[Path, typer.Option("--out", help="A picture such as maps.png, or a report such as maps.html.")]
OutIndices = Annotated[
    str | None,
    typer.Option(metavar="I,J,…", help="Levels in the order wanted, by number or name."),
]
BlocksText = Annotated[
    str | None, typer.Option("--blocks", metavar="I,J,…", help="Blocks with attention, by number or name: -1 or 3,7.")
]
PointText = Annotated[
    str | None,
    typer.Option("--point", metavar="X,Y", help="Point: fractions of width and height from the upper left."),
]
Target = Annotated[int | None, typer.Option(min=0, help="Class that gradcam explains; by default the most probable.")]
Compared = Annotated[
    list[str] | None,
    typer.Option("--compare", metavar="MODEL", help="Another model, for a further row of maps; repeatable."),
]

# The options that each kind of figure uses.
USED_OPTIONS: Mapping[What, tuple[str, ...]] = {
    What.maps: ("--out-indices", "--compare"),
    What.channels: ("--out-indices",),
    What.norms: ("--out-indices",),
    What.attention: ("--blocks", "--point"),
    What.rollout: ("--blocks", "--point"),
    What.gradcam: ("--out-indices", "--blocks", "--target"),
    What.similarity: ("--out-indices", "--point"),
}
# Figures of one level or block by default.
DEEPEST_LEVEL, DEEPEST_BLOCK = (What.channels, What.gradcam), (What.attention,)


def show(
    images: Images,
    model: Model,
    picture: Out,
    what: Annotated[What, typer.Option("--what", help="What to show.")] = What.maps,
    out_indices: OutIndices = None,
    blocks: BlocksText = None,
    point: PointText = None,
    target: Target = None,
    compare: Compared = None,
    pretrained: Pretrained = False,
    checkpoint_path: CheckpointPath = None,
    random_weights: RandomWeights = None,
    size: Size = None,
) -> None:
    """Draw maps, channels, norms, attention, GradCAM or similarity of models on photographs."""
    options = {
        "--out-indices": out_indices,
        "--blocks": blocks,
        "--point": point,
        "--target": target,
        "--compare": compare,
    }
    _require_used(what, options)
    images, picture = find_images(images), local(picture)
    _require_output(picture, images)
    weights = weight_source(pretrained, checkpoint_path, random_weights)
    if compare and checkpoint_path:
        raise featx.ArgumentError("--compare: one --checkpoint-path does not fit several models; leave one of them out")
    figure_options = FigureOptions(_blocks(what, blocks), _point(point), target)
    photographs = {path: _opened(path) for path in images}
    selected = _levels(what, out_indices, blocks)
    models = [_load(name, weights, what, selected) for name in [model, *(compare or [])]]
    results = {path: _inspect_all(models, photo, size, figure_options) for path, photo in photographs.items()}
    if compare:
        figures = [_comparison(page) for page in results.values()]
    else:
        figures = _figures(what, [inspection for (inspection,) in results.values()])
    _write(picture, dict(zip(results, figures, strict=True)), models, what)
    _report(picture, results, photographs, what)


def _report(
    picture: Path, results: Mapping[Path, Sequence[Inspection]], photographs: "Mapping[Path, Image]", what: What
) -> None:
    """Print what was drawn, and which photographs were cropped."""
    first, *others = results.values()
    counted = f"{len(first[0].maps)} maps" if what is What.maps and len(first) == 1 else f"{what}"
    shown = f"{len(results)} photographs" if others else f"{next(iter(results))}"
    names = ", ".join(inspection.model.name for inspection in first)
    out.print(f"{picture}: {counted} of {shown} by {names}, weights: {first[0].model.weights}", soft_wrap=True)
    for path, (inspection, *_) in results.items():
        if inspection.image.size != photographs[path].size:
            width, height = inspection.image.size
            out.print(
                f"{path}: cut to {width}×{height} pixels, because a model does not take every size", soft_wrap=True
            )


def _require_used(what: What, options: Mapping[str, object]) -> None:
    """Raise ArgumentError for options that this kind of figure does not use."""
    used = USED_OPTIONS[what]
    unused = [option for option, value in options.items() if value is not None and option not in used]
    if unused:
        raise featx.ArgumentError(f"--what {what} reads {', '.join(used)}, not {', '.join(unused)}")
    if what is What.gradcam and options["--out-indices"] and options["--blocks"]:
        raise featx.ArgumentError(
            "--out-indices and --blocks: gradcam explains maps or attention; leave one of them out"
        )


def _require_output(picture: Path, images: Sequence[Path]) -> None:
    """Raise errors of the output path before the weights are loaded."""
    from featx.viz.figure import picture_formats, require_format
    from featx.viz.html_report import SUFFIXES

    if picture.suffix.lower() in SUFFIXES:
        return
    require_format(picture, picture_formats())
    if len({*images}) > 1:
        report = picture.with_suffix(".html")
        raise featx.ArgumentError(f"a picture is of one photograph; name a report for several, such as --out {report}")


def _levels(what: What, text: str | None, blocks: object) -> tuple[list[int] | None, list[str] | None]:
    """Indices or names of the levels to compute."""
    if text is None:
        return ([-1], None) if what in DEEPEST_LEVEL and blocks is None else (None, None)
    parts = [part.strip() for part in text.split(",")]
    try:
        return [int(part) for part in parts], None
    except ValueError:
        return None, parts


def _blocks(what: What, text: str | None) -> list[int | str] | None:
    if text is None:
        return [-1] if what in DEEPEST_BLOCK else None
    parts = [part.strip() for part in text.split(",")]
    return [int(part) if part.lstrip("-").isdecimal() else part for part in parts]


def _point(text: str | None) -> "Point | None":
    from featx.viz.cell_similarity import cell_at

    if text is None:
        return None
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise featx.ArgumentError(
            f"--point {text}: expected X,Y, shares of the photograph's width and height, such as 0.5,0.25"
        ) from None
    cell_at((x, y), 1, 1)  # raises an error for a point outside the image
    return x, y


def _opened(path: Path) -> "Image":
    from featx.images import open_image

    try:
        return open_image(path)
    except featx.ImageError as error:
        raise featx.ImageError(f"{path}: {error}") from error


def _load(
    name: str, weights: WeightSource, what: What, levels: tuple[list[int] | None, list[str] | None]
) -> LoadedModel:
    """The extractor of a model, and for gradcam the classifier."""
    indices, names = levels
    with weights.loading(name):
        if what is What.gradcam:
            classifier = featx.create_model(name, weights.published, checkpoint_path=weights.checkpoint_path)
            classifier = classifier.eval().requires_grad_(False)
            extractor = featx.FeatureExtractWrapper(classifier, indices, out_names=names, output="tokens")
            return LoadedModel(name, str(weights), extractor.eval(), classifier)
        extractor = featx.create_model(
            name,
            weights.published,
            features_only=True,
            out_indices=indices,
            out_names=names,
            output="tokens",
            checkpoint_path=weights.checkpoint_path,
        )
        return LoadedModel(name, str(weights), extractor.eval())


def _inspect_all(
    models: Sequence[LoadedModel], photograph: "Image", size: int | None, options: FigureOptions
) -> list[Inspection]:
    """The inspections of all models on the part of the photograph that all of them support."""
    from featx.viz.model_view import seen_part

    part = photograph
    for model in models:
        part = seen_part(part, model.extractor, size)
    results = [inspect(model, part, size, options) for model in models]
    if any(abs(one.image.width - part.width) + abs(one.image.height - part.height) > 2 for one in results):
        raise featx.ArgumentError("--compare: the models take images of one size alone, of different aspects")
    return results


def _figures(what: What, inspections: Sequence[Inspection]) -> "list[list[Figure]]":
    """Figures per photograph; maps have the same colors in all of them."""
    from featx.viz import shared_bases

    if what is What.maps and len(inspections) > 1:
        bases = shared_bases([inspection.maps for inspection in inspections])
        inspections = [replace(inspection, basis=bases) for inspection in inspections]
    return [DRAW[what](inspection) for inspection in inspections]


def _comparison(inspections: Sequence[Inspection]) -> "list[Figure]":
    from featx.viz import compare

    rows = {inspection.model.name: (inspection.maps, inspection.levels) for inspection in inspections}
    return [compare(inspections[0].image, rows, title=f"weights: {inspections[0].model.weights_name}")]


def _write(picture: Path, pages: "Mapping[Path, list[Figure]]", models: Sequence[LoadedModel], what: What) -> None:
    from featx.viz import save_figure
    from featx.viz.html_report import SUFFIXES, Section, report, write_report

    if picture.suffix.lower() in SUFFIXES:
        tables = {model.name: model.extractor.feature_info for model in models}
        sections = [Section(f"{path}", figures) for path, figures in pages.items()]
        facts = [f"weights: {models[0].weights}", f"made by featx {featx.__version__}"]
        write_report(report(f"{what} of {', '.join(tables)}", facts, tables, sections), picture)
        return
    (figures,) = pages.values()
    if len(figures) > 1:
        report_name = picture.with_suffix(".html")
        raise featx.ArgumentError(
            f"--what {what} makes a picture per level: choose one, or a report for {len(figures)}, --out {report_name}"
        )
    save_figure(figures[0], picture)
