"""Maps at a higher resolution without training: guided by the image, or from shifted copies of it."""

from .dense_maps import upsample as upsample
from .joint_bilateral import JointBilateral as JointBilateral
from .shifted_pyramid import shifted as shifted
from .upsampler import Bilinear as Bilinear
from .upsampler import MapFirst as MapFirst
from .upsampler import Upsampler as Upsampler
