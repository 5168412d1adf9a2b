"""The figure that all pictures are drawn in. It needs matplotlib, so it is imported where the first line is drawn."""

from matplotlib.figure import Figure

from .panels import png_of


class Picture(Figure):
    """A figure that notebooks show as it is: matplotlib's own does so only if it was made by pyplot."""

    def _repr_png_(self) -> bytes:
        return png_of(self)
