"""Which model a page shows: how it is built, and the Python that computes the same."""

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
# Of a model and of what is computed with it; `{}` is what the page was asked for.
MAPS = ["with torch.inference_mode():", "    maps = model(image)"]
SIMILARITY = ["alike = similarity(maps[0], ({:.4f}, {:.4f}))"]
ATTENTION = ["with torch.inference_mode(), featx.capture_attention(model, [{!r}]) as seen:", "    model(image)"]


class Values(StrEnum):
    """Where the values of a model's weights come from."""

    published = "published"
    random = "random"
    checkpoint = "checkpoint"


@dataclass(frozen=True, slots=True)
class Choice:
    """A model and its weights.

    seed: of random values. checkpoint: a file, a folder, an URL or hf-hub:owner/repo, for values of a checkpoint.
    """

    name: str
    values: Values = Values.published
    seed: int = 0
    checkpoint: str = ""

    def arguments(self) -> dict[str, Any]:
        """What `create_model` is called with after the name; ArgumentError for a choice that is none."""
        if self.values is Values.published:
            return {"pretrained": True}
        if self.values is Values.random:
            if not 0 <= self.seed <= LARGEST_SEED:
                raise ArgumentError(f"the seed is {self.seed}: choose one from 0 to {LARGEST_SEED}")
            return {}
        if not self.checkpoint:
            raise ArgumentError("no checkpoint is named: enter a file, a folder, an URL or hf-hub:owner/repo")
        return {"checkpoint_path": self.checkpoint}


def build(choice: Choice) -> FeatureExtractWrapper:
    """The extractor of all levels, which returns pairs of tokens and map. Raises what `create_model` raises."""
    arguments = choice.arguments()
    with torch.random.fork_rng(devices=[], enabled=choice.values is Values.random):
        if choice.values is Values.random:
            torch.manual_seed(choice.seed)
        return create_model(choice.name, **arguments, features_only=True, output="tokens").eval()


def facts(name: str) -> tuple[Levels, list[str]]:
    """The levels of a model, and its blocks with attention, built without values. Raises what `create_model` raises."""
    with init_empty_weights():
        extractor = create_model(name, features_only=True)
    try:
        return extractor.feature_info, [block.name for block in blocks_of(extractor)]
    except ContractError:
        return extractor.feature_info, []


def require_published(choice: Choice) -> None:
    """ArgumentError if the choice reaches for the files of the machine, or for what only an address names."""
    native = choice.name.partition(".")[0] in list_models()
    if choice.values is Values.checkpoint or not native:
        raise ArgumentError(
            "this page is served to other machines: it shows featx's own models, with published or random weights"
        )


def code_of_maps(choice: Choice, size: int | None, out_indices: Sequence[int]) -> str:
    """Code of the maps of some levels, by their positions. size: pixels of the shorter side, None for the default."""
    return _code(choice, size, MAPS, out_indices=list(out_indices))


def code_of_similarity(choice: Choice, size: int | None, level: int, point: tuple[float, float]) -> str:
    """Code of the similarity of one level's cells to the one at a point."""
    compared = [line.format(*point) for line in SIMILARITY]
    return _code(choice, size, [*MAPS, *compared], "as_seen, similarity", out_indices=[level])


def code_of_attention(choice: Choice, size: int | None, block: str | None) -> str:
    """Code of the attention of a block."""
    return _code(choice, size, [line.format(block) for line in ATTENTION])


def _code(
    choice: Choice, size: int | None, computed: Sequence[str], imported: str = "as_seen", **chosen: object
) -> str:
    arguments = {**choice.arguments(), "features_only": True, **chosen}
    called = ", ".join([repr(choice.name), *(f"{key}={value!r}" for key, value in arguments.items())])
    sized = "" if size is None else f", size={size}"
    seeded = [f"torch.manual_seed({choice.seed})"] if choice.values is Values.random else []
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
