"""MobileViT and MobileViTv2 beyond their registered variants: any width, any table of stages."""

from dataclasses import replace

import pytest
import torch
from conftest import images, randomize
from torch import nn

import featx
from featx import FeatureExtractWrapper
from featx.models.mobilevit import XXS, MobileViT, MobileViTConfig, MobileViTStage, Mv2Stage
from featx.models.mobilevitv2 import MobileViTV2, MobileViTV2Config

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
    model = randomize(featx.create_model("mobilevit_xxs"))
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
    model = randomize(MobileViT(MobileViTConfig(TINY, 8, num_attention_heads=2, use_fusion_layer=False)))
    assert not any("conv_fusion" in name for name in model.state_dict())
    block = model.get_submodule("stages.1.1")
    x = images(1, 16, 6, 5)
    with torch.no_grad():
        assert torch.equal(block(x), block.conv_proj(block.attend(block.conv_1x1(block.conv_kxk(x)))))


def test_dilate_in_the_table_is_what_an_output_stride_does():
    table = (*XXS[:3], *(replace(row, dilate=True) for row in XXS[3:]))
    by_stride = randomize(featx.create_model("mobilevit_xxs", output_stride=8))
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
