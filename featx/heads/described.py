"""What the `config.json` beside a network's weights says of what the tensors do not show."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, WeightsNotFoundError
from ..weights.checkpoint import Weights
from ..weights.source import FOLDER, HUB, config_of
from .deeplabv3 import DeepLabV3Config

MODEL_TYPES = ("mobilevit", "mobilevitv2")


@dataclass(frozen=True, slots=True)
class Description:
    """transformers' configuration of a network for segmentation, empty if there is none."""

    config: Mapping[str, Any]

    @property
    def output_stride(self) -> int | None:
        """What the network was trained at."""
        return self.config.get("output_stride")

    def label_names(self, num_classes: int) -> tuple[str, ...]:
        """Names of the classes in the order of the logits; empty if they are not stated for so many."""
        stated = {int(number): str(name) for number, name in self.config.get("id2label", {}).items()}
        names = {number: name for number, name in stated.items() if name != f"LABEL_{number}"}  # that is no name
        return tuple(names[number] for number in range(num_classes)) if {*names} == {*range(num_classes)} else ()

    def require(self, head: object) -> None:
        """Raise CheckpointError if the weights were trained in a head of other rates, which would go unnoticed."""
        rates = tuple(self.config.get("atrous_rates", ()))
        if rates and isinstance(head, DeepLabV3Config) and tuple(head.atrous_rates) != rates:
            raise CheckpointError(
                f"config.json says that these weights have atrous_rates={rates}, not {head.atrous_rates}: pass "
                f"DeepLabV3Config(atrous_rates={rates})"
            )


def described(weights: Weights | None, cache_dir: str | Path | None) -> Description:
    """What stands beside weights in a folder or a repository on the Hub; CheckpointError if it cannot be read."""
    if weights is None or isinstance(weights, Mapping):
        return Description({})
    where = str(weights)
    if not where.startswith(HUB) and not Path(where.removeprefix(FOLDER)).is_dir():
        return Description({})
    try:
        config = config_of(where, cache_dir)
    except WeightsNotFoundError:
        return Description({})
    return Description(config if config.get("model_type") in MODEL_TYPES else {})
