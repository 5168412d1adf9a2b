"""Extractors of the same maps that benchmarks compare: timm's, other packages', featx's, and what `optimize` makes."""

from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any

import torch
from elsewhere import elsewhere
from torch import Tensor, nn
from turns import Made

import featx


def _where_computed(ways: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Without those in bfloat16 where the processor does not compute in it."""
    mkldnn: Any = torch.ops.mkldnn
    lacking = not mkldnn._is_mkldnn_bf16_supported()
    return {way: options for way, options in ways.items() if not (lacking and options.get("dtype") is torch.bfloat16)}


OPTIMIZED = _where_computed(
    {
        "optimize": {},
        "onednn": {"runtime": "onednn"},
        "onednn bf16": {"runtime": "onednn", "dtype": torch.bfloat16},
    }
)
PORTABLE = _where_computed(
    {
        "onnxruntime": {"runtime": "onnxruntime"},
        "openvino": {"runtime": "openvino"},
        "openvino bf16": {"runtime": "openvino", "dtype": torch.bfloat16},
    }
)


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
    return Made(featx.create_model(name, features_only=True, out_indices=levels).eval(), images(name, batch, size))


def optimized(way: str, name: str, batch: int, size: int | None = None, levels: tuple[int, ...] | None = None) -> Made:
    plain = of_featx(name, batch, size, levels)
    start = process_time()
    model: nn.Module = featx.optimize(plain.model, example=plain.x, **{**OPTIMIZED, **PORTABLE}[way])
    return Made(model, plain.x, process_time() - start)


def ways(*case: Any, optimizations: tuple[str, ...] = tuple(OPTIMIZED)) -> dict[str, Callable[[], Made]]:
    """timm's, featx's and the optimised ones. case: name, batch, and perhaps size and levels."""
    made: dict[str, Callable[[], Made]] = {"timm": partial(of_timm, *case), "featx": partial(of_featx, *case)}
    return made | {way: partial(optimized, way, *case) for way in optimizations}
