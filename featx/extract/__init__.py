"""From image files to feature maps on disk."""

from .images import find_images as find_images
from .run import Summary as Summary
from .run import extract as extract
