"""Which model a page shows: how it is built, and the code that builds the same."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from ..attention.blocks import blocks_of
from ..empty import without_values
from ..errors import ArgumentError, ContractError
from ..factory import create_model
from ..features import Levels
from ..registry import list_models
from ..wrappers import FeatureExtractWrapper

LARGEST_SEED = 2**32 - 1


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
    with without_values():
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
