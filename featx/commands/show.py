"""featx show: pictures of what models see in photographs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import featx

from ..images import find_images
from ..whole_files import local
from .options import Checkpoint, Model, Pretrained, RandomWeights, Size, Values, out, values_of
from .show_figures import DRAW, Chosen, Look, Seeing, What, look

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from ..viz.points import Point

Images = Annotated[list[Path], typer.Argument(help="Image files or folders of them; several go into a report.")]
Out = Annotated[Path, typer.Option("--out", help="A picture such as maps.png, or a report such as maps.html.")]
LevelsText = Annotated[
    str | None,
    typer.Option("--levels", "--out-indices", metavar="I,J,…", help="Levels in the order wanted, by number or name."),
]
BlocksText = Annotated[
    str | None, typer.Option("--blocks", metavar="I,J,…", help="Blocks with attention, by number or name: -1 or 3,7.")
]
PointText = Annotated[
    str | None, typer.Option("--point", metavar="X,Y", help="A place: shares of width and height, from the upper left.")
]
Target = Annotated[int | None, typer.Option(min=0, help="Class that gradcam explains; the likeliest by default.")]
Compared = Annotated[
    list[str] | None, typer.Option("--compare", metavar="MODEL", help="A further model for a row of maps; repeatable.")
]

# Which of the options that choose something each picture reads.
TAKES: Mapping[What, tuple[str, ...]] = {
    What.maps: ("--levels", "--compare"),
    What.channels: ("--levels",),
    What.norms: ("--levels",),
    What.attention: ("--blocks", "--point"),
    What.rollout: ("--blocks", "--point"),
    What.gradcam: ("--levels", "--blocks", "--target"),
    What.similarity: ("--levels", "--point"),
}
# Pictures of one level or block unless told otherwise.
DEEPEST_LEVEL, DEEPEST_BLOCK = (What.channels, What.gradcam), (What.attention,)


def show(
    images: Images,
    model: Model,
    picture: Out,
    what: Annotated[What, typer.Option("--what", help="What to show.")] = What.maps,
    levels: LevelsText = None,
    blocks: BlocksText = None,
    point: PointText = None,
    target: Target = None,
    compare: Compared = None,
    pretrained: Pretrained = False,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = None,
    size: Size = None,
) -> None:
    """Draw what models see in photographs: maps, channels, norms, attention, GradCAM, similarity."""
    given = {"--levels": levels, "--blocks": blocks, "--point": point, "--target": target, "--compare": compare}
    _require_taken(what, given)
    images, picture = find_images(images), local(picture)
    _require_place(picture, images)
    values = values_of(pretrained, checkpoint, random_weights)
    if compare and checkpoint:
        raise featx.ArgumentError("--compare: one --checkpoint does not fit several models; leave one of them out")
    chosen = Chosen(_blocks(what, blocks), _point(point), target)
    photographs = {path: _opened(path) for path in images}
    asked = _levels(what, levels, blocks)
    models = [_seeing(name, values, what, asked) for name in [model, *(compare or [])]]
    looks = {path: _looks(models, photograph, size, chosen) for path, photograph in photographs.items()}
    drawn = (
        [_compared(page) for page in looks.values()] if compare else _drawn(what, [one for (one,) in looks.values()])
    )
    _write(picture, dict(zip(looks, drawn, strict=True)), models, what)
    _tell(picture, looks, photographs, what)


def _tell(picture: Path, looks: Mapping[Path, Sequence[Look]], photographs: "Mapping[Path, Image]", what: What) -> None:
    """Say what was drawn of which photographs, and of which of them a part only."""
    first, *others = looks.values()
    counted = f"{len(first[0].maps)} maps" if what is What.maps and len(first) == 1 else f"{what}"
    shown = f"{len(looks)} photographs" if others else f"{next(iter(looks))}"
    names = ", ".join(seen.model.name for seen in first)
    out.print(f"{picture}: {counted} of {shown} by {names}, weights: {first[0].model.weights}", soft_wrap=True)
    for path, (seen, *_) in looks.items():
        if seen.image.size != photographs[path].size:
            width, height = seen.image.size
            out.print(
                f"{path}: cut to {width}×{height} pixels, because a model does not take every size", soft_wrap=True
            )


def _require_taken(what: What, given: Mapping[str, object]) -> None:
    ignored = [option for option, value in given.items() if value is not None and option not in TAKES[what]]
    if ignored:
        raise featx.ArgumentError(f"--what {what} reads {', '.join(TAKES[what])}, not {', '.join(ignored)}")
    if what is What.gradcam and given["--levels"] and given["--blocks"]:
        raise featx.ArgumentError("--levels and --blocks: gradcam explains maps or attention; leave one of them out")


def _require_place(picture: Path, images: Sequence[Path]) -> None:
    """Refuse a place for the result before minutes go into weights."""
    from featx.viz.figure import picture_formats, require_format
    from featx.viz.report import SUFFIXES

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
    from featx.viz.points import cell_at

    if text is None:
        return None
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise featx.ArgumentError(
            f"--point {text}: expected X,Y, shares of the photograph's width and height, such as 0.5,0.25"
        ) from None
    cell_at((x, y), 1, 1)  # which refuses what is outside
    return x, y


def _opened(path: Path) -> "Image":
    from featx.images import open_image

    try:
        return open_image(path)
    except featx.ImageError as error:
        raise featx.ImageError(f"{path}: {error}") from error


def _seeing(name: str, values: Values, what: What, levels: tuple[list[int] | None, list[str] | None]) -> Seeing:
    """The model as the picture needs it: its extractor, for gradcam of its classifier."""
    indices, names = levels
    with values.given_to(name):
        if what is What.gradcam:
            classifier = featx.create_model(name, values.published, checkpoint_path=values.checkpoint)
            classifier = classifier.eval().requires_grad_(False)
            extractor = featx.FeatureExtractWrapper(classifier, indices, out_names=names, output="tokens")
            return Seeing(name, str(values), extractor.eval(), classifier)
        extractor = featx.create_model(
            name,
            values.published,
            features_only=True,
            out_indices=indices,
            out_names=names,
            output="tokens",
            checkpoint_path=values.checkpoint,
        )
        return Seeing(name, str(values), extractor.eval())


def _looks(models: Sequence[Seeing], photograph: "Image", size: int | None, chosen: Chosen) -> list[Look]:
    """What each model sees in the part of the photograph that all of them take."""
    from featx.viz.photograph import seen_part

    part = photograph
    for model in models:
        part = seen_part(part, model.extractor, size)
    looks = [look(model, part, size, chosen) for model in models]
    if any(abs(seen.image.width - part.width) + abs(seen.image.height - part.height) > 2 for seen in looks):
        raise featx.ArgumentError("--compare: the models take images of one size alone, of different aspects")
    return looks


def _drawn(what: What, looks: Sequence[Look]) -> "list[list[Figure]]":
    """Figures per photograph; the colours of maps are the same in all of them."""
    from featx.viz import shared_bases

    if what is What.maps and len(looks) > 1:
        bases = shared_bases([seen.maps for seen in looks])
        looks = [replace(seen, basis=bases) for seen in looks]
    return [DRAW[what](seen) for seen in looks]


def _compared(looks: Sequence[Look]) -> "list[Figure]":
    from featx.viz import compare

    rows = {seen.model.name: (seen.maps, seen.levels) for seen in looks}
    return [compare(looks[0].image, rows, title=f"weights: {looks[0].model.weights}")]


def _write(picture: Path, pages: "Mapping[Path, list[Figure]]", models: Sequence[Seeing], what: What) -> None:
    from featx.viz import save_figure
    from featx.viz.report import SUFFIXES, Section, report, write_report

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
