"""Maps and a photograph to draw, and what a figure shows of them."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from skimage import data
from torch import Tensor

from featx import FeatureInfo, Levels
from featx.viz import maps_grid

LEVELS = Levels([FeatureInfo(8, 4, "stem"), FeatureInfo(16, 8, "layer1"), FeatureInfo(2, 16, "layer2.0")])


def random_map(*shape: int) -> Tensor:
    """(chs, h, w) whose channels vary by different amounts, so that components are well apart."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return values * torch.linspace(1, 3, shape[0])[:, None, None]


def maps() -> list[Tensor]:
    return [random_map(8, 24, 36), random_map(16, 12, 18), random_map(2, 6, 9)]


@pytest.fixture
def coffee() -> Image.Image:
    return Image.fromarray(data.coffee()).resize((144, 96))


@pytest.fixture
def figure(coffee) -> Figure:
    return maps_grid(coffee, maps(), LEVELS, title="resnet $18_$ · weights: a_b")


def components(map_: Tensor) -> np.ndarray:
    """(h, w, 3): the definition: cells projected on the eigenvectors of their covariance, stretched to [0, 1].

    An eigenvector's sign is arbitrary: its largest weight is positive here.
    """
    cells = map_.flatten(1).T.double().numpy()
    variances, directions = np.linalg.eigh(np.cov(cells.T))
    directions = directions[:, np.argsort(variances)[::-1][:3]]
    parts = (cells - cells.mean(0)) @ (directions * np.sign([axis[np.abs(axis).argmax()] for axis in directions.T]))
    low, high = np.percentile(parts, [1, 99], axis=0)
    return ((parts - low) / (high - low)).clip(0, 1).reshape(*map_.shape[1:], -1)


def assert_colors(colors: Tensor, expected: np.ndarray) -> None:
    for channel in range(expected.shape[-1]):
        # 1e-5: single precision, and a percentile divides by a difference
        assert np.abs(colors[..., channel].numpy() - expected[..., channel]).max() < 1e-5


def drawn(figure: Figure, panel: int) -> np.ndarray:
    """What the last layer of a panel shows."""
    return np.asarray(panels(figure)[panel].get_images()[-1].get_array())


def panels(figure: Figure) -> list:
    """The axes with pictures; color bars stand in axes of their own, within these."""
    return [axis for axis in figure.axes if axis.get_images()]
