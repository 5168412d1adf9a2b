"""Necks: from the maps of a backbone to the maps a head wants."""

from .base import Neck as Neck
from .channel_mapper import ChannelMapper as ChannelMapper
from .pipeline import Pipeline as Pipeline
