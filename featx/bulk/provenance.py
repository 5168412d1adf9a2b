"""What meta.json says of an extraction: what decides its numbers, and where they were computed."""

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
from .config import BEFORE, Recipe


def decided(extractor: FeatureExtractWrapper, name: str, recipe: Recipe) -> dict[str, Any]:
    """Everything that decides the numbers, as JSON gives it back."""
    poolings = recipe.poolings(len(extractor.feature_info))
    levels = [
        {**asdict(level), "pooling": pooling} for level, pooling in zip(extractor.feature_info, poolings, strict=True)
    ]
    stated = {name: value for name, value in asdict(recipe).items() if name not in BEFORE or value != BEFORE[name]}
    facts = {**stated, "preprocessing": asdict(extractor.data_config or DataConfig())}
    del facts["pooling"], facts["norm"]
    if recipe.is_normed:  # what folders have said that were made before there was a choice stays true
        facts["norm"] = True
    everything = {"model": name, "weights": weights_digest(extractor), "levels": levels, **facts}
    return json.loads(json.dumps(everything))


def weights_digest(extractor: FeatureExtractWrapper) -> str:
    """SHA-256 of names and values of everything in the state dict."""
    digest = sha256()
    for name, tensor in sorted(extractor.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    versions = {
        "python": platform.python_version(),
        "featx": __version__,
        "torch": torch.__version__,
        "PIL": PIL.__version__,
    }
    return {"versions": versions, "machine": platform.machine(), "directory": os.getcwd()}
