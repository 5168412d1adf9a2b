"""Options that commands share, and the model they describe."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

import featx

from ..terminal import Terminal

out, err = Terminal(), Terminal(stderr=True)

Model = Annotated[str, typer.Option("--model", help="Name of a model; 'featx list' shows all.")]
OutIndices = Annotated[
    str | None, typer.Option(help="Levels in the order wanted, such as 1,2,3 or -1; all by default.", metavar="I,J,…")
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Published weights from the Hub; the default.")]
Checkpoint = Annotated[Path | None, typer.Option(help="A file of weights instead: .safetensors, .pt, .pth or .bin.")]
RandomWeights = Annotated[
    int | None, typer.Option(min=0, max=2**32 - 1, help="Random weights from this seed instead.", metavar="SEED")
]
Size = Annotated[int | None, typer.Option(min=1, help="Side of the image in pixels; as the weights expect by default.")]


class Precision(StrEnum):
    """Types of floating-point numbers."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(frozen=True, slots=True)
class Values:
    """Where the values of models come from: a file, a seed, or the Hub if neither is given."""

    checkpoint: Path | None = None
    seed: int | None = None

    @property
    def published(self) -> bool:
        return self.checkpoint is None and self.seed is None

    def __str__(self) -> str:
        return "published" if self.published else f"{self.checkpoint or f'random, seed {self.seed}'}"

    @contextmanager
    def given_to(self, name: str) -> Iterator[None]:
        """Within the block `create_model` gives a model these values; what is missing is told in options."""
        if self.seed is not None:
            torch.manual_seed(self.seed)
        if self.published:
            quiet_hub()
            err.print(f"weights of {name}: from the cache or the Hub …")
        try:
            yield
        except featx.WeightsNotFoundError as error:
            raise featx.WeightsNotFoundError(f"{error} (here: --checkpoint FILE or --random-weights SEED)") from error


def values_of(pretrained: bool, checkpoint: Path | None, seed: int | None) -> Values:
    """What the options ask for; ArgumentError if they contradict each other."""
    if pretrained + (checkpoint is not None) + (seed is not None) > 1:
        raise featx.ArgumentError("--pretrained, --checkpoint and --random-weights exclude each other")
    return Values(checkpoint, seed)


def build(
    name: str, out_indices: str | None, pretrained: bool, checkpoint: Path | None, seed: int | None
) -> tuple[featx.FeatureExtractWrapper, str]:
    """The extractor that the options describe, in eval mode, and where its weights come from."""
    values = values_of(pretrained, checkpoint, seed)
    with values.given_to(name):
        extractor = featx.create_model(
            name,
            values.published,
            features_only=True,
            out_indices=parse_indices(out_indices),
            checkpoint_path=values.checkpoint,
        )
    return extractor.eval(), str(values)


def parse_indices(text: str | None) -> list[int] | None:
    """Indices from "1,2,3"; ArgumentError if that is not what the text is."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise featx.ArgumentError(f"--out-indices {text}: expected ints separated by commas, such as 1,2,3") from None


def quiet_hub() -> None:
    """Keep the Hub client's retries off the screen; our own error says what failed and what to do."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
