"""Pictures of what a model's maps see. matplotlib is imported when the first is drawn."""

from .colours import Basis as Basis
from .colours import principal_colours as principal_colours
from .colours import shared_bases as shared_bases
from .figures import channels as channels
from .figures import compare as compare
from .figures import maps_grid as maps_grid
from .figures import norms as norms
from .figures import overlay as overlay
from .figures import overlays as overlays
from .panels import save_figure as save_figure
from .photograph import as_seen as as_seen
from .photograph import seen_part as seen_part
from .points import similarity as similarity
