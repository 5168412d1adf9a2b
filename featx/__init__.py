"""Multi-scale feature maps from vision backbones, under one verified contract."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .attention import capture_attention as capture_attention
from .backbone import Backbone as Backbone
from .backbone import Pyramid as Pyramid
from .contract import verify as verify
from .creation import build_model_with_cfg as build_model_with_cfg
from .discover import discover as discover
from .errors import ArgumentError as ArgumentError
from .errors import CheckpointError as CheckpointError
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
from .preprocessing import DataConfig as DataConfig
from .preprocessing import transform as transform
from .preprocessing import transform_whole as transform_whole
from .registry import list_models as list_models
from .registry import register_model as register_model
from .report import LoadReport as LoadReport
from .tap import tap as tap
from .version import __version__ as __version__
from .weights import load_weights as load_weights
from .weights import push_to_hub as push_to_hub
from .weights import save as save
from .wrappers import FeatureExtractWrapper as FeatureExtractWrapper
from .wrappers.form import Tap as Tap

if TYPE_CHECKING:
    from .bulk import FeatureDataset as FeatureDataset
    from .bulk import embed as embed
    from .bulk import extract as extract
    from .heads import create_detector as create_detector
    from .heads import create_segmenter as create_segmenter
    from .runtime import export as export
    from .runtime import load_exported as load_exported
    from .runtime import optimize as optimize

# public names, and where they are
LAZY = {
    **dict.fromkeys(("FeatureDataset", "embed", "extract"), "bulk"),
    **dict.fromkeys(("create_detector", "create_segmenter"), "heads"),
    **dict.fromkeys(("export", "load_exported", "optimize"), "runtime"),
}


def __getattr__(name: str) -> Any:
    """What not every user of maps needs is imported when it is asked for."""
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{LAZY[name]}"), name)
