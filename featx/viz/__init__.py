"""Pictures of what a model's maps see. matplotlib is imported when the first is drawn."""

from .colours import Basis as Basis
from .colours import principal_colours as principal_colours
from .colours import shared_bases as shared_bases
from .figure import save_figure as save_figure
from .map_figures import channels as channels
from .map_figures import compare as compare
from .map_figures import maps_grid as maps_grid
from .map_figures import norms as norms
from .map_figures import overlay as overlay
from .map_figures import overlays as overlays
from .photograph import as_seen as as_seen
from .photograph import seen_part as seen_part
from .points import similarity as similarity
