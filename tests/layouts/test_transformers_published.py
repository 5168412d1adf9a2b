"""Every size that is published for transformers, and what it has no place for."""

import pytest
import torch
import transformers as hf
from support.transformers_cases import CASES, XXS, doubled, efficientnet, mobilevit, vit

import featx
from featx import CheckpointError
from featx.weights.layout import recognize_layout


@pytest.mark.parametrize(
    ("name", "ours", "problem"),
    [
        ("resnet, basic", "resnet18d", r"no place for .*'conv1.0.weight'"),
        ("resnet, basic", "ecaresnet26t", "attn|'conv1.0.weight'"),
        ("resnet, basic", "seresnet18", r"'encoder.stages.0.layers.0.se.fc1.weight'"),
        ("resnet, basic", "resnext50_32x4d", "no groups, and bottlenecks of a quarter"),
        ("resnet, basic", "resnet50_gn", "has batch norms, unlike this model"),
        ("resnet, basic", "wide_resnet50_2", "no groups, and bottlenecks of a quarter"),
        ("convnext", "convnext_atto_ols", "'stem.2.weight'"),
        ("convnext", "convnext_tiny_hnf", "'norm_pre.weight'"),
        ("convnext", "convnext_large_mlp", "'head.pre_logits.fc.weight'"),
        ("efficientnet", "efficientnet_lite0", "has squeeze-and-excitation in its blocks"),
        ("efficientnet", "mobilenetv2_035", "has squeeze-and-excitation in its blocks"),
        ("efficientnet", "test_efficientnet", "'blocks.0.0.conv.weight'"),
        ("mobilenet_v2", "efficientnet_b0", "has no squeeze-and-excitation in its blocks"),
        ("vit", "vit_wee_patch16_reg1_gap_256", "vit has a class token, unlike this model"),
        ("vit", "deit3_small_patch16_224", r"'encoder.layer.0.ls1.gamma'"),
        ("vit", "vit_base_patch16_clip_224", "'norm_pre.weight'"),
        ("dinov2", "vit_tiny_patch16_224", "dinov2 has layer scale, unlike this model"),
        ("dinov2", "deit3_small_patch16_224", "convert it with num_classes=0"),
        ("blip", "vit_tiny_patch16_224", "'head.weight'"),
    ],
)
def test_what_transformers_has_no_place_for_is_not_written(name, ours, problem):
    with torch.device("meta"):
        state = featx.create_model(ours).state_dict()
    with pytest.raises(CheckpointError, match=problem):
        CASES[name].layout.from_native(state)


BOTTLENECKS = {"26": [2, 2, 2, 2], "50": [3, 4, 6, 3], "101": [3, 4, 23, 3], "152": [3, 8, 36, 3]}
EFFICIENT = [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1)]
V1 = {"tiny": (96, 9), "small": (96, 27), "base": (128, 27), "large": (192, 27), "xlarge": (256, 27)}
V2 = {"tiny": (96, 9), "base": (128, 27), "large": (192, 27), "huge": (352, 27)}
NARROW_V2 = {"atto": (40, 6), "femto": (48, 6), "pico": (64, 6), "nano": (80, 8)}
VITS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
GIANT = (1536, 40, 24)
DINO, DINO_REG = hf.Dinov2Config, hf.Dinov2WithRegistersConfig

PUBLISHED = {
    "resnet18": hf.ResNetConfig(depths=[2, 2, 2, 2], layer_type="basic", hidden_sizes=doubled(64)),
    "resnet34": hf.ResNetConfig(depths=[3, 4, 6, 3], layer_type="basic", hidden_sizes=doubled(64)),
    **{f"resnet{name}": hf.ResNetConfig(depths=depths) for name, depths in BOTTLENECKS.items()},
    **{
        f"convnext_{name}": hf.ConvNextConfig(hidden_sizes=doubled(chs), depths=[3, 3, third, 3])
        for name, (chs, third) in V1.items()
    },
    **{
        f"convnextv2_{name}": hf.ConvNextV2Config(hidden_sizes=doubled(chs), depths=[3, 3, third, 3])
        for name, (chs, third) in V2.items()
    },
    **{
        f"convnextv2_{name}": hf.ConvNextV2Config(hidden_sizes=doubled(chs), depths=[2, 2, third, 2])
        for name, (chs, third) in NARROW_V2.items()
    },
    **{f"efficientnet_b{number}": efficientnet(*scale) for number, scale in enumerate(EFFICIENT)},
    **{f"mobilenetv2_{n:03}": hf.MobileNetV2Config(depth_multiplier=n / 100) for n in (35, 75, 100, 140)},
    "mobilevit_xxs": XXS,
    "mobilevit_xs": mobilevit([96, 120, 144], [16, 32, 48, 64, 80, 96, 384], 4.0),
    "mobilevit_s": mobilevit([144, 192, 240], [16, 32, 64, 96, 128, 160, 640], 4.0),
    **{f"mobilevitv2_{n:03}": hf.MobileViTV2Config(width_multiplier=n / 100) for n in range(50, 225, 25)},
    **{
        f"vit_{name}_patch16_224": vit(hf.ViTConfig, size, 16, 224, intermediate_size=4 * size[0])
        for name, size in VITS.items()
    },
    "vit_base_patch32_384": vit(hf.ViTConfig, VITS["base"], 32, 384, intermediate_size=3072),
    **{f"vit_{name}_patch14_dinov2": vit(DINO, VITS[name], 14, 518) for name in ("small", "base", "large")},
    **{f"vit_{name}_patch14_reg4_dinov2": vit(DINO_REG, VITS[name], 14, 518) for name in ("small", "base", "large")},
    "vit_giant_patch14_dinov2": vit(DINO, GIANT, 14, 518, use_swiglu_ffn=True),
    "vit_giant_patch14_reg4_dinov2": vit(DINO_REG, GIANT, 14, 518, use_swiglu_ffn=True),
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_fits_the_variant_of_its_name(name):
    config, classifies = PUBLISHED[name], "dinov2" not in name
    with torch.device("meta"):
        theirs = (hf.AutoModelForImageClassification if classifies else hf.AutoModel).from_config(config)
        ours = featx.create_model(name, num_classes=config.num_labels if classifies else 0)
    given = {name: tensor for name, tensor in theirs.state_dict().items() if not name.endswith("mask_token")}
    layout = recognize_layout(given, [type(ours).__name__])
    assert layout is not None
    wanted = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert {name: tensor.shape for name, tensor in layout.to_native(given, wanted).items()} == wanted
