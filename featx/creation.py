"""Models that users bring: built, loaded and wrapped by the function they register (see `register_model`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .errors import WeightsNotFoundError
from .features import OutIndices
from .preprocessing import DataConfig, from_hub
from .weights import load_weights
from .weights.download import HUB
from .wrappers import FeatureExtractWrapper
from .wrappers.extractor import Output


def build_model_with_cfg(
    model_cls: type[nn.Module],
    pretrained: bool = False,
    *,
    default_cfg: Mapping[str, Any] | None = None,
    features_only: bool = False,
    out_indices: OutIndices | None = None,
    out_names: Sequence[str] | None = None,
    output: Output = "list",
    **kwargs: Any,
) -> nn.Module:
    """`model_cls(**kwargs)`, with its weights if `pretrained`, as a feature extractor if `features_only`.

    default_cfg: `hf_hub_id` (a Hub repository) or `file` (a path) says where the weights are; `input_size`, `mean`,
        `std`, `interpolation`, `crop_pct` and `crop_mode` what images they expect (ImageNet's where silent).

    Raises WeightsNotFoundError if `pretrained` and default_cfg names no weights, and what `load_weights` and
    FeatureExtractWrapper raise.
    """
    cfg = default_cfg or {}
    model = model_cls(**kwargs)
    model.data_config = from_hub(cfg, DataConfig())  # pyright: ignore[reportArgumentType]
    if features_only:
        model = FeatureExtractWrapper(model, out_indices, out_names=out_names, output=output)
    if pretrained:
        load_weights(model, _source(model_cls.__name__, cfg))
    return model


def _source(name: str, cfg: Mapping[str, Any]) -> Any:
    if cfg.get("file"):
        return cfg["file"]
    if cfg.get("hf_hub_id"):
        return f"{HUB}{cfg['hf_hub_id']}"
    raise WeightsNotFoundError(f"default_cfg of {name} names no weights: set its 'hf_hub_id' or 'file'")
