"""Inference of one model on one photograph, and the figures that `featx show` draws of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..attention import Attention, capture_attention
from ..errors import ArgumentError, ContractError
from ..explain import gradcam
from ..features import Levels
from ..viz import channels, maps_grid, norms, overlays, similarity
from ..viz.attention_maps import attention_heats, gradcam_heats, rollout_heats
from ..viz.cell_similarity import Point
from ..viz.figure import caption_of
from ..viz.model_view import as_seen, seen_part
from ..viz.pca_colors import Basis
from ..wrappers import FeatureExtractWrapper

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

CENTER: Point = (0.5, 0.5)


class What(StrEnum):
    """Content of a figure."""

    maps = "maps"
    channels = "channels"
    norms = "norms"
    attention = "attention"
    rollout = "rollout"
    gradcam = "gradcam"
    similarity = "similarity"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model: its extractor, which returns pairs of prefix tokens and map, and for gradcam its classifier."""

    name: str
    weights: str
    extractor: FeatureExtractWrapper
    classifier: nn.Module | None = None

    @property
    def weights_name(self) -> str:
        """The source of the weights; of a file, its name without the folder."""
        return Path(self.weights).name


@dataclass(frozen=True, slots=True)
class FigureOptions:
    """Options of figures: blocks (None is all), point, and class (None is the most probable)."""

    blocks: Sequence[int | str] | None = None
    point: Point | None = None
    target: int | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """The result of a model on a photograph.

    Attributes:
        model: that ran.
        image: the part of the photograph that the model receives.
        images: the input (1, 3, H, W) of the model.
        pairs: prefix tokens and map of each level.
        options: of the figures.
        basis: colors of the maps; None computes them.
    """

    model: LoadedModel
    image: "Image"
    images: Tensor
    pairs: Sequence[tuple[Tensor, Tensor]]
    options: FigureOptions
    basis: Sequence[Basis] | None = None

    @property
    def maps(self) -> list[Tensor]:
        return [map_ for _, map_ in self.pairs]

    @property
    def levels(self) -> Levels:
        return self.model.extractor.feature_info

    def title(self, *words: str) -> str:
        return " · ".join([self.model.name, *words, f"weights: {self.model.weights_name}"])


def inspect(model: LoadedModel, image: "Image", size: int | None, options: FigureOptions) -> Inspection:
    """Run the extractor on the part of the photograph that it receives."""
    part = seen_part(image, model.extractor, size)
    images = as_seen(part, model.extractor, size)
    with torch.no_grad():
        pairs = model.extractor(images)
    assert isinstance(pairs, list)
    return Inspection(model, part, images, [pair for pair in pairs if isinstance(pair, tuple)], options)


def _maps(result: Inspection) -> "list[Figure]":
    return [maps_grid(result.image, result.maps, result.levels, title=result.title(), basis=result.basis)]


def _norms(result: Inspection) -> "list[Figure]":
    return [norms(result.image, result.maps, result.levels, title=result.title("norms"))]


def _channels(result: Inspection) -> "list[Figure]":
    title = result.title("channels")
    return [
        channels(result.image, map_, level, title=title) for map_, level in zip(result.maps, result.levels, strict=True)
    ]


def _similarity(result: Inspection) -> "list[Figure]":
    point = result.options.point or CENTER
    heats = {
        caption_of(level, map_[0]): similarity(map_, point)
        for map_, level in zip(result.maps, result.levels, strict=True)
    }
    title = result.title("similarity to the cell at the cross")
    return [overlays(result.image, heats, title=title, label="cosine similarity", point=point)]


def _attention(result: Inspection) -> "list[Figure]":
    point, title = result.options.point, result.title(f"attention {_query_name(result)}")
    heats = attention_heats(_captured(result), result.pairs, point)
    return [overlays(result.image, heats, title=title, label="attention", point=point)]


def _rollout(result: Inspection) -> "list[Figure]":
    point, title = result.options.point, result.title(f"attention rollout {_query_name(result)}")
    heats = rollout_heats(_captured(result), result.pairs, point)
    return [overlays(result.image, heats, title=title, label="attention", point=point)]


def _gradcam(result: Inspection) -> "list[Figure]":
    model, target = result.model.classifier, result.options.target
    assert model is not None
    logits = _logits(result, model)
    target = int(logits.argmax()) if target is None else target
    if target >= len(logits):
        raise ArgumentError(f"--target {target}: {result.model.name} has classes 0 to {len(logits) - 1}")
    heats = (_of_levels if result.options.blocks is None else _of_blocks)(result, model, target)
    names = getattr(model, "label_names", ())
    label = f" ({names[target]})" if target < len(names) else ""
    title = result.title(f"GradCAM for class {target}{label}, probability {logits.softmax(0)[target].item():.2g}")
    return [overlays(result.image, heats, title=title, label="map · gradient")]


def _of_levels(result: Inspection, model: nn.Module, target: int) -> dict[str, Tensor]:
    named = zip(result.maps, result.levels, strict=True)
    heats = {caption_of(level, map_[0]): gradcam(model, result.images, level.name, target) for map_, level in named}
    if result.pairs[-1][0].shape[1] and not any(heat.any() for heat in heats.values()):
        raise ContractError(
            f"{result.model.name}: no patch of {', '.join(result.levels.names())} speaks for the class, "
            "which is read from the class token: choose an earlier level, or blocks, such as --blocks -1"
        )
    return heats


def _of_blocks(result: Inspection, model: nn.Module, target: int) -> dict[str, Tensor]:
    with _capture(result, model, gradients=True) as captured:
        output = model(result.images)
        getattr(output, "logits", output)[0, target].backward()
    return gradcam_heats(captured, result.pairs)


def _logits(result: Inspection, model: nn.Module) -> Tensor:
    """Logits (classes,); ContractError if the model is not a classifier."""
    with torch.no_grad():
        output = model(result.images)
    logits = getattr(output, "logits", output)
    classes = getattr(model, "num_classes", getattr(getattr(model, "config", None), "num_classes", None))
    if classes == 0 or not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ContractError(
            f"gradcam explains a class, and {result.model.name} has no classifier: choose another model"
        )
    return logits[0]


def _captured(result: Inspection) -> Attention:
    """The attention of another forward of the extractor, so that only figures of attention store it."""
    with torch.no_grad(), _capture(result, result.model.extractor) as captured:
        result.model.extractor(result.images)
    return captured


@contextmanager
def _capture(result: Inspection, model: nn.Module, *, gradients: bool = False) -> Iterator[Attention]:
    """`capture_attention`, with the model's name in its errors."""
    with ExitStack() as stack:
        try:
            captured = stack.enter_context(capture_attention(model, result.options.blocks, gradients=gradients))
        except ContractError as error:
            raise ContractError(f"{result.model.name}: {error}") from error
        yield captured


def _query_name(result: Inspection) -> str:
    if result.options.point is not None:
        return "of the patch at the cross"
    return "of the class token" if result.pairs[-1][0].shape[1] else "of all patches"


# Functions that draw figures: one figure each, for channels one per level.
DRAW: "Mapping[What, Callable[[Inspection], list[Figure]]]" = {
    What.maps: _maps,
    What.channels: _channels,
    What.norms: _norms,
    What.attention: _attention,
    What.rollout: _rollout,
    What.gradcam: _gradcam,
    What.similarity: _similarity,
}
