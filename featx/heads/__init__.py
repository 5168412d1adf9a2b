"""Heads: modules that turn maps into predictions, and complete segmentation and detection networks on any backbone."""

from .dense import AuxiliaryHead as AuxiliaryHead
from .dense import DeepLabV3 as DeepLabV3
from .dense import DeepLabV3Config as DeepLabV3Config
from .dense import LinearConfig as LinearConfig
from .dense import LinearProbe as LinearProbe
from .dense import PSPNet as PSPNet
from .dense import PSPNetConfig as PSPNetConfig
from .factory import create_detector as create_detector
from .factory import create_segmenter as create_segmenter
from .segmenter import Segmenter as Segmenter
from .segmenter import segmentation_loss as segmentation_loss
from .ssd_head import SSDConfig as SSDConfig
from .ssd_head import SSDHead as SSDHead
