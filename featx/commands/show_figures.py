"""What one model sees in one photograph, and the figures of it that `featx show` draws."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..attention import Attention, capture_attention
from ..errors import ArgumentError, ContractError
from ..explain import gradcam
from ..features import Levels
from ..viz import channels, maps_grid, norms, overlays, similarity
from ..viz.attended import attention_heats, gradcam_heats, rollout_heats
from ..viz.colours import Basis
from ..viz.figure import caption_of
from ..viz.photograph import as_seen, seen_part
from ..viz.points import Point
from ..wrappers import FeatureExtractWrapper

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

CENTRE: Point = (0.5, 0.5)


class What(StrEnum):
    """What a picture shows."""

    maps = "maps"
    channels = "channels"
    norms = "norms"
    attention = "attention"
    rollout = "rollout"
    gradcam = "gradcam"
    similarity = "similarity"


@dataclass(frozen=True, slots=True)
class Seeing:
    """A model: its extractor, which returns pairs of prefix tokens and map, and the classifier it was made from."""

    name: str
    weights: str
    extractor: FeatureExtractWrapper
    classifier: nn.Module | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """What to draw of it: blocks, place and class; None is all or the likeliest."""

    blocks: Sequence[int | str] | None = None
    point: Point | None = None
    target: int | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """A model, the part of a photograph it sees, (1, 3, H, W) as it takes it, and what came out."""

    model: Seeing
    image: "Image"
    images: Tensor
    pairs: Sequence[tuple[Tensor, Tensor]]
    chosen: Chosen
    basis: Sequence[Basis] | None = None

    @property
    def maps(self) -> list[Tensor]:
        return [map_ for _, map_ in self.pairs]

    @property
    def levels(self) -> Levels:
        return self.model.extractor.feature_info

    def title(self, *words: str) -> str:
        return " · ".join([self.model.name, *words, f"weights: {self.model.weights}"])


def look(model: Seeing, image: "Image", size: int | None, chosen: Chosen) -> Look:
    """Run the extractor on the part of the photograph that it sees."""
    part = seen_part(image, model.extractor, size)
    images = as_seen(part, model.extractor, size)
    with torch.no_grad():
        pairs = model.extractor(images)
    assert isinstance(pairs, list)
    return Look(model, part, images, [pair for pair in pairs if isinstance(pair, tuple)], chosen)


def _maps(seen: Look) -> "list[Figure]":
    return [maps_grid(seen.image, seen.maps, seen.levels, title=seen.title(), basis=seen.basis)]


def _norms(seen: Look) -> "list[Figure]":
    return [norms(seen.image, seen.maps, seen.levels, title=seen.title("norms"))]


def _channels(seen: Look) -> "list[Figure]":
    title = seen.title("channels")
    return [channels(seen.image, map_, level, title=title) for map_, level in zip(seen.maps, seen.levels, strict=True)]


def _similarity(seen: Look) -> "list[Figure]":
    point = seen.chosen.point or CENTRE
    heats = {
        caption_of(level, map_[0]): similarity(map_, point) for map_, level in zip(seen.maps, seen.levels, strict=True)
    }
    title = seen.title("similarity to the cell at the cross")
    return [overlays(seen.image, heats, title=title, label="cosine similarity", point=point)]


def _attention(seen: Look) -> "list[Figure]":
    point, title = seen.chosen.point, seen.title(f"attention {_whose(seen)}")
    heats = attention_heats(_captured(seen), seen.pairs, point)
    return [overlays(seen.image, heats, title=title, label="attention", point=point)]


def _rollout(seen: Look) -> "list[Figure]":
    point, title = seen.chosen.point, seen.title(f"attention rollout {_whose(seen)}")
    heats = rollout_heats(_captured(seen), seen.pairs, point)
    return [overlays(seen.image, heats, title=title, label="attention", point=point)]


def _gradcam(seen: Look) -> "list[Figure]":
    model, target = seen.model.classifier, seen.chosen.target
    assert model is not None
    logits = _logits(seen, model)
    target = int(logits.argmax()) if target is None else target
    if target >= len(logits):
        raise ArgumentError(f"--target {target}: {seen.model.name} has classes 0 to {len(logits) - 1}")
    heats = (_of_levels if seen.chosen.blocks is None else _of_blocks)(seen, model, target)
    names = getattr(model, "label_names", ())
    label = f" ({names[target]})" if target < len(names) else ""
    title = seen.title(f"GradCAM for class {target}{label}, probability {logits.softmax(0)[target].item():.2g}")
    return [overlays(seen.image, heats, title=title, label="map · gradient")]


def _of_levels(seen: Look, model: nn.Module, target: int) -> dict[str, Tensor]:
    named = zip(seen.maps, seen.levels, strict=True)
    heats = {caption_of(level, map_[0]): gradcam(model, seen.images, level.name, target) for map_, level in named}
    if seen.pairs[-1][0].shape[1] and not any(heat.any() for heat in heats.values()):
        raise ContractError(
            f"{seen.model.name}: no patch of {', '.join(level.name for level in seen.levels)} speaks for the class, "
            "which is read from the class token: choose an earlier level, or blocks, such as --blocks -1"
        )
    return heats


def _of_blocks(seen: Look, model: nn.Module, target: int) -> dict[str, Tensor]:
    with _capture(seen, model, gradients=True) as captured:
        output = model(seen.images)
        getattr(output, "logits", output)[0, target].backward()
    return gradcam_heats(captured, seen.pairs)


def _logits(seen: Look, model: nn.Module) -> Tensor:
    """(classes,); ContractError if there are none."""
    with torch.no_grad():
        output = model(seen.images)
    logits = getattr(output, "logits", output)
    classes = getattr(model, "num_classes", getattr(getattr(model, "config", None), "num_classes", None))
    if classes == 0 or not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ContractError(f"gradcam explains a class, and {seen.model.name} has no classifier: choose another model")
    return logits[0]


def _captured(seen: Look) -> Attention:
    """The attention of a forward of the extractor, once more, so that it is kept for pictures that show it alone."""
    with torch.no_grad(), _capture(seen, seen.model.extractor) as captured:
        seen.model.extractor(seen.images)
    return captured


@contextmanager
def _capture(seen: Look, model: nn.Module, *, gradients: bool = False) -> Iterator[Attention]:
    """As `capture_attention`; what cannot be captured is told with the model's name."""
    with ExitStack() as stack:
        try:
            captured = stack.enter_context(capture_attention(model, seen.chosen.blocks, gradients=gradients))
        except ContractError as error:
            raise ContractError(f"{seen.model.name}: {error}") from error
        yield captured


def _whose(seen: Look) -> str:
    if seen.chosen.point is not None:
        return "of the patch at the cross"
    return "of the class token" if seen.pairs[-1][0].shape[1] else "of all patches"


# How each picture is drawn: one figure, of channels one per level.
DRAW: "Mapping[What, Callable[[Look], list[Figure]]]" = {
    What.maps: _maps,
    What.channels: _channels,
    What.norms: _norms,
    What.attention: _attention,
    What.rollout: _rollout,
    What.gradcam: _gradcam,
    What.similarity: _similarity,
}
