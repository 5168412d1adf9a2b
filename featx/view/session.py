"""What one visitor looks at: a photograph, a model's maps of it, a point in it; the pictures of them, and errors."""

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
from .choice import Choice, Values, build, code_of_attention, code_of_maps, code_of_similarity, require_published

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# An absolute path up to its last part, at a place where no name, number or address goes on.
FOLDERS = re.compile(r"(?<![\w.:/\\~<])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\"`,;()\[\]]+)+[/\\](?=[^\s/\\])")
MOST = 6  # levels that are shown if nobody chose: more make each picture too small
SCREEN = 1024  # pixels of the longer side
Version = tuple[Choice, int]


def version_of(choice: Choice) -> Version:
    """The choice, and when its checkpoint was last written if that is a file."""
    file = Path(choice.checkpoint)
    return choice, file.stat().st_mtime_ns if choice.values is Values.checkpoint and file.is_file() else 0


class What(StrEnum):
    """What a picture shows."""

    maps = "maps"
    channels = "channels"
    norms = "norms"
    similarity = "similarity"
    attention = "attention"


@dataclass(frozen=True, slots=True)
class Parts:
    """Which parts of a model are looked at.

    levels: positions of those that `maps` and `norms` show. level: of `channels` and `similarity`. block: whose
    attention.
    """

    levels: Sequence[int] = ()
    level: int | None = None
    block: str | None = None


def usual(levels: Levels, blocks: Sequence[str]) -> Parts:
    """The parts to look at where nobody chose: all levels, or four evenly spaced of many, and what is deepest."""
    count = len(levels)
    shown = range(count) if count <= MOST else [count * quarter // 4 - 1 for quarter in range(1, 5)]
    return Parts(tuple(shown), count - 1, blocks[-1] if blocks else None)


@dataclass(frozen=True, slots=True)
class Asked:
    """A picture. size: pixels of the shorter side the model sees; None for what its weights expect."""

    choice: Choice
    what: What = What.maps
    parts: Parts = Parts()
    size: int | None = None


@dataclass(slots=True)
class Models:
    """The model that was built last, kept for the next picture."""

    kept: tuple[Version, FeatureExtractWrapper] | None = None

    def get(self, choice: Choice) -> FeatureExtractWrapper:
        """The extractor; built anew if the choice or the checkpoint's file changed."""
        version = version_of(choice)
        if self.kept is None or self.kept[0] != version:
            self.kept = None  # its memory is free before the next one takes some
            self.kept = version, build(choice)
        return self.kept[1]


@dataclass(slots=True)
class Session:
    """What one visitor has: the photograph, the point clicked, the parts chosen, and the maps computed last."""

    photograph: Image.Image | None = None
    point: Point | None = None
    parts: Parts = Parts()
    computed: tuple[tuple[Version, int | None], Levels, list[Tensor]] | None = field(default=None, repr=False)

    def show(self, photograph: Image.Image | None) -> None:
        """Look at another photograph."""
        self.photograph, self.point, self.computed = photograph, None, None

    def maps(self, models: Models, choice: Choice, size: int | None) -> tuple[Levels, list[Tensor]]:
        """All levels of the model, and its maps (1, chs, h, w) of the photograph."""
        key = version_of(choice), size
        if self.computed is None or self.computed[0] != key:
            extractor = models.get(choice)
            with torch.inference_mode():
                maps = [map_ for _, map_ in extractor(self.input(extractor, size))]
            self.computed = key, extractor.feature_info, maps
        return self.computed[1], self.computed[2]

    def input(self, extractor: FeatureExtractWrapper, size: int | None) -> Tensor:
        """The photograph as the model takes it, (1, 3, H, W); ArgumentError if there is none yet."""
        return as_seen(self.part(extractor, size), extractor, size)

    def part(self, extractor: FeatureExtractWrapper, size: int | None) -> Image.Image:
        """The part of the photograph that the model sees; ArgumentError if there is no photograph yet."""
        if self.photograph is None:
            raise ArgumentError("there is no photograph yet: drop one")
        return seen_part(self.photograph, extractor, size)

    def point_in(self, part: Image.Image) -> Point | None:
        """The point clicked as shares of the part; ArgumentError if the model does not see it."""
        if self.point is None or self.photograph is None or part.size == self.photograph.size:
            return self.point
        x, y = (
            (share - 0.5) * whole / side + 0.5
            for share, whole, side in zip(self.point, self.photograph.size, part.size, strict=True)
        )
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ArgumentError("the model sees the centre of this photograph alone: click a point nearer to it")
        return x, y


def draw(session: Session, models: Models, asked: Asked) -> Image.Image:
    """The picture asked for. Raises ArgumentError if a point, a level or a block is missing, and what models raise."""
    if asked.what is What.attention:
        return pixels_of(_attention(session, models, asked))
    levels, maps = session.maps(models, asked.choice, asked.size)
    part = session.part(models.get(asked.choice), asked.size)
    # `select` refuses what is no choice, also of none
    if asked.what in (What.maps, What.norms):
        return pixels_of(_several(part, asked, levels.select(list(asked.parts.levels)), maps))
    if asked.parts.level is None:
        raise ArgumentError("choose a level")
    point = session.point_in(part)
    return pixels_of(_single(part, point, asked, levels.select([asked.parts.level]), maps))


def _several(part: Image.Image, asked: Asked, levels: Levels, maps: list[Tensor]) -> "Figure":
    from ..viz import maps_grid, norms

    drawn = norms if asked.what is What.norms else maps_grid
    return drawn(part, [maps[i] for i in levels.out_indices], levels, title=asked.choice.name)


def _single(part: Image.Image, point: Point | None, asked: Asked, levels: Levels, maps: list[Tensor]) -> "Figure":
    from ..viz import channels, overlay, similarity

    level, map_, name = levels[0], maps[levels.out_indices[0]], asked.choice.name
    if asked.what is What.channels:
        return channels(part, map_, level, title=name)
    if point is None:
        raise ArgumentError("click a point of the photograph: the picture shows which cells are like that one")
    alike = similarity(map_, point)
    title = f"{name}\n{level.name} · {level.chs} channels · 1/{level.reduction}"
    return overlay(part, alike, title=title, label="cosine similarity", point=point)


def _attention(session: Session, models: Models, asked: Asked) -> "Figure":
    from ..viz import overlays

    extractor = models.get(asked.choice)
    part = session.part(extractor, asked.size)
    point = session.point_in(part)
    heads, looks = attended(extractor, as_seen(part, extractor, asked.size), asked.parts.block, point)
    heats = {"mean of the heads": heads.mean(0), **{f"head {i}": head for i, head in enumerate(heads)}}
    title = f"{asked.choice.name} · {asked.parts.block} · attention of {looks}"
    return overlays(part, heats, title=title, point=point)


def marked(session: Session) -> Image.Image | None:
    """The photograph at the size of a screen, with a ring around the point."""
    if session.photograph is None:
        return None
    shown = session.photograph.copy()
    shown.thumbnail((SCREEN, SCREEN), Image.Resampling.LANCZOS)
    if session.point is not None:
        x, y = session.point[0] * shown.width, session.point[1] * shown.height
        unit = max(shown.size) / 100
        pen = ImageDraw.Draw(shown)
        for radius, width, colour in ((2.2, 1.4, "black"), (2.0, 0.8, "white")):
            box = (x - radius * unit, y - radius * unit, x + radius * unit, y + radius * unit)
            pen.ellipse(box, outline=colour, width=max(1, round(width * unit)))
    return shown


@dataclass(frozen=True, slots=True)
class Answer:
    """What a visitor gets: a picture and the code of its maps, or a message that says what is missing or wrong."""

    picture: Image.Image | None = None
    code: str = ""
    message: str = ""


def answer(session: Session, models: Models, asked: Asked, *, remote: bool) -> Answer:
    """The picture, or why there is none, without a word of where files are. remote: visitors are on other machines."""
    try:
        if remote:
            require_published(asked.choice)
        picture = draw(session, models, asked)
    except FeatxError as error:
        return Answer(message=public(error))
    return Answer(picture, _code(session, asked))


def _code(session: Session, asked: Asked) -> str:
    parts = asked.parts
    if asked.what is What.attention:
        return code_of_attention(asked.choice, asked.size, parts.block)
    if asked.what in (What.maps, What.norms) or parts.level is None:
        return code_of_maps(asked.choice, asked.size, parts.levels)
    if asked.what is What.similarity and session.point is not None:
        return code_of_similarity(asked.choice, asked.size, parts.level, session.point)
    return code_of_maps(asked.choice, asked.size, [parts.level])


def blocks(extractor: FeatureExtractWrapper) -> list[str]:
    """Names of the blocks with attention; ContractError if there is none."""
    return [block.name for block in blocks_of(extractor)]


def attended(
    extractor: FeatureExtractWrapper, image: Tensor, block: str | None, point: Point | None
) -> tuple[Tensor, str]:
    """Attention of each head over the image, (heads, h, w), and the words for where it looks from.

    extractor: with `output="tokens"`. image: (1, 3, H, W). point: shares of width and height, whose patch looks;
    without one it is the class token, or the mean over all patches where there is none. Raises ArgumentError for a
    block that the model has not, ContractError for a model without attention and where the keys are no grid over the
    image, as in windows.
    """
    known = blocks(extractor)
    if block not in known:
        raise ArgumentError(f"choose one of the blocks with attention: {', '.join(known)}")
    with torch.inference_mode(), capture_attention(extractor, [block]) as seen:
        pairs: list[tuple[Tensor, Tensor]] = list(extractor(image))
    map_, patches = seen.maps[block], patches_in(seen, block, pairs)
    if not patches.queried_in(map_):  # the same scores for whatever asks
        return heads_of(map_, patches), "all pixels"
    by_pixel = len(map_) > 1
    if point is not None:
        return heads_of(map_, patches, point), "the pixel clicked" if by_pixel else "the patch clicked"
    looks = "all pixels" if by_pixel else "the class token" if patches.prefix else "all patches"
    return heads_of(map_, patches), looks


def public(error: Exception) -> str:
    """The error's message with every folder of the machine replaced by an ellipsis."""
    text = str(error)
    for folder in (Path.cwd(), Path.home(), Path(tempfile.gettempdir())):
        if folder != folder.parent:  # the pattern would stop at a space in these
            text = text.replace(f"{folder}/", "/hidden/")
    return FOLDERS.sub("…/", text)
