"""Maps of images that are larger than memory: tiles, stitched to the maps of the whole image."""

from .raster import RasterWindows as RasterWindows
from .receptive_field import Margins as Margins
from .receptive_field import receptive_margins as receptive_margins
from .tiled_extractor import TiledExtractor as TiledExtractor
from .tiled_extractor import tiled as tiled
from .windows import ArrayWindows as ArrayWindows
from .windows import Windows as Windows
