"""What is exported in the tests, and how far its maps are from the original's."""

import pytest
import torch
from conftest import randomize
from torch import nn

import featx
from featx import FeatureExtractWrapper

TOLERANCE = 1e-4  # of the largest value: other kernels sum in another order
PORTABLE = ["onnxruntime", "openvino"]


class Small(nn.Module):
    """Two levels, whose names are alike where they are made safe."""

    feature_info = ({"chs": 4, "reduction": 2, "name": "a.0"}, {"chs": 8, "reduction": 4, "name": "a_0"})
    is_rewritten = True
    in_chans = 3
    data_config = featx.DataConfig(
        size=(32, 32), mean=(0.1, 0.2, 0.3), crop_mode="squash", channel_order="bgr", crop_rounding="down"
    )

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.a_0 = nn.Conv2d(4, 8, 3, 2, 1)

    def forward_features(self, x):
        x = self.a(x)
        return [x, self.a_0(x)]


def small(**arguments):
    torch.manual_seed(0)
    return FeatureExtractWrapper(randomize(Small()), **arguments)


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    """An ONNX file of the small network, deepest map first, as a dict."""
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    featx.export(small(out_indices=[1, 0], output="dict"), path)
    return path
