"""Multi-scale feature maps from vision backbones, under one verified contract."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .attention import capture_attention as capture_attention
from .backbone import Backbone as Backbone
from .backbone import Pyramid as Pyramid
from .contract import verify as verify
from .creation import build_model_with_cfg as build_model_with_cfg
from .errors import ArgumentError as ArgumentError
from .errors import CheckpointError as CheckpointError
from .errors import CheckpointMismatchError as CheckpointMismatchError
from .errors import ContractError as ContractError
from .errors import FeatxError as FeatxError
from .errors import ImageError as ImageError
from .errors import InputError as InputError
from .errors import MissingPackageError as MissingPackageError
from .errors import OutIndicesError as OutIndicesError
from .errors import OutputError as OutputError
from .errors import UnknownModelError as UnknownModelError
from .errors import WeightsNotFoundError as WeightsNotFoundError
from .factory import create_model as create_model
from .features import FeatureInfo as FeatureInfo
from .features import Levels as Levels
from .level_discovery import discover as discover
from .load_report import LoadReport as LoadReport
from .preprocessing import DataConfig as DataConfig
from .preprocessing import transform as transform
from .preprocessing import transform_whole as transform_whole
from .registry import list_models as list_models
from .registry import register_model as register_model
from .tapped_levels import tap as tap
from .tracing.map_layout import Tap as Tap
from .version import __version__
from .weights import load_weights as load_weights
from .weights import push_to_hub as push_to_hub
from .weights import save as save
from .wrappers import FeatureExtractWrapper as FeatureExtractWrapper

if TYPE_CHECKING:
    from . import (
        adapters,
        attention,
        backbone,
        bulk,
        contract,
        cvnets,
        errors,
        explain,
        features,
        heads,
        images,
        models,
        necks,
        preprocessing,
        probe,
        registers,
        registry,
        runtime,
        tiling,
        training,
        upsampling,
        viz,
        weights,
        wrappers,
    )
    from .bulk import FeatureDataset, embed, extract
    from .heads import create_detector, create_segmenter
    from .runtime import export, load_exported, optimize
    from .tiling import tiled
    from .upsampling import shifted, upsample

__all__ = [
    "ArgumentError",
    "Backbone",
    "CheckpointError",
    "CheckpointMismatchError",
    "ContractError",
    "DataConfig",
    "FeatureDataset",
    "FeatureExtractWrapper",
    "FeatureInfo",
    "FeatxError",
    "ImageError",
    "InputError",
    "Levels",
    "LoadReport",
    "MissingPackageError",
    "OutIndicesError",
    "OutputError",
    "Pyramid",
    "Tap",
    "UnknownModelError",
    "WeightsNotFoundError",
    "__version__",
    "adapters",
    "attention",
    "backbone",
    "build_model_with_cfg",
    "bulk",
    "capture_attention",
    "contract",
    "create_detector",
    "create_model",
    "create_segmenter",
    "cvnets",
    "discover",
    "embed",
    "errors",
    "explain",
    "export",
    "extract",
    "features",
    "heads",
    "images",
    "list_models",
    "load_exported",
    "load_weights",
    "models",
    "necks",
    "optimize",
    "preprocessing",
    "probe",
    "push_to_hub",
    "register_model",
    "registers",
    "registry",
    "runtime",
    "save",
    "shifted",
    "tap",
    "tiled",
    "tiling",
    "training",
    "transform",
    "transform_whole",
    "upsample",
    "upsampling",
    "verify",
    "viz",
    "weights",
    "wrappers",
]

# Public names that are imported when they are asked for, because not every user of maps needs them, and where they are.
LAZY = {
    **dict.fromkeys(("FeatureDataset", "embed", "extract"), "bulk"),
    **dict.fromkeys(("create_detector", "create_segmenter"), "heads"),
    **dict.fromkeys(("export", "load_exported", "optimize"), "runtime"),
    **dict.fromkeys(("shifted", "upsample"), "upsampling"),
    "tiled": "tiling",
}


def __getattr__(name: str) -> Any:
    """A public name, or a public module, that is not imported yet."""
    if name in LAZY:
        return getattr(import_module(f"{__name__}.{LAZY[name]}"), name)
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
