"""Backbones for detectron2, which no package index has: its interface is stated here again.

What is stated is what its modules read (detectron2/modeling/backbone/backbone.py and fpn.py, layers/shape_spec.py): a
base class, ShapeSpec, and an FPN that asks for that class and doubles maps.
"""

import pickle
import subprocess
import sys
from abc import ABCMeta, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from conftest import images, random_extractor
from support.adapters import BACKBONES, assert_close, assert_trains, is_vit, pyramid, reloaded, side
from torch import nn

import featx
from featx.adapters import detectron2 as adapter
from featx.adapters.requirements import simple_pyramid
from featx.necks import Pipeline, SimpleFeaturePyramid

NAMES = ("res2", "res3", "res4", "res5")


class Backbone(nn.Module, metaclass=ABCMeta):
    @abstractmethod
    def forward(self): ...

    @property
    def size_divisibility(self):
        return 0

    @property
    def padding_constraints(self):
        return {}


@dataclass
class ShapeSpec:
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class DoublingFPN(Backbone):
    """Lateral convolutions, and a top-down path that doubles the sides of each map."""

    def __init__(self, bottom_up, in_features, out_channels):
        super().__init__()
        assert isinstance(bottom_up, Backbone)
        shapes = bottom_up.output_shape()
        strides = [shapes[name].stride for name in in_features]
        assert all(deeper == 2 * finer for finer, deeper in pairwise(strides))
        self.bottom_up, self.in_features = bottom_up, in_features
        self.laterals = nn.ModuleList(nn.Conv2d(shapes[name].channels, out_channels, 1) for name in in_features)

    def forward(self, x):
        maps = self.bottom_up(x)
        laterals = [conv(maps[name]) for conv, name in zip(self.laterals, self.in_features, strict=True)]
        top, out = laterals[-1], [laterals[-1]]
        for lateral in laterals[-2::-1]:
            top = lateral + F.interpolate(top, scale_factor=2.0, mode="nearest")
            out.insert(0, top)
        return out


@pytest.fixture(autouse=True)
def detectron2(monkeypatch):
    modules = {name: ModuleType(name) for name in ("detectron2", "detectron2.modeling", "detectron2.layers")}
    modules["detectron2.modeling"].Backbone = Backbone
    modules["detectron2.layers"].ShapeSpec = ShapeSpec
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    adapter._class.cache_clear()
    yield
    adapter._class.cache_clear()


def bottom_up(name):
    source = pyramid(name, 16) if is_vit(name) else random_extractor(name, out_indices=[1, 2, 3, 4])
    return adapter.backbone(source, NAMES)


def padded(x, backbone):
    """As its ImageList pads: with zeros on the right and at the bottom."""
    divisor = backbone.padding_constraints["size_divisibility"]
    return F.pad(x, [0, -x.shape[3] % divisor, 0, -x.shape[2] % divisor])


@pytest.mark.parametrize("name", BACKBONES)
def test_its_fpn_trains_and_keeps_its_numbers_through_a_file(name):
    model, x = DoublingFPN(bottom_up(name), NAMES, 8), images(2, 3, side(name), side(name))
    assert_trains(model.train(), sum(map_.square().mean() for map_ in model(x)))
    again = reloaded(model, DoublingFPN(bottom_up(name), NAMES, 8))
    for ours, map_ in zip(again(x), model.eval()(x), strict=True):
        assert_close(ours, map_)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_odd_sizes_pass_its_fpn_after_the_padding_it_asks_for(name):
    model, x = DoublingFPN(bottom_up(name), NAMES, 8).eval(), images(1, 3, 97, 161)
    with pytest.raises(RuntimeError, match="must match"):
        model(x)
    x = padded(x, model.bottom_up)
    assert x.shape[2:] == (128, 192)
    assert [map_.shape[2:] for map_ in model(x)] == [(32, 48), (16, 24), (8, 12), (4, 6)]


def patch_14():
    return random_extractor("vit_small_patch14_dinov2", out_indices=[-1], dim=32, depth=2, heads=2)


def whole_strides(plain):
    return Pipeline(plain, SimpleFeaturePyramid([*plain.feature_info], 8, scale_factors=(2, 1, 0.5)))


@pytest.mark.parametrize(
    ("source", "multiple"),
    [
        (lambda: random_extractor("mobilevitv2_050", out_indices=[2, 3, 4]), 64),
        (lambda: simple_pyramid(patch_14(), 8, [1, 2, 3]), 32),
        (
            lambda: Pipeline(
                patch_14(), SimpleFeaturePyramid([*patch_14().feature_info], 8, scale_factors=(2, 1, 0.5))
            ),
            28,
        ),
    ],
)
def test_the_padding_makes_maps_double_that_are_enlarged_or_of_other_patches(source, multiple):
    backbone = adapter.backbone(source(), NAMES[1:])
    assert backbone.size_divisibility == multiple
    model = DoublingFPN(backbone, NAMES[1:], 8).eval()
    assert len(model(padded(images(1, 3, 97, 161), backbone))) == 3


def test_shapes_are_reported_by_name():
    backbone = adapter.backbone(random_extractor("resnet18", out_indices=[4, 2]), ("deep", "fine"))
    assert backbone.output_shape() == {"deep": ShapeSpec(512, stride=32), "fine": ShapeSpec(128, stride=8)}
    assert {name: map_.shape[1] for name, map_ in backbone(images(1, 3, 64, 64)).items()} == {"deep": 512, "fine": 128}
    assert backbone.size_divisibility == 32
    assert backbone.padding_constraints == {"size_divisibility": 32, "square_size": 0}


def test_names_are_those_of_the_levels_by_default():
    backbone = adapter.backbone(random_extractor("resnet18", out_indices=[1, 3]))
    assert list(backbone.output_shape()) == ["layer1", "layer3"]


@pytest.mark.parametrize("names", [("a",), ("a", "a"), ("a", "b", "c")])
def test_each_level_needs_a_name(names):
    with pytest.raises(featx.ArgumentError, match="give each level its own"):
        adapter.backbone(random_extractor("resnet18", out_indices=[1, 2]), names)


def test_statistics_are_of_pixels_to_255():
    told = adapter.pixel_statistics(random_extractor("resnet18"))
    assert told["pixel_mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert told["pixel_std"] == pytest.approx([58.395, 57.12, 57.375])


def test_backbones_are_pickled():
    backbone = adapter.backbone(random_extractor("resnet18")).eval()
    again = pickle.loads(pickle.dumps(backbone))
    assert torch.equal(again(images())["layer4"], backbone(images())["layer4"])


def test_a_missing_package_is_named_with_how_to_get_it(monkeypatch):
    for name in ("detectron2", "detectron2.modeling"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(featx.MissingPackageError, match="needs the package detectron2: see https"):
        adapter.backbone(random_extractor("resnet18"))


def test_adapters_import_their_package_on_the_call_alone():
    lines = "import sys\nfrom featx.adapters import detectron2, mmengine, smp, smp_dpt, torchvision, transformers\n"
    lines += "assert not {'detectron2', 'mmengine', 'segmentation_models_pytorch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", lines], check=True)
