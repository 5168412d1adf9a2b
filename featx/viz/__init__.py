"""Figures of feature maps and attention maps. matplotlib is imported when the first figure is drawn."""

from .cell_similarity import similarity as similarity
from .figure import save_figure as save_figure
from .map_figures import channels as channels
from .map_figures import compare as compare
from .map_figures import maps_grid as maps_grid
from .map_figures import norms as norms
from .map_figures import overlay as overlay
from .map_figures import overlays as overlays
from .model_view import as_seen as as_seen
from .model_view import seen_part as seen_part
from .pca_colors import Basis as Basis
from .pca_colors import principal_colors as principal_colors
from .pca_colors import shared_bases as shared_bases
