"""Pictures of what a model's maps see."""

from .grid import maps_grid as maps_grid
from .grid import save_figure as save_figure
