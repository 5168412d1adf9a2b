"""From images to files of feature maps, and back."""

from .changes import Sources as Sources
from .changes import check_sources as check_sources
from .checksums import Checked as Checked
from .checksums import check_files as check_files
from .count import Progress as Progress
from .count import Summary as Summary
from .dataset import FeatureDataset as FeatureDataset
from .dataset import Features as Features
from .embedding import embed as embed
from .folder_merge import Merged as Merged
from .folder_merge import merge as merge
from .formats import convert as convert
from .index import write_index as write_index
from .inputs import find_items as find_items
from .left_out import LeftOut as LeftOut
from .ray import OnRay as OnRay
from .recipe import Recipe as Recipe
from .recipe import Resources as Resources
from .run import extract as extract
from .search import Duplicate as Duplicate
from .search import Neighbour as Neighbour
from .shard import Failure as Failure
from .sources import Items as Items
from .statistics import LevelStatistics as LevelStatistics
from .statistics import Statistics as Statistics
from .statistics import stats as stats
