"""Spatial alignment of the maps of torchvision's and timm's models, with one architecture per file of timm."""

import pytest
import torch
from support.docs_scripts import script

FAST = ("shufflenet_v2_x0_5", "test_vit", "test_byobnet")
PLACES = script("places")


def names(every):
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.bridges) for name in every]


@pytest.mark.parametrize("name", names(PLACES.torchvision_names()))
def test_cells_of_torchvisions_models_lie_as_the_pixels_do(name):
    torch.manual_seed(0)
    row = PLACES.torchvision(name)
    assert row.sizes
    assert row.problems == ()


@pytest.mark.parametrize("name", names(PLACES.TIMM))
def test_cells_of_timms_models_lie_as_the_pixels_do(name):
    torch.manual_seed(0)
    row = PLACES.timm(name)
    assert row.sizes
    assert row.problems == ()


def test_every_file_of_timm_has_an_architecture_here():
    registry = pytest.importorskip("timm.models._registry")
    modules = {registry._model_to_module[name] for name in PLACES.TIMM}
    assert modules == {*registry._module_to_models}
