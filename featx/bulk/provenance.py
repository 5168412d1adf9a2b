"""Provenance of an extraction for meta.json: what determines its results, and where they were computed."""

import json
import os
import platform
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import PIL
import torch

from ..preprocessing import DataConfig
from ..version import __version__
from ..wrappers import FeatureExtractWrapper
from .config import LEGACY_DEFAULTS, Recipe


def result_identity(extractor: FeatureExtractWrapper, name: str, recipe: Recipe) -> dict[str, Any]:
    """Everything that determines the stored values, as JSON types: the entry `decided` of meta.json."""
    poolings = recipe.poolings(len(extractor.feature_info))
    levels = [
        {**asdict(level), "pooling": pooling} for level, pooling in zip(extractor.feature_info, poolings, strict=True)
    ]
    settings = {key: value for key, value in asdict(recipe).items() if (key, value) not in LEGACY_DEFAULTS.items()}
    facts = {**settings, "preprocessing": asdict(extractor.data_config or DataConfig())}
    del facts["pooling"], facts["norm"]
    if recipe.is_normed:  # folders of versions without this option have no entry, and no norm
        facts["norm"] = True
    identity = {"model": name, "weights": weights_digest(extractor), "levels": levels, **facts}
    return json.loads(json.dumps(identity))


def weights_digest(extractor: FeatureExtractWrapper) -> str:
    """SHA-256 of the names, dtypes, shapes and values in the state dict."""
    digest = sha256()
    for name, tensor in sorted(extractor.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Versions of packages, the machine's architecture and the working directory."""
    versions = {
        "python": platform.python_version(),
        "featx": __version__,
        "torch": torch.__version__,
        "PIL": PIL.__version__,
    }
    return {"versions": versions, "machine": platform.machine(), "directory": os.getcwd()}
