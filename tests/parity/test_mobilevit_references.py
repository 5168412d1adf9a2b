"""MobileViT and MobileViTv2 beside transformers and timm, also as these dilate them."""

import re
from typing import Any

import pytest
import timm
import torch
from conftest import images, randomize, relative_difference
from torch import Tensor, nn

import featx
from featx import FeatureExtractWrapper

# From the names of transformers to ours, in this order.
RULES = [
    (r"^mobilevit(?:v2)?\.", ""),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
    (r"^conv_stem\.", "stem."),
    (r"^encoder\.layer\.([01])\.layer\.(\d+)\.", r"stages.\1.\2."),
    (r"^encoder\.layer\.(\d+)\.downsampling_layer\.", r"stages.\1.0."),
    (r"^encoder\.layer\.(\d+)\.", r"stages.\1.1."),
    (r"\.expand_1x1\.", ".conv1_1x1."),
    (r"\.conv_3x3\.", ".conv2_kxk."),
    (r"\.reduce_1x1\.", ".conv3_1x1."),
    (r"\.conv_1x1\.conv\.", ".conv_1x1."),
    (r"\.conv_projection\.", ".conv_proj."),
    (r"\.transformer\.layer\.(\d+)\.", r".transformer.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layernorm\.", ".norm."),
    (r"^classifier\.", "head.fc."),
    (r"\.attention\.(qkv_proj|out_proj)\.conv\.", r".attn.\1."),
    (r"\.ffn\.conv([12])\.conv\.", r".mlp.fc\1."),
    (r"\.fusion\.", ".conv_fusion."),
    (r"^conv_1x1_exp\.", "final_conv."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
]


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names; query, key and value become one."""
    fused = {}
    for key, tensor in state.items():
        if ".attention.attention.query." in key:
            parts = [state[key.replace("query", part)] for part in ("query", "key", "value")]
            fused[key.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
        elif not re.search(r"\.attention\.attention\.(key|value)\.", key):
            fused[key] = tensor
    renamed = {}
    for key, tensor in fused.items():
        for pattern, replacement in RULES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    return renamed


def reference_v2(**config: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileViTV2Config(num_labels=5, **config)
    return randomize(transformers.MobileViTV2ForImageClassification(config))


V1 = {
    "xxs": {"hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "expand_ratio": 2.0},
    "xs": {"hidden_sizes": [96, 120, 144], "neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 384]},
    "s": {},
}


def reference_v1(size: str = "xxs", **config: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileViTConfig(num_labels=5, **V1[size], **config)
    return randomize(transformers.MobileViTForImageClassification(config))


@torch.no_grad()
def assert_equal(ours: nn.Module, reference: Any, height: int, width: int) -> None:
    """Logits and the map of every stage, in double precision, where only the order of sums differs."""
    ours.load_state_dict(from_transformers(reference.state_dict()))
    ours, reference, x = ours.double().eval(), reference.double(), images(1, 3, height, width).double()
    expected = reference(x, output_hidden_states=True)
    stages = [level for level in ours.feature_info.names() if level != "final_conv"]
    maps = FeatureExtractWrapper(ours, out_names=stages)(x)
    for a, b in zip([ours(x), *maps], [expected.logits, *expected.hidden_states], strict=True):
        assert relative_difference(a, b) <= 1e-10


@pytest.mark.parametrize(
    "width", [0.5, 0.6, *(pytest.param(w, marks=pytest.mark.sweep) for w in (0.75, 1.0, 1.25, 1.5, 1.75, 2.0))]
)
def test_v2_equals_transformers(width):
    ours = featx.create_model("mobilevitv2_050", width_multiplier=width, num_classes=5)
    assert_equal(ours, reference_v2(width_multiplier=width), 256, 256)


def test_v2_takes_every_field_of_transformers_that_shapes_it():
    shape = {
        "width_multiplier": 0.4,
        "n_attn_blocks": (1, 2, 1),
        "base_attn_unit_dims": (100, 120, 200),
        "expand_ratio": 1.5,
        "ffn_multiplier": 3,
        "conv_kernel_size": 5,
        "patch_size": 4,
        "layer_norm_eps": 1e-3,
    }
    ours = featx.create_model("mobilevitv2_100", **shape, hidden_act=nn.ReLU, in_chans=3, num_classes=5)
    assert_equal(ours, reference_v2(**shape, hidden_act="relu"), 128, 256)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_v2_without_local_dilation_equals_transformers_when_dilated(output_stride):
    ours = featx.create_model("mobilevitv2_050", output_stride=output_stride, local_dilation=False, num_classes=5)
    assert_equal(ours, reference_v2(width_multiplier=0.5, output_stride=output_stride), 256, 256)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (200, 232), (97, 161)])
def test_v1_equals_transformers(height, width):
    assert_equal(featx.create_model("mobilevit_xxs", num_classes=5), reference_v1(), height, width)


@pytest.mark.sweep
@pytest.mark.parametrize("size", ["xs", "s"])
def test_larger_v1s_equal_transformers(size):
    assert_equal(featx.create_model(f"mobilevit_{size}", num_classes=5), reference_v1(size), 256, 256)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_v1_equals_transformers_when_dilated(output_stride):
    ours = featx.create_model("mobilevit_xxs", output_stride=output_stride, num_classes=5)
    assert_equal(ours, reference_v1(output_stride=output_stride), 97, 161)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_v1_with_local_dilation_equals_timm_when_dilated(output_stride):
    reference = randomize(timm.create_model("mobilevit_xxs", output_stride=output_stride))
    ours = featx.create_model("mobilevit_xxs", output_stride=output_stride, local_dilation=True).eval()
    plain = featx.create_model("mobilevit_xxs", output_stride=output_stride).eval()
    for model in (ours, plain):
        model.load_state_dict(reference.state_dict())
    with torch.no_grad():
        x = images(1, 3, 97, 161)
        assert relative_difference(ours(x), reference(x)) <= 1e-5
        assert relative_difference(plain(x), reference(x)) > 1e-3
