"""Files that people have, as their programs save them: names, containers and prefixes around a network.

Each is built from random weights: of the program itself where it is installed, else of one of our models whose names
are restated.
"""

from layouts.published_containers import CONTAINERS, DTYPES
from layouts.published_detectors import DETECTORS, PROGRAMS
from layouts.published_dinov3 import DINOV3
from layouts.published_file import PublishedFile
from layouts.published_formats import FORMATS
from layouts.published_mobile import MOBILE
from layouts.published_self_supervised import SELF_SUPERVISED
from layouts.published_towers import IMAGE_TEXT

FILES: dict[str, PublishedFile] = {
    **DETECTORS,
    **PROGRAMS,
    **IMAGE_TEXT,
    **SELF_SUPERVISED,
    **DINOV3,
    **CONTAINERS,
    **MOBILE,
    **FORMATS,
    **DTYPES,
}
