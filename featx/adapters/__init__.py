"""Adapters: feature extractors with the backbone interfaces of other packages, one file per package.

A source is a feature extractor, from `create_model(..., features_only=True)`, or a `necks.Pipeline`. Each package is
imported when its adapter is called.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import detectron2, mmengine, smp, smp_dpt, torchvision, transformers

__all__ = ["detectron2", "mmengine", "smp", "smp_dpt", "torchvision", "transformers"]


def __getattr__(name: str) -> Any:
    """Import an adapter on first access."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return __all__
