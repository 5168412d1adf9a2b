"""Extraction of feature maps from many images to files, and reading of these files."""

from .config import Recipe as Recipe
from .config import Resources as Resources
from .converters import convert as convert
from .embedding import embed as embed
from .extraction import extract as extract
from .feature_dataset import FeatureDataset as FeatureDataset
from .feature_dataset import Features as Features
from .folder_merge import Merged as Merged
from .folder_merge import merge as merge
from .index import write_index as write_index
from .inputs import find_items as find_items
from .integrity import Checked as Checked
from .integrity import Sources as Sources
from .integrity import check_files as check_files
from .integrity import check_sources as check_sources
from .progress import Progress as Progress
from .progress import Summary as Summary
from .ray_runner import OnRay as OnRay
from .search import Duplicate as Duplicate
from .search import Neighbor as Neighbor
from .shard import Failure as Failure
from .sources import Items as Items
from .sources import LeftOut as LeftOut
from .statistics import LevelStatistics as LevelStatistics
from .statistics import Statistics as Statistics
from .statistics import stats as stats
