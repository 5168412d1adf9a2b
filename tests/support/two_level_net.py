"""A rewritten model with two levels."""

import torch
from conftest import randomize
from torch import nn

import featx
from featx import FeatureExtractWrapper


class Net(nn.Module):
    """Two levels, one of them normed and one with a bias."""

    feature_info = ({"chs": 4, "reduction": 2, "name": "a.0"}, {"chs": 8, "reduction": 4, "name": "a_0"})
    is_rewritten = True
    in_chans = 3
    data_config = featx.DataConfig(size=(32, 32), mean=(0.1, 0.2, 0.3))

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.a_0 = nn.Conv2d(4, 8, 3, 2, 1)

    def forward_features(self, x):
        x = self.a(x)
        return [x, self.a_0(x)]


def net(**arguments) -> FeatureExtractWrapper:
    torch.manual_seed(0)
    return FeatureExtractWrapper(randomize(Net()), **arguments)
