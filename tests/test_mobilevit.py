"""MobileViT and MobileViTv2 beyond their registered variants: transformers' numbers, any width, any table of stages."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from conftest import images, randomise, relative_difference
from torch import Tensor, nn

import featx
from featx import FeatureExtractWrapper
from featx.models.mobilevit import XXS, MobileViT, MobileViTConfig, MobileViTStage, Mv2Stage, read_config
from featx.models.mobilevitv2 import MobileViTV2, MobileViTV2Config

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
    return randomise(transformers.MobileViTV2ForImageClassification(config))


V1 = {
    "xxs": {"hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "expand_ratio": 2.0},
    "xs": {"hidden_sizes": [96, 120, 144], "neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 384]},
    "s": {},
}


def reference_v1(size: str = "xxs", **config: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileViTConfig(num_labels=5, **V1[size], **config)
    return randomise(transformers.MobileViTForImageClassification(config))


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
    reference = randomise(timm.create_model("mobilevit_xxs", output_stride=output_stride))
    ours = featx.create_model("mobilevit_xxs", output_stride=output_stride, local_dilation=True).eval()
    plain = featx.create_model("mobilevit_xxs", output_stride=output_stride).eval()
    for model in (ours, plain):
        model.load_state_dict(reference.state_dict())
    with torch.no_grad():
        x = images(1, 3, 97, 161)
        assert relative_difference(ours(x), reference(x)) <= 1e-5
        assert relative_difference(plain(x), reference(x)) > 1e-3


# Parameters with 1000 classes, counted on the original models of CVNets.
COUNTS = {
    "mobilevitv2_050": 1_370_593,
    "mobilevitv2_075": 2_866_009,
    "mobilevitv2_100": 4_901_841,
    "mobilevitv2_125": 7_478_089,
    "mobilevitv2_150": 10_594_753,
    "mobilevitv2_175": 14_251_833,
    "mobilevitv2_200": 18_449_329,
    "mobilevit_xxs": 1_272_024,
    "mobilevit_xs": 2_317_848,
    "mobilevit_s": 5_578_632,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_variants_have_as_many_parameters_as_the_originals(name, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in featx.create_model(name).parameters()) == count


def dilations(model: nn.Module) -> list[tuple[int, ...]]:
    """(stride and dilation of the inverted residual, dilation of the local convolution) of the last two stages."""
    found = []
    for stage in ("stages.3", "stages.4"):
        entry, local = (model.get_submodule(f"{stage}.{conv}.conv") for conv in ("0.conv2_kxk", "1.conv_kxk"))
        found.append((*entry.stride[:1], *entry.dilation[:1], *local.dilation[:1]))
    return found


@pytest.mark.parametrize(
    ("name", "output_stride", "expected"),
    [
        ("mobilevitv2_050", 32, [(2, 1, 1), (2, 1, 1)]),
        ("mobilevitv2_050", 16, [(2, 1, 1), (1, 1, 2)]),
        ("mobilevitv2_050", 8, [(1, 1, 2), (1, 2, 4)]),
        ("mobilevit_xxs", 16, [(2, 1, 1), (1, 1, 1)]),
        ("mobilevit_xxs", 8, [(1, 1, 1), (1, 2, 1)]),
    ],
)
def test_dilation_is_where_the_originals_have_it(name, output_stride, expected):
    with torch.device("meta"):
        assert dilations(featx.create_model(name, output_stride=output_stride)) == expected


def test_other_widths_are_rounded_as_in_the_original():
    with torch.device("meta"):
        model = featx.create_model("mobilevitv2_100", width_multiplier=0.6)
    assert model.get_submodule("stem.conv").out_channels == 24
    assert model.feature_info.channels() == [48, 80, 152, 232, 304]


def test_v1_returns_the_raw_and_the_expanded_last_map():
    model = randomise(featx.create_model("mobilevit_xxs"))
    raw, expanded = FeatureExtractWrapper(model, [-2, -1]).feature_info
    assert (raw.name, raw.chs, raw.reduction) == ("stages.4", 80, 32)
    assert (expanded.name, expanded.chs, expanded.reduction) == ("final_conv", 320, 32)
    assert not any("final_conv" in name for name in FeatureExtractWrapper(model, [-2]).state_dict())


@pytest.mark.parametrize(("name", "cells"), [("mobilevit_xxs", (7, 6)), ("mobilevitv2_050", (8, 6))])
def test_v1_resizes_back_and_v2_keeps_whole_patches(name, cells):
    with torch.device("meta"):
        proven = featx.verify(featx.create_model(name), sizes=[(224, 192)])
    assert proven.sizes[224, 192][-1] == cells


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_the_size_rule_of_v2_holds_for_other_patches(output_stride):
    with torch.device("meta"):
        model = MobileViTV2(MobileViTV2Config(0.5, patch_size=3, output_stride=output_stride))
        featx.verify(model)


# Two stages of each kind: without and with a stride, in front of a second level at 1/4.
TINY = (
    Mv2Stage(8, 1, 1, 2),
    MobileViTStage(16, 1, 2, 2, 8, 20, dilate=False),
    MobileViTStage(16, 2, 1, 2, 12, 24, dilate=False),
    Mv2Stage(24, 2, 2, 1.5),
)


def test_any_table_of_stages_is_a_model():
    with torch.device("meta"):
        model = MobileViT(MobileViTConfig(TINY, stem_chs=8, patch_size=3, num_attention_heads=2, num_classes=4))
        featx.verify(model)
    assert model.feature_info.names() == ["stages.0", "stages.2", "stages.3", "final_conv"]
    assert model.feature_info.channels() == [8, 16, 24, 96]
    assert model.feature_info.reduction() == [2, 4, 8, 8]
    assert model.get_submodule("stages.1.1.transformer.0.mlp.fc1").out_features == 20
    assert len(model.get_submodule("stages.2.0.transformer")) == 2


def test_a_table_that_starts_with_a_stride_has_the_stem_as_a_level():
    with torch.device("meta"):
        model = MobileViT(MobileViTConfig((Mv2Stage(8, 1, 2, 2),)))
    assert model.feature_info.names() == ["stem", "stages.0", "final_conv"]
    featx.verify(model)


def test_the_expansion_stops_at_960_channels():
    with torch.device("meta"):
        model = MobileViT(MobileViTConfig((Mv2Stage(400, 1, 1, 2),)))
    assert model.feature_info[-1].chs == model.num_features == 960


def test_the_fusion_layer_can_be_left_out():
    model = randomise(MobileViT(MobileViTConfig(TINY, 8, num_attention_heads=2, use_fusion_layer=False)))
    assert not any("conv_fusion" in name for name in model.state_dict())
    block = model.get_submodule("stages.1.1")
    x = images(1, 16, 6, 5)
    with torch.no_grad():
        assert torch.equal(block(x), block.conv_proj(block.attend(block.conv_1x1(block.conv_kxk(x)))))


def test_dilate_in_the_table_is_what_an_output_stride_does():
    table = (*XXS[:3], *(replace(row, dilate=True) for row in XXS[3:]))
    by_stride = randomise(featx.create_model("mobilevit_xxs", output_stride=8))
    by_table = featx.create_model("mobilevit_xxs", stages=table).eval()
    by_table.load_state_dict(by_stride.state_dict())
    assert by_table.feature_info == by_stride.feature_info
    with torch.no_grad():
        assert torch.equal(by_table(images()), by_stride(images()))


def test_dropouts_of_v1_are_where_they_say():
    cfg = MobileViTConfig(TINY, 8, num_attention_heads=2, attention_dropout_prob=0.1, ffn_dropout_prob=0.2)
    block = MobileViT(cfg).get_submodule("stages.1.1.transformer.0")
    rates = {name: module.p for name, module in block.named_modules() if isinstance(module, nn.Dropout)}
    assert rates == {"attn.attn_drop": 0.1, "attn.proj_drop": 0.0, "mlp.drop1": 0.2, "mlp.drop2": 0.2}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"stages": ()}, "0 stages"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"num_attention_heads": 3}, "stage 2: attention_channels=64 do not divide by 3 heads"),
        ({"stages": (Mv2Stage(8, 0, 1, 2),)}, "stage 0: num_blocks=0"),
        (
            {"stages": (MobileViTStage(8, 1, 1, 2, 8, 8, dilate=False),)},
            "stage 0: out_channels=8, but without a stride",
        ),
        ({"output_stride": 4}, r"output_stride=4: choose one of \(8, 16, 32\)"),
    ],
)
def test_a_v1_that_cannot_be_built_is_refused(change, problem):
    with pytest.raises(featx.ArgumentError, match=problem):
        featx.create_model("mobilevit_xxs", **change)


@pytest.mark.parametrize("change", [{"conv_kernel_size": 4}, {"patch_size": 0}])
def test_a_v2_that_cannot_be_built_is_refused(change):
    with pytest.raises(featx.ArgumentError, match="expected an odd kernel and a patch of at least 1 pixel"):
        featx.create_model("mobilevitv2_050", **change)


PARAMS = {
    "patch_size": 2,
    "num_attention_heads": 4,
    "attention_dropout_prob": 0.1,
    "ffn_dropout_prob": 0.0,
    "output_expansion_ratio": 4,
    "use_fusion_layer": True,
}


def backbone() -> dict[str, Any]:
    """What NetsPresso writes for mobilevit_xxs."""
    mv2 = [
        {"block_type": "mv2", "out_channels": chs, "num_blocks": depth, "stride": stride, "ir_expansion_ratio": 2}
        for chs, depth, stride in ((16, 1, 1), (24, 3, 2))
    ]
    mobilevit = [
        {
            "block_type": "mobilevit",
            "out_channels": chs,
            "num_blocks": depth,
            "stride": 2,
            "attention_channels": dim,
            "ffn_intermediate_channels": 2 * dim,
            "dilate": False,
            "ir_expansion_ratio": 2,
        }
        for chs, depth, dim in ((48, 2, 64), (64, 4, 80), (80, 3, 96))
    ]
    return {"name": "mobilevit", "params": dict(PARAMS), "stage_params": mv2 + mobilevit}


def written(tmp_path: Path, tree: Any) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_yaml_of_netspresso_describes_a_model(tmp_path):
    cfg = read_config(written(tmp_path, backbone()))
    assert cfg == MobileViTConfig(XXS, attention_dropout_prob=0.1)
    architecture = {"full": None, "backbone": backbone(), "head": {"name": "fc"}}
    assert read_config(written(tmp_path, {"model": {"name": "m", "architecture": architecture}})) == cfg


def test_every_wrong_key_of_a_yaml_is_named(tmp_path):
    tree = backbone()
    tree["neck"] = None
    del tree["params"]["patch_size"]
    tree["params"]["heads"] = 4
    tree["params"]["use_fusion_layer"] = "yes"
    tree["stage_params"][0]["dilate"] = False
    del tree["stage_params"][2]["attention_channels"]
    tree["stage_params"][2]["attention_chananels"] = 64
    tree["stage_params"][3]["stride"] = True
    tree["stage_params"][4]["block_type"] = "mv3"
    with pytest.raises(featx.ArgumentError) as caught:
        read_config(written(tmp_path, tree))
    _, *problems = str(caught.value).splitlines()
    expected = [
        "backbone: 'neck' is unknown",
        "params: 'heads' is unknown",
        "params: 'patch_size' is missing",
        "params: use_fusion_layer is 'yes', expected bool",
        "stage_params[0]: 'dilate' is unknown",
        "stage_params[2]: 'attention_chananels' is unknown",
        "stage_params[2]: 'attention_channels' is missing",
        "stage_params[3]: stride is True, expected int",
        "stage_params[4]: block_type is 'mv3', expected one of",
    ]
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.strip().startswith(start)


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        (None, "backbone is None, expected a mapping"),
        ({"model": {"architecture": None}}, "backbone is None, expected a mapping"),
        ({**backbone(), "name": "vit"}, "name is 'vit', expected 'mobilevit'"),
        ({**backbone(), "stage_params": "all"}, "stage_params is 'all', expected list"),
        ({**backbone(), "stage_params": [3]}, "block_type is None"),
    ],
)
def test_a_yaml_of_something_else_is_refused(tmp_path, tree, problem):
    with pytest.raises(featx.ArgumentError, match=problem):
        read_config(written(tmp_path, tree))


def test_a_file_that_is_no_yaml_is_refused(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text("[")
    with pytest.raises(featx.ArgumentError, match="is no YAML"):
        read_config(path)
