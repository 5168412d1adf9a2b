"""Pictures of what a model's maps see. matplotlib is imported when the first is drawn."""

from .colours import Basis as Basis
from .colours import principal_colours as principal_colours
from .colours import shared_bases as shared_bases
from .figure import save_figure as save_figure
from .grid import compare as compare
from .grid import maps_grid as maps_grid
from .heat import channels as channels
from .heat import norms as norms
from .heat import overlay as overlay
from .heat import overlays as overlays
from .photograph import as_seen as as_seen
from .photograph import seen_part as seen_part
from .points import similarity as similarity
