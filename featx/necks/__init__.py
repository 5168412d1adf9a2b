"""Necks: from the maps of a backbone to the maps a head wants."""

from .aspp import ASPP as ASPP
from .base import Neck as Neck
from .bifpn import BiFPN as BiFPN
from .channel_mapper import ChannelMapper as ChannelMapper
from .extra_levels import P6P7 as P6P7
from .extra_levels import ExtraLevels as ExtraLevels
from .extra_levels import MaxPoolLevel as MaxPoolLevel
from .fpn import FPN as FPN
from .pafpn import PAFPN as PAFPN
from .pipeline import Pipeline as Pipeline
from .resample import Resample as Resample
from .simple_feature_pyramid import SimpleFeaturePyramid as SimpleFeaturePyramid
