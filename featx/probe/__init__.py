"""Scores of the levels of backbones on labeled images, before anything is trained."""

from .bootstrap import Score as Score
from .correspondence import pck as pck
from .geometry import effective_rank as effective_rank
from .geometry import linear_cka as linear_cka
from .map_sources import ComputedMaps as ComputedMaps
from .map_sources import MapSource as MapSource
from .map_sources import StoredMaps as StoredMaps
from .masks import MaskFolder as MaskFolder
from .measurement import ProbeOptions as ProbeOptions
from .measurement import measure as measure
from .report import Report as Report
from .report import Row as Row
from .score_chart import chart as chart
