"""Extractors of the same maps that benchmarks compare: timm's, other packages', featx's, and what `optimize` makes."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from time import process_time
from typing import Any

import torch
from elsewhere import elsewhere
from torch import Tensor
from turns import Made

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
IMPORTED = ("onnx", "onnxscript", "onnxruntime", "openvino")  # before anything is timed


def images(name: str, batch: int, size: int | None) -> Tensor:
    """Random images of that size, or of the model's own."""
    config = featx.create_model(name, features_only=True).data_config
    assert config is not None
    return torch.randn(batch, 3, *((size, size) if size else config.size))


def of_timm(name: str, batch: int, size: int | None = None, levels: tuple[int, ...] | None = None) -> Made:
    import timm

    listed: Any = timm.create_model(name).feature_info
    levels = levels or tuple(range(len(listed)))  # all: of ViT it takes the last by itself
    model = timm.create_model(name, features_only=True, out_indices=levels).eval()
    return Made(model, images(name, batch, size))


def of_another(package: str, name: str, batch: int) -> Made:
    return Made(elsewhere(name)[package], images(name, batch, None))


def of_featx(name: str, batch: int, size: int | None = None, levels: tuple[int, ...] | None = None) -> Made:
    torch.manual_seed(0)  # the same weights in every process, as caches know them
    return Made(featx.create_model(name, features_only=True, out_indices=levels).eval(), images(name, batch, size))


def optimized(way: str, cache: str | None, *case: Any) -> Made:
    """case: name, batch, and perhaps size and levels. cache: a folder; None is no cache."""
    plain = of_featx(*case)
    options = {**OPTIMIZED, **RUNTIMES, **BFLOAT16}[way]
    if options:
        for package in IMPORTED:
            import_module(package)
    start = process_time()
    model = featx.optimize(plain.model, example=plain.x, cache=Path(cache, way) if cache else False, **options)
    return Made(model, plain.x, process_time() - start, runtime=model.runtime)


def ways(
    *case: Any, optimizations: tuple[str, ...] = tuple(OPTIMIZED), cache: str | None = None
) -> dict[str, Callable[[], Made]]:
    """timm's, featx's and the optimised ones. case: name, batch, and perhaps size and levels."""
    made: dict[str, Callable[[], Made]] = {"timm": partial(of_timm, *case), "featx": partial(of_featx, *case)}
    return made | {way: partial(optimized, way, cache, *case) for way in optimizations}
