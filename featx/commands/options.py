"""Options that several commands share, and the model that they describe."""

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
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Use published weights from the Hub; the default.")]
CheckpointPath = Annotated[Path | None, typer.Option(help="Load weights from a file: .safetensors, .pt, .pth or .bin.")]
RandomWeights = Annotated[
    int | None, typer.Option(min=0, max=2**32 - 1, help="Use random weights from this seed.", metavar="SEED")
]
Size = Annotated[int | None, typer.Option(min=1, help="Image size in pixels; by default that of the weights.")]


class Precision(StrEnum):
    """Floating-point dtypes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where the weights of models come from: a file, a seed, or the Hub if both are None."""

    checkpoint_path: Path | None = None
    seed: int | None = None

    @property
    def published(self) -> bool:
        return self.checkpoint_path is None and self.seed is None

    def __str__(self) -> str:
        return "published" if self.published else f"{self.checkpoint_path or f'random, seed {self.seed}'}"

    @contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """A context to call `create_model` in: it seeds random weights, and adds options to a WeightsNotFoundError."""
        if self.seed is not None:
            torch.manual_seed(self.seed)
        if self.published:
            quiet_hub()
            err.print(f"weights of {name}: from the cache or the Hub …")
        try:
            yield
        except featx.WeightsNotFoundError as error:
            raise featx.WeightsNotFoundError(
                f"{error} (here: --checkpoint-path FILE or --random-weights SEED)"
            ) from error


def weight_source(pretrained: bool, checkpoint_path: Path | None, seed: int | None) -> WeightSource:
    """The WeightSource that the options select; ArgumentError if several are given."""
    if pretrained + (checkpoint_path is not None) + (seed is not None) > 1:
        raise featx.ArgumentError("--pretrained, --checkpoint-path and --random-weights exclude each other")
    return WeightSource(checkpoint_path, seed)


def build(
    name: str, out_indices: str | None, pretrained: bool, checkpoint_path: Path | None, seed: int | None
) -> tuple[featx.FeatureExtractWrapper, str]:
    """The extractor that the options describe, in eval mode, and the source of its weights as text."""
    weights = weight_source(pretrained, checkpoint_path, seed)
    with weights.loading(name):
        extractor = featx.create_model(
            name,
            weights.published,
            features_only=True,
            out_indices=parse_indices(out_indices),
            checkpoint_path=weights.checkpoint_path,
        )
    return extractor.eval(), str(weights)


def parse_indices(text: str | None, option: str = "--out-indices") -> list[int] | None:
    """The integers of a text such as "1,2,3"; ArgumentError, which names the option, for another text."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise featx.ArgumentError(f"{option} {text}: expected ints separated by commas, such as 1,2,3") from None


def quiet_hub() -> None:
    """Hide the Hub client's messages about retries; featx raises an error that explains a failure."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
