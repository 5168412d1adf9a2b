"""Necks: modules that turn a backbone's maps into the maps that a head needs."""

from .base import Neck as Neck
from .bifpn import BiFPN as BiFPN
from .dpt import FeatureFusion as FeatureFusion
from .dpt import Reassemble as Reassemble
from .fpn import FPN as FPN
from .fpn import PAFPN as PAFPN
from .levels import ASPP as ASPP
from .levels import P6P7 as P6P7
from .levels import ChannelMapper as ChannelMapper
from .levels import ExtraLevels as ExtraLevels
from .levels import MaxPoolLevel as MaxPoolLevel
from .levels import Resample as Resample
from .pipeline import Pipeline as Pipeline
from .simple_feature_pyramid import SimpleFeaturePyramid as SimpleFeaturePyramid
from .vit_adapter import DINOv3Adapter as DINOv3Adapter
from .vit_adapter import ViTAdapter as ViTAdapter
from .vit_adapter_layers import DeformableConfig as DeformableConfig
