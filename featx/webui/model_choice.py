"""The model that the page shows: its construction, and Python code that computes the same picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from ..attention.blocks import blocks_of
from ..errors import ArgumentError, ContractError
from ..factory import create_model
from ..features import Levels
from ..meta_init import init_empty_weights
from ..registry import list_models
from ..wrappers import FeatureExtractWrapper

LARGEST_SEED = 2**32 - 1
# Lines of the code shown beside a picture; `{}` is a value from the controls.
MAPS = ["with torch.inference_mode():", "    maps = model(image)"]
SIMILARITY = ["alike = similarity(maps[0], ({:.4f}, {:.4f}))"]
ATTENTION = ["with torch.inference_mode(), featx.capture_attention(model, [{!r}]) as seen:", "    model(image)"]


class WeightsKind(StrEnum):
    """The source of a model's weights."""

    published = "published"
    random = "random"
    checkpoint = "checkpoint"


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model and its weights.

    Attributes:
        name: the model's name.
        values: the source of the weights.
        seed: of random weights.
        checkpoint: a file, a folder, a URL or hf-hub:owner/repo, for weights of a checkpoint.
    """

    name: str
    values: WeightsKind = WeightsKind.published
    seed: int = 0
    checkpoint: str = ""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `create_model`. ArgumentError for an invalid seed or an empty checkpoint."""
        if self.values is WeightsKind.published:
            return {"pretrained": True}
        if self.values is WeightsKind.random:
            if not 0 <= self.seed <= LARGEST_SEED:
                raise ArgumentError(f"the seed is {self.seed}: choose one from 0 to {LARGEST_SEED}")
            return {}
        if not self.checkpoint:
            raise ArgumentError("no checkpoint is named: enter a file, a folder, a URL or hf-hub:owner/repo")
        return {"checkpoint_path": self.checkpoint}


def build(choice: ModelChoice) -> FeatureExtractWrapper:
    """The extractor of all levels, with `output="tokens"`. Raises the errors of `create_model`."""
    arguments = choice.arguments()
    with torch.random.fork_rng(devices=[], enabled=choice.values is WeightsKind.random):
        if choice.values is WeightsKind.random:
            torch.manual_seed(choice.seed)
        return create_model(choice.name, **arguments, features_only=True, output="tokens").eval()


def levels_and_blocks(name: str) -> tuple[Levels, list[str]]:
    """Levels and attention blocks of a model, from a build on the meta device. Raises the errors of `create_model`."""
    with init_empty_weights():
        extractor = create_model(name, features_only=True)
    try:
        return extractor.feature_info, [block.name for block in blocks_of(extractor)]
    except ContractError:
        return extractor.feature_info, []


def require_published(choice: ModelChoice) -> None:
    """ArgumentError if the choice reads local files or URLs, which remote visitors must not."""
    native = choice.name.partition(".")[0] in list_models()
    if choice.values is WeightsKind.checkpoint or not native:
        raise ArgumentError(
            "this page is served to other machines: it shows featx's own models, with published or random weights"
        )


def code_of_maps(choice: ModelChoice, size: int | None, out_indices: Sequence[int]) -> str:
    """Code that computes the maps of levels by position. size: pixels of the shorter side; None for the default."""
    return _code(choice, size, MAPS, out_indices=list(out_indices))


def code_of_similarity(choice: ModelChoice, size: int | None, level: int, point: tuple[float, float]) -> str:
    """Code that computes the similarity of one level's cells to the cell at a point."""
    compared = [line.format(*point) for line in SIMILARITY]
    return _code(choice, size, [*MAPS, *compared], "as_seen, similarity", out_indices=[level])


def code_of_attention(choice: ModelChoice, size: int | None, block: str | None) -> str:
    """Code that computes the attention of a block."""
    return _code(choice, size, [line.format(block) for line in ATTENTION])


def _code(
    choice: ModelChoice, size: int | None, computed: Sequence[str], imported: str = "as_seen", **levels: object
) -> str:
    arguments = {**choice.arguments(), "features_only": True, **levels}
    called = ", ".join([repr(choice.name), *(f"{key}={value!r}" for key, value in arguments.items())])
    sized = "" if size is None else f", size={size}"
    seeded = [f"torch.manual_seed({choice.seed})"] if choice.values is WeightsKind.random else []
    lines = [
        "import torch",
        "",
        "import featx",
        "from featx.images import open_image",
        f"from featx.viz import {imported}",
        "",
        *seeded,
        f"model = featx.create_model({called}).eval()",
        f'image = as_seen(open_image("photograph.jpg"), model{sized})',
        *computed,
    ]
    return "\n".join(lines)
