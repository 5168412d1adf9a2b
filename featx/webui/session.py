"""A visitor's session: photograph, model, maps and point, and the picture or error message for a request."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..attention import capture_attention
from ..attention.blocks import blocks_of
from ..errors import ArgumentError, FeatxError
from ..features import Levels
from ..viz.attention_maps import heads_of, patches_in
from ..viz.cell_similarity import Point
from ..viz.figure import pixels_of
from ..viz.model_view import as_seen, seen_part
from ..wrappers import FeatureExtractWrapper
from .model_choice import (
    ModelChoice,
    WeightsKind,
    build,
    code_of_attention,
    code_of_maps,
    code_of_similarity,
    require_published,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The folders of an absolute path, not preceded by a name, number or URL.
FOLDERS = re.compile(r"(?<![\w.:/\\~<])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\"`,;()\[\]]+)+[/\\](?=[^\s/\\])")
MAX_LEVELS = 6  # levels shown by default: more would make each panel too small
SCREEN_SIDE = 1024  # pixels of the longer side of the displayed photograph
Version = tuple[ModelChoice, int]


def _version(choice: ModelChoice) -> Version:
    """The choice and the modification time of its checkpoint file, 0 without one."""
    file = Path(choice.checkpoint)
    return choice, file.stat().st_mtime_ns if choice.values is WeightsKind.checkpoint and file.is_file() else 0


class PictureKind(StrEnum):
    """What a picture shows."""

    maps = "maps"
    channels = "channels"
    norms = "norms"
    similarity = "similarity"
    attention = "attention"


@dataclass(frozen=True, slots=True)
class ModelParts:
    """The parts of a model that a picture shows.

    Attributes:
        levels: positions of the levels, for `maps` and `norms`.
        level: position of the level, for `channels` and `similarity`.
        block: name of the block, for `attention`.
    """

    levels: Sequence[int] = ()
    level: int | None = None
    block: str | None = None


def default_parts(levels: Levels, blocks: Sequence[str]) -> ModelParts:
    """The default parts: all levels, or four evenly spaced ones of many; the deepest level and the last block."""
    count = len(levels)
    shown = range(count) if count <= MAX_LEVELS else [count * quarter // 4 - 1 for quarter in range(1, 5)]
    return ModelParts(tuple(shown), count - 1, blocks[-1] if blocks else None)


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """A request for a picture. size: pixels of the input's shorter side; None for the size that the weights expect."""

    choice: ModelChoice
    what: PictureKind = PictureKind.maps
    parts: ModelParts = ModelParts()
    size: int | None = None


@dataclass(slots=True)
class Models:
    """A cache of the last model that was built."""

    kept: tuple[Version, FeatureExtractWrapper] | None = None

    def get(self, choice: ModelChoice) -> FeatureExtractWrapper:
        """The extractor, rebuilt if the choice or the checkpoint file changed."""
        version = _version(choice)
        if self.kept is None or self.kept[0] != version:
            self.kept = None  # free its memory before building the next one
            self.kept = version, build(choice)
        return self.kept[1]


@dataclass(slots=True)
class Session:
    """A visitor's state: the photograph, the point clicked, the parts chosen, and the last maps computed."""

    photograph: Image.Image | None = None
    point: Point | None = None
    parts: ModelParts = ModelParts()
    computed: tuple[tuple[Version, int | None], Levels, list[Tensor]] | None = field(default=None, repr=False)

    def show(self, photograph: Image.Image | None) -> None:
        """Replace the photograph, and clear the point and the maps."""
        self.photograph, self.point, self.computed = photograph, None, None

    def maps(self, models: Models, choice: ModelChoice, size: int | None) -> tuple[Levels, list[Tensor]]:
        """All levels of the model, and the photograph's maps (1, chs, h, w)."""
        key = _version(choice), size
        if self.computed is None or self.computed[0] != key:
            extractor = models.get(choice)
            with torch.inference_mode():
                maps = [map_ for _, map_ in extractor(self.input(extractor, size))]
            self.computed = key, extractor.feature_info, maps
        return self.computed[1], self.computed[2]

    def input(self, extractor: FeatureExtractWrapper, size: int | None) -> Tensor:
        """The photograph as model input (1, 3, H, W). ArgumentError if there is no photograph yet."""
        return as_seen(self.part(extractor, size), extractor, size)

    def part(self, extractor: FeatureExtractWrapper, size: int | None) -> Image.Image:
        """The region of the photograph that the model sees. ArgumentError if there is no photograph yet."""
        if self.photograph is None:
            raise ArgumentError("there is no photograph yet: drop one")
        return seen_part(self.photograph, extractor, size)

    def point_in(self, part: Image.Image) -> Point | None:
        """The point clicked, as fractions of the region that the model sees. ArgumentError if it lies outside."""
        if self.point is None or self.photograph is None or part.size == self.photograph.size:
            return self.point
        x, y = (
            (fraction - 0.5) * full_side / side + 0.5
            for fraction, full_side, side in zip(self.point, self.photograph.size, part.size, strict=True)
        )
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ArgumentError("the model sees the center of this photograph alone: click a point nearer to it")
        return x, y


def draw(session: Session, models: Models, request: PictureRequest) -> Image.Image:
    """Draw the requested picture. ArgumentError if a point, a level or a block is missing; also raises model errors."""
    if request.what is PictureKind.attention:
        return pixels_of(_attention_figure(session, models, request))
    levels, maps = session.maps(models, request.choice, request.size)
    part = session.part(models.get(request.choice), request.size)
    # `select` also rejects an empty choice
    if request.what in (PictureKind.maps, PictureKind.norms):
        return pixels_of(_levels_figure(part, request, levels.select(list(request.parts.levels)), maps))
    if request.parts.level is None:
        raise ArgumentError("choose a level")
    point = session.point_in(part)
    return pixels_of(_level_figure(part, point, request, levels.select([request.parts.level]), maps))


def _levels_figure(part: Image.Image, request: PictureRequest, levels: Levels, maps: list[Tensor]) -> "Figure":
    from ..viz import maps_grid, norms

    plot = norms if request.what is PictureKind.norms else maps_grid
    return plot(part, [maps[i] for i in levels.out_indices], levels, title=request.choice.name)


def _level_figure(
    part: Image.Image, point: Point | None, request: PictureRequest, levels: Levels, maps: list[Tensor]
) -> "Figure":
    from ..viz import channels, overlay, similarity

    level, map_, name = levels[0], maps[levels.out_indices[0]], request.choice.name
    if request.what is PictureKind.channels:
        return channels(part, map_, level, title=name)
    if point is None:
        raise ArgumentError("click a point of the photograph: the picture shows which cells are like that one")
    heat = similarity(map_, point)
    title = f"{name}\n{level.name} · {level.chs} channels · 1/{level.reduction}"
    return overlay(part, heat, title=title, label="cosine similarity", point=point)


def _attention_figure(session: Session, models: Models, request: PictureRequest) -> "Figure":
    from ..viz import overlays

    extractor = models.get(request.choice)
    part = session.part(extractor, request.size)
    point = session.point_in(part)
    heads, looks = attention_by_head(extractor, as_seen(part, extractor, request.size), request.parts.block, point)
    heats = {"mean of the heads": heads.mean(0), **{f"head {i}": head for i, head in enumerate(heads)}}
    title = f"{request.choice.name} · {request.parts.block} · attention of {looks}"
    return overlays(part, heats, title=title, point=point)


def with_marker(session: Session) -> Image.Image | None:
    """The photograph scaled to the screen, with a ring around the point."""
    if session.photograph is None:
        return None
    shown = session.photograph.copy()
    shown.thumbnail((SCREEN_SIDE, SCREEN_SIDE), Image.Resampling.LANCZOS)
    if session.point is not None:
        x, y = session.point[0] * shown.width, session.point[1] * shown.height
        unit = max(shown.size) / 100
        pen = ImageDraw.Draw(shown)
        for radius, width, color in ((2.2, 1.4, "black"), (2.0, 0.8, "white")):
            box = (x - radius * unit, y - radius * unit, x + radius * unit, y + radius * unit)
            pen.ellipse(box, outline=color, width=max(1, round(width * unit)))
    return shown


@dataclass(frozen=True, slots=True)
class Answer:
    """A picture and the code that computes it, or a message that says what is missing or wrong."""

    picture: Image.Image | None = None
    code: str = ""
    message: str = ""


def answer(session: Session, models: Models, request: PictureRequest, *, remote: bool) -> Answer:
    """The picture, or an error message without folders of this machine. remote: visitors are on other machines."""
    try:
        if remote:
            require_published(request.choice)
        picture = draw(session, models, request)
    except FeatxError as error:
        return Answer(message=hide_folders(error))
    return Answer(picture, _code(session, request))


def _code(session: Session, request: PictureRequest) -> str:
    parts = request.parts
    if request.what is PictureKind.attention:
        return code_of_attention(request.choice, request.size, parts.block)
    if request.what in (PictureKind.maps, PictureKind.norms) or parts.level is None:
        return code_of_maps(request.choice, request.size, parts.levels)
    if request.what is PictureKind.similarity and session.point is not None:
        return code_of_similarity(request.choice, request.size, parts.level, session.point)
    return code_of_maps(request.choice, request.size, [parts.level])


def blocks(extractor: FeatureExtractWrapper) -> list[str]:
    """Names of the blocks with attention. ContractError if the model has none."""
    return [block.name for block in blocks_of(extractor)]


def attention_by_head(
    extractor: FeatureExtractWrapper, image: Tensor, block: str | None, point: Point | None
) -> tuple[Tensor, str]:
    """Attention of each head over the image (heads, h, w), and a description of the query.

    Args:
        extractor: built with `output="tokens"`.
        image: (1, 3, H, W).
        block: the name of a block with attention.
        point: fractions of width and height; its patch is the query. Without a point the query is the class token, or
            the mean over all patches of a model without one.

    Raises:
        ArgumentError: the model has no such block.
        ContractError: the model has no attention, or the keys are not a grid over the image, as in windows.
    """
    known = blocks(extractor)
    if block not in known:
        raise ArgumentError(f"choose one of the blocks with attention: {', '.join(known)}")
    with torch.inference_mode(), capture_attention(extractor, [block]) as seen:
        pairs: list[tuple[Tensor, Tensor]] = list(extractor(image))
    map_, patches = seen.maps[block], patches_in(seen, block, pairs)
    if not patches.queried_in(map_):  # all queries share the same scores
        return heads_of(map_, patches), "all pixels"
    by_pixel = len(map_) > 1
    if point is not None:
        return heads_of(map_, patches, point), "the pixel clicked" if by_pixel else "the patch clicked"
    looks = "all pixels" if by_pixel else "the class token" if patches.prefix else "all patches"
    return heads_of(map_, patches), looks


def hide_folders(error: Exception) -> str:
    """The error's message with every folder of this machine replaced by an ellipsis."""
    text = str(error)
    for folder in (Path.cwd(), Path.home(), Path(tempfile.gettempdir())):
        if folder != folder.parent:  # these may contain spaces, at which the pattern stops
            text = text.replace(f"{folder}/", "/hidden/")
    return FOLDERS.sub("…/", text)
