"""torchvision's checkpoints: its models' numbers from ours, and our tensors under its names."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import images, randomize, relative_difference, to_native
from torch import Tensor, nn
from torchvision import models as tv
from torchvision.models import convnext, efficientnet, regnet
from torchvision.models.feature_extraction import create_feature_extractor

import featx
from featx.meta_init import init_empty_weights
from featx.models.layers.mobile import ConvNormAct as Dense
from featx.models.layers.mobile import DepthwiseSeparable, FusedInvertedResidual, InvertedResidual, Row
from featx.weights.layout import Layout, find_layout, recognize_layout

# Single precision, the same operations in another order.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A model of torchvision, our name and fields for it, and the modules there whose outputs are our levels."""

    build: Callable[..., nn.Module]
    name: str
    levels: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (64, 96)

    @property
    def family(self) -> str:
        with torch.device("meta"):
            return type(featx.create_model(self.name)).__name__


BN_1E3 = partial(nn.BatchNorm2d, eps=1e-3)


def small_efficientnet(num_classes: int) -> nn.Module:
    """Three blocks in the first stage, as B5 has them."""
    rows = [(1, 3, 1, 16, 8, 3), (6, 5, 2, 8, 16, 2)]
    stages = [efficientnet.MBConvConfig(*row) for row in rows]
    return tv.EfficientNet(stages, 0.0, num_classes=num_classes, norm_layer=BN_1E3, last_channel=64)


def small_efficientnet_v2(num_classes: int) -> nn.Module:
    stages = [
        efficientnet.FusedMBConvConfig(1, 3, 1, 16, 16, 2),
        efficientnet.FusedMBConvConfig(4, 3, 2, 16, 24, 2),
        efficientnet.MBConvConfig(4, 3, 2, 24, 32, 2),
    ]
    return tv.EfficientNet(stages, 0.0, num_classes=num_classes, norm_layer=BN_1E3, last_channel=64)


def small_convnext(num_classes: int) -> nn.Module:
    widths = (8, 16, 24, 32, None)
    stages = [convnext.CNBlockConfig(widths[i] or 0, widths[i + 1], depth) for i, depth in enumerate((1, 2, 3, 1))]
    return tv.ConvNeXt(stages, num_classes=num_classes)


def small_vit(num_classes: int) -> nn.Module:
    return tv.VisionTransformer(32, 8, 3, 2, 16, 64, num_classes=num_classes)


B = {"stages": ((Row(DepthwiseSeparable, 8, repeats=3, se=True),), (Row(InvertedResidual, 16, 5, 2, 6, 2, se=True),))}
V2 = {
    "stages": (
        (Row(Dense, 16, repeats=2),),
        (Row(FusedInvertedResidual, 24, 3, 2, 4, 2),),
        (Row(InvertedResidual, 32, 3, 2, 4, 2, se=True),),
    )
}
CONVNEXT = {"depths": (1, 2, 3, 1), "chs": (8, 16, 24, 32)}
VIT = {"dim": 16, "depth": 3, "heads": 2, "patch": 8, "image_size": 32}
RESNET = ("relu", "layer1", "layer2", "layer3", "layer4")
REGNET = ("stem", *(f"trunk_output.block{number}" for number in (1, 2, 3, 4)))


def features(*numbers: int) -> tuple[str, ...]:
    return tuple(f"features.{number}" for number in numbers)


CASES = {
    "resnet18": Case(tv.resnet18, "resnet18", RESNET),
    "resnext50_32x4d": Case(tv.resnext50_32x4d, "resnext50_32x4d", RESNET),
    "mobilenet_v2": Case(tv.mobilenet_v2, "mobilenetv2_100", features(1, 3, 6, 13, 17)),
    "mobilenet_v3_small": Case(tv.mobilenet_v3_small, "mobilenetv3_small_100", features(0, 1, 3, 8, 12)),
    "mobilenet_v3_large": Case(tv.mobilenet_v3_large, "mobilenetv3_large_100", features(1, 3, 6, 12, 16)),
    "efficientnet_b0": Case(tv.efficientnet_b0, "efficientnet_b0", features(1, 2, 3, 5, 7)),
    "efficientnet_b5": Case(
        small_efficientnet, "efficientnet_b5", features(1, 2), {**B, "stem_chs": 16, "head_chs": 64}
    ),
    "efficientnet_v2": Case(
        small_efficientnet_v2, "efficientnetv2_s", features(1, 2, 3), {**V2, "stem_chs": 16, "head_chs": 64}
    ),
    "convnext": Case(small_convnext, "convnext_tiny", features(1, 3, 5, 7), CONVNEXT),
    "regnet_x": Case(tv.regnet_x_400mf, "regnetx_004_tv", REGNET),
    "regnet_y": Case(tv.regnet_y_400mf, "regnety_004", REGNET),
    "vit": Case(small_vit, "vit_tiny_patch16_224", (), VIT, (32, 32)),
}
AWKWARD = {name: case for name, case in CASES.items() if name != "vit"}
HAS_LAYOUT = [name for name in CASES if not name.startswith("resne")]


def foreign(case: Case, num_classes: int = 7) -> nn.Module:
    return randomize(case.build(num_classes=num_classes), seed=3)


def layout_of(case: Case, state: dict[str, Tensor]) -> Layout:
    found = recognize_layout(state, [case.family])
    assert found is not None
    return found


def settings(case: Case, model: nn.Module) -> dict[str, Any]:
    found = recognize_layout(model.state_dict(), [case.family])
    return {**case.fields, **(found.settings if found else {})}


def saved(model: nn.Module, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "torchvision.pth")
    return folder / "torchvision.pth"


@pytest.mark.parametrize("name", CASES)
def test_logits_are_torchvisions(name, tmp_path):
    case = CASES[name]
    reference = foreign(case)
    model = featx.create_model(
        case.name, num_classes=7, checkpoint_path=saved(reference, tmp_path), **settings(case, reference)
    ).eval()
    x = images(2, 3, *case.size)
    with torch.no_grad():
        assert relative_difference(model(x), reference(x)) < TOLERANCE


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("size", [(64, 64), (75, 90)], ids=str)
def test_maps_are_torchvisions(name, size, tmp_path):
    case = CASES[name]
    reference = foreign(case)
    extractor = featx.create_model(
        case.name, features_only=True, checkpoint_path=saved(reference, tmp_path), **settings(case, reference)
    ).eval()
    x = images(1, 3, *size)
    with torch.no_grad():
        expected = create_feature_extractor(reference, {node: node for node in case.levels})(x)
        maps = extractor(x)
    assert len(maps) == len(case.levels)
    for map_, node in zip(maps, case.levels, strict=True):
        assert relative_difference(map_, expected[node]) < TOLERANCE


def test_the_maps_of_a_vit_are_torchvisions(tmp_path):
    case = CASES["vit"]
    reference = foreign(case)
    extractor = featx.create_model(
        case.name, features_only=True, checkpoint_path=saved(reference, tmp_path), **case.fields
    ).eval()
    nodes = [f"encoder.layers.encoder_layer_{i}" for i in range(3)]
    tokens = {}
    for node in nodes:
        reference.get_submodule(node).register_forward_hook(lambda _, __, out, node=node: tokens.update({node: out}))
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        maps, _ = extractor(x), reference(x)
    for map_, node in zip(maps, nodes, strict=True):
        expected = tokens[node][:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        assert relative_difference(map_, expected) < TOLERANCE


@pytest.mark.parametrize("name", HAS_LAYOUT)
def test_there_and_back_again_nothing_has_changed(name):
    case = CASES[name]
    native = randomize(featx.create_model(case.name, num_classes=7, **case.fields)).state_dict()
    before = {name: tensor.clone() for name, tensor in native.items()}
    from_native = find_layout("torchvision", [case.family]).from_native
    assert from_native is not None
    theirs = from_native(native)
    case.build(num_classes=7).load_state_dict(theirs, strict=True)
    ours = layout_of(case, theirs).to_native(theirs, native.keys())
    assert ours.keys() == native.keys() == before.keys()
    assert all(torch.equal(ours[name], before[name]) for name in before)
    assert all(torch.equal(native[name], before[name]) for name in before)


@pytest.mark.parametrize("name", CASES)
def test_our_own_names_are_not_taken_for_torchvisions(name):
    case = CASES[name]
    with torch.device("meta"):
        model = featx.create_model(case.name, **case.fields)
    assert recognize_layout(model.state_dict(), [case.family]) is None


GIGAFLOPS = {"1_6": "016", "3_2": "032", "16": "160", "32": "320"}
# Every classifier of torchvision that we have, by its name there.
PUBLISHED = {
    **{name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    **{name: name for name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")},
    **{name: name for name in ("wide_resnet50_2", "wide_resnet101_2")},
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    **{f"efficientnet_b{i}": f"efficientnet_b{i}" for i in range(8)},
    **{f"efficientnet_v2_{size}": f"efficientnetv2_{size}" for size in "sml"},
    **{f"convnext_{size}": f"convnext_{size}" for size in ("tiny", "small", "base", "large")},
    "regnet_x_400mf": "regnetx_004_tv",
    "regnet_y_400mf": "regnety_004",
    "regnet_y_800mf": "regnety_008_tv",
    "regnet_y_8gf": "regnety_080_tv",
    "regnet_x_800mf": "regnetx_008",
    **{f"regnet_x_{theirs}gf": f"regnetx_{ours}" for theirs, ours in GIGAFLOPS.items()},
    "regnet_x_8gf": "regnetx_080",
    **{f"regnet_y_{theirs}gf": f"regnety_{ours}" for theirs, ours in GIGAFLOPS.items()},
    "regnet_y_128gf": "regnety_1280",
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
}


@pytest.fixture
def widths_with_values(monkeypatch):
    """torchvision computes those of a RegNet with tensors, and reads them."""
    compute = regnet.BlockParams.from_init_params

    def computed(*numbers, **others):
        with torch.device("cpu"):
            return compute(*numbers, **others)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", computed)


@pytest.mark.sweep
@pytest.mark.usefixtures("widths_with_values")
@pytest.mark.parametrize("theirs", PUBLISHED)
def test_every_published_model_fits(theirs):
    with init_empty_weights():
        reference = tv.get_model(theirs)
        model = featx.create_model(PUBLISHED[theirs], num_classes=1000)
    ours = to_native(reference.state_dict(), model.state_dict().keys(), [type(model).__name__])
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }


@pytest.mark.sweep
@pytest.mark.usefixtures("widths_with_values")
@pytest.mark.parametrize("theirs", [name for name in PUBLISHED if not name.startswith(("vit", "convnext"))])
def test_every_published_model_has_the_epsilon_of_its_norms(theirs):
    with init_empty_weights():
        reference = tv.get_model(theirs)
        model = featx.create_model(PUBLISHED[theirs])
        found = recognize_layout(reference.state_dict(), [type(model).__name__])
        model = featx.create_model(PUBLISHED[theirs], **(found.settings if found else {}))
    expected, ours = (
        {module.eps for module in net.modules() if isinstance(module, nn.BatchNorm2d)} for net in (reference, model)
    )
    assert ours == expected


def test_perceptrons_of_old_vits_are_recognized():
    """torchvision named their layers linear_1 and linear_2 when the files that it publishes were written."""
    reference = foreign(CASES["vit"]).state_dict()
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): tensor
        for name, tensor in reference.items()
    }
    names = featx.create_model("vit_tiny_patch16_224", num_classes=7, **VIT).state_dict().keys()
    assert to_native(old, names, ["ViT"]).keys() == to_native(reference, names, ["ViT"]).keys() == names


def test_a_checkpoint_of_another_depth_is_refused_by_name(tmp_path):
    path = saved(foreign(CASES["mobilenet_v3_large"]), tmp_path)
    with pytest.raises(featx.CheckpointError, match=r"missing    blocks.0.0.se.conv_reduce.weight"):
        featx.create_model("mobilenetv3_small_100", num_classes=7, checkpoint_path=path)


def test_resnets_have_the_same_names_there_and_here():
    back = find_layout("torchvision", ["ResNet"]).from_native
    for name, theirs in (("resnet18", tv.resnet18), ("resnext50_32x4d", tv.resnext50_32x4d)):
        with torch.device("meta"):
            model, reference = featx.create_model(name), theirs()
        assert back(model.state_dict()).keys() == reference.state_dict().keys()
    with torch.device("meta"), pytest.raises(featx.CheckpointError, match="torchvision has no ResNet of that kind"):
        back(featx.create_model("resnet50d").state_dict())
