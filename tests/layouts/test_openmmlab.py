"""Files of MMPretrain, MMSegmentation and MMDetection, whose names are restated here from native ones."""

import re

import pytest
import torch
from conftest import images, randomize, relative_difference, same_state
from torch import Tensor

import featx
from featx import CheckpointError
from featx.weights.layout import all_layouts, find_layout

State = dict[str, Tensor]
TOLERANCE = 1e-6  # the same operations on the same tensors


def model(name: str, **fields: object):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize(featx.create_model(name, num_classes=7, **fields))


def written(name: str, family: str, **fields: object) -> State:
    from_native = find_layout("openmmlab", [family]).from_native
    assert from_native is not None
    return from_native(model(name, **fields).state_dict())


CASES = [
    ("resnet18", "ResNet", {}),
    ("resnet18d", "ResNet", {}),
    ("convnext_atto", "ConvNeXt", {}),
    ("convnext_tiny", "ConvNeXt", {"depths": (3, 1, 2, 1), "chs": (8, 16, 24, 32)}),
    ("convnextv2_atto", "ConvNeXt", {}),
    ("vit_tiny_patch16_224", "ViT", {"depth": 2, "image_size": 64, "antialias": False}),
    ("vit_small_patch14_dinov2", "ViT", {"depth": 2, "image_size": 56, "antialias": False}),
    ("vit_base_patch32_clip_224", "ViT", {"depth": 1, "dim": 96, "heads": 3, "image_size": 64, "antialias": False}),
]


@pytest.mark.parametrize(("name", "family", "fields"), CASES)
def test_there_and_back_changes_nothing(name, family, fields):
    native = model(name, **fields).state_dict()
    theirs = written(name, family, **fields)
    assert same_state(find_layout("openmmlab", [family]).to_native(theirs, native.keys()), native)
    assert [other.system for other in all_layouts() if other.recognizes(theirs)] == ["openmmlab"]
    assert not find_layout("openmmlab", [family]).recognizes(native)


@pytest.mark.parametrize(("name", "family", "fields"), CASES)
def test_logits_are_those_of_the_model_whose_names_were_restated(name, family, fields, tmp_path):
    torch.save({"state_dict": written(name, family, **fields), "meta": {"epoch": 3}}, tmp_path / "w.pth")
    loaded = featx.create_model(name, num_classes=7, checkpoint_path=tmp_path / "w.pth", **fields).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_difference(loaded(x), model(name, **fields)(x)) <= TOLERANCE


MARKS = {
    "resnet18d": (
        *("backbone.stem.0.conv.weight", "backbone.stem.1.bn.running_mean", "backbone.stem.2.bn.weight"),
        *("backbone.layer2.0.downsample.1.weight", "backbone.layer2.0.downsample.2.running_var", "head.fc.bias"),
    ),
    "resnet50d": ("backbone.layer1.0.downsample.0.weight", "backbone.layer1.0.downsample.1.running_var"),
    "convnextv2_atto": (
        *("backbone.downsample_layers.0.1.weight", "backbone.downsample_layers.3.1.bias", "backbone.norm3.weight"),
        *("backbone.stages.2.5.depthwise_conv.weight", "backbone.stages.0.1.pointwise_conv2.bias"),
        *("backbone.stages.0.0.grn.gamma", "head.fc.weight"),
    ),
    "vit_tiny_patch16_224": (
        *("backbone.cls_token", "backbone.pos_embed", "backbone.patch_embed.projection.bias", "backbone.ln1.weight"),
        *("backbone.layers.3.ln2.weight", "backbone.layers.0.attn.qkv.weight", "backbone.layers.11.attn.proj.bias"),
        *("backbone.layers.0.ffn.layers.0.0.weight", "backbone.layers.1.ffn.layers.1.bias", "head.layers.head.weight"),
    ),
}


@pytest.mark.parametrize("name", MARKS)
def test_the_names_are_those_of_mmpretrain(name):
    family = {"r": "ResNet", "c": "ConvNeXt", "v": "ViT"}[name[0]]
    assert {*MARKS[name]} <= written(name, family).keys()


def maps(name: str, checkpoint: State, **fields: object) -> list[Tensor]:
    extractor = featx.create_model(name, features_only=True, checkpoint_path=checkpoint, **fields)
    with torch.no_grad():
        return extractor.eval()(images(1, 3, 64, 64))


def numbered(name: str) -> str:
    """The stem as MMSegmentation names it: convolution, norm and activation, three times."""
    name = re.sub(r"^conv1\.", "stem.", name)
    return re.sub(r"^bn1\.", "stem.7.", name)


@pytest.mark.parametrize("name", ["resnet50c", "resnet50d"])
def test_backbones_of_segmentation_have_a_numbered_stem_and_other_heads_beside_them(name):
    native = model(name).state_dict()
    theirs = {f"backbone.{numbered(key)}": tensor for key, tensor in native.items() if not key.startswith("fc.")}
    heads = ("decode_head.conv_seg.weight", "auxiliary_head.convs.0.conv.weight", "data_preprocessor.mean")
    theirs |= {key: torch.zeros(2, 2) for key in heads}
    for ours, expected in zip(maps(name, theirs), maps(name, native), strict=True):
        assert torch.equal(ours, expected)


def test_the_classifier_of_a_plain_resnet_is_loaded():
    native = model("resnet18").state_dict()
    theirs = {f"backbone.{key}" if not key.startswith("fc.") else f"head.{key}": t for key, t in native.items()}
    loaded = featx.create_model("resnet18", num_classes=7, checkpoint_path=theirs)
    assert same_state(loaded.state_dict(), native)


def test_norms_of_the_other_maps_are_left_out():
    theirs = {key.removeprefix("backbone."): t for key, t in written("convnext_atto", "ConvNeXt").items()}
    theirs = {key: t for key, t in theirs.items() if not key.startswith("head.")}
    theirs |= {f"norm{k}.{leaf}": torch.ones(40 << k) for k in range(3) for leaf in ("weight", "bias")}
    native = model("convnext_atto").state_dict()
    for ours, expected in zip(maps("convnext_atto", theirs), maps("convnext_atto", native), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", ["convnext_atto", "convnext_tiny"])
def test_convolutions_and_linear_layers_of_the_mlp_are_both_read(name):
    fields = {"convnext_tiny": {"depths": (3, 1, 2, 1), "chs": (8, 16, 24, 32)}}.get(name, {})
    theirs = written(name, "ConvNeXt", **fields)
    as_convolutions = {
        key: t[..., None, None] if ".pointwise_conv" in key and key.endswith("weight") else t
        for key, t in theirs.items()
    }
    native = model(name, **fields).state_dict()
    layout = find_layout("openmmlab", ["ConvNeXt"])
    assert same_state(layout.to_native(theirs, native.keys()), native)
    assert same_state(layout.to_native(as_convolutions, native.keys()), native)


def test_attention_of_mmsegmentation_is_read():
    fields = {"depth": 2, "image_size": 64, "antialias": False}
    theirs = {
        key.replace(".attn.qkv.", ".attn.attn.in_proj_").replace(".attn.proj.", ".attn.attn.out_proj."): t
        for key, t in written("vit_tiny_patch16_224", "ViT", **fields).items()
    }
    loaded = featx.create_model("vit_tiny_patch16_224", num_classes=7, checkpoint_path=theirs, **fields)
    assert same_state(loaded.state_dict(), model("vit_tiny_patch16_224", **fields).state_dict())


@pytest.mark.parametrize(
    ("name", "family", "problem"),
    [
        ("resnet26t", "ResNet", "twice as wide as the first: .* 24 channels"),
        ("seresnet18", "ResNet", r"no place for .*'layer1.0.se.fc1.weight'"),
        ("convnext_atto_ols", "ConvNeXt", "one convolution in its stem"),
        ("convnext_tiny_hnf", "ConvNeXt", r"no place for .*'norm_pre.weight'"),
        ("vit_small_patch14_reg4_dinov2", "ViT", "'reg_token'"),
        ("vit_giant_patch14_dinov2", "ViT", "gated MLPs"),
    ],
)
def test_what_openmmlab_has_no_place_for_is_refused(name, family, problem):
    with torch.device("meta"):
        native = featx.create_model(name).state_dict()
    from_native = find_layout("openmmlab", [family]).from_native
    assert from_native is not None
    with pytest.raises(CheckpointError, match=problem):
        from_native(native)
