"""Files that people have, as their programs save them: names, containers and prefixes around a network.

Each is built from random weights: of the program itself where it is installed, else of one of our models whose names
are restated.
"""

from published_containers import CONTAINERS, DTYPES
from published_detectors import DETECTORS, PROGRAMS
from published_dinov3 import DINOV3
from published_file import PublishedFile
from published_formats import FORMATS
from published_mobile import MOBILE
from published_self_supervised import SELF_SUPERVISED
from published_towers import IMAGE_TEXT

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
