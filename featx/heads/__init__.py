"""Heads: modules from maps to predictions, and whole networks for segmentation and detection on any backbone."""

from .auxiliary import AuxiliaryHead as AuxiliaryHead
from .creation import create_detector as create_detector
from .creation import create_segmenter as create_segmenter
from .deeplabv3 import DeepLabV3 as DeepLabV3
from .deeplabv3 import DeepLabV3Config as DeepLabV3Config
from .linear import LinearConfig as LinearConfig
from .linear import LinearProbe as LinearProbe
from .loss import segmentation_loss as segmentation_loss
from .pspnet import PSPNet as PSPNet
from .pspnet import PSPNetConfig as PSPNetConfig
from .segmenter import Segmenter as Segmenter
from .ssd_head import SSDConfig as SSDConfig
from .ssd_head import SSDHead as SSDHead
