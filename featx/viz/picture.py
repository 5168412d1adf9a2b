"""The figure that all pictures are drawn in. It needs matplotlib, so it is imported where the first line is drawn."""

from io import BytesIO

from matplotlib.figure import Figure

DOTS_PER_INCH = 110


class Picture(Figure):
    """A figure that notebooks show as it is: matplotlib's own does so only if it was made by pyplot."""

    def _repr_png_(self) -> bytes:
        """The picture as a PNG file."""
        file = BytesIO()
        self.savefig(file, format="png", dpi=DOTS_PER_INCH)
        return file.getvalue()
