"""Builders of the extractors that benchmarks compare: timm's, other libraries', featx's, and optimized ones."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from time import process_time
from typing import Any

import torch
from interleaved_timing import Candidate
from other_libraries import extractors_of
from torch import Tensor

import featx

OPTIMIZED: dict[str, dict[str, Any]] = {"optimize": {}}
RUNTIMES: dict[str, dict[str, Any]] = {
    "eager": {},
    "onnxruntime": {"runtime": "onnxruntime"},
    "openvino": {"runtime": "openvino"},
    "auto": {"runtime": "auto"},
}
BFLOAT16: dict[str, dict[str, Any]] = {
    f"{runtime} bf16": {"runtime": runtime, "dtype": torch.bfloat16} for runtime in ("eager", "openvino", "auto")
}
RUNTIME_PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino")  # imported before the timing starts


def images(name: str, batch: int, size: int | None) -> Tensor:
    """Return random images (batch, 3, size, size), by default of the model's own size."""
    config = featx.create_model(name, features_only=True).data_config
    assert config is not None
    return torch.randn(batch, 3, *((size, size) if size else config.size))


def of_timm(name: str, batch: int, size: int | None = None, levels: tuple[int, ...] | None = None) -> Candidate:
    import timm

    feature_info: Any = timm.create_model(name).feature_info
    levels = levels or tuple(range(len(feature_info)))  # all: timm selects only the last levels of a ViT
    model = timm.create_model(name, features_only=True, out_indices=levels).eval()
    return Candidate(model, images(name, batch, size))


def of_other_library(package: str, name: str, batch: int) -> Candidate:
    return Candidate(extractors_of(name)[package], images(name, batch, None))


def of_featx(name: str, batch: int, size: int | None = None, levels: tuple[int, ...] | None = None) -> Candidate:
    torch.manual_seed(0)  # the same weights in every process, because they are part of the cache key
    return Candidate(featx.create_model(name, features_only=True, out_indices=levels).eval(), images(name, batch, size))


def optimized(candidate: str, cache: str | None, *case: Any) -> Candidate:
    """Build an optimized extractor.

    Args:
        candidate: a key of OPTIMIZED, RUNTIMES or BFLOAT16.
        cache: folder of the runtime cache; None disables it.
        case: model name, batch size, and optionally image size and levels.
    """
    plain = of_featx(*case)
    options = {**OPTIMIZED, **RUNTIMES, **BFLOAT16}[candidate]
    if options:
        for package in RUNTIME_PACKAGES:
            import_module(package)
    start = process_time()
    model = featx.optimize(plain.model, example=plain.x, cache=Path(cache, candidate) if cache else False, **options)
    return Candidate(model, plain.x, process_time() - start, runtime=model.runtime)


def builders(
    *case: Any, optimizations: tuple[str, ...] = tuple(OPTIMIZED), cache: str | None = None
) -> dict[str, Callable[[], Candidate]]:
    """Return the builders of all candidates. case: model name, batch size, and optionally image size and levels."""
    libraries: dict[str, Callable[[], Candidate]] = {"timm": partial(of_timm, *case), "featx": partial(of_featx, *case)}
    return libraries | {candidate: partial(optimized, candidate, cache, *case) for candidate in optimizations}
