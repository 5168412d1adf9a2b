"""Layouts of CLIP, OpenMMLab, detectron2, and of EfficientNet's and MobileNetV2's first programs in PyTorch.

transformers' models are the reference for their names; those of the other programs are restated here from their
sources, module by module, and a native model written in them gives its own logits or maps back.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from conftest import images, randomise, relative_difference, same_state
from timm.models.vision_transformer import _convert_openai_clip
from torch import Tensor, nn

import featx
from featx import CheckpointError
from featx.weights.convert import family_names
from featx.weights.layout import all_layouts, find_layout

State = dict[str, Tensor]
VIT = {"dim": 24, "depth": 2, "heads": 2, "image_size": 64, "num_classes": 10}
CLIP_NAME = "vit_base_patch32_clip_224"
# by program and model: fields that make the model small
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "openai-clip": ("openai-clip", CLIP_NAME, VIT),
    "transformers-clip": ("transformers-clip", CLIP_NAME, VIT),
    "ResNetV1c": ("openmmlab", "resnet50c", {}),
    "ResNetV1d": ("openmmlab", "resnet18d", {}),
    "ConvNeXt": ("openmmlab", "convnext_tiny", {}),
    "ConvNeXt of 1x1 convolutions": ("openmmlab", "convnext_atto", {}),
    "ConvNeXt V2": ("openmmlab", "convnextv2_atto", {}),
    "ViT": ("openmmlab", "vit_tiny_patch16_224", {"depth": 2, "antialias": False}),
    "detectron2": ("detectron2", "resnet50", {}),
    "detectron2, basic blocks": ("detectron2", "resnet18", {}),
    "lukemelas": ("lukemelas", "tf_efficientnet_b0", {}),
    "lukemelas, Lite": ("lukemelas", "tf_efficientnet_lite0", {}),
    "tonylins": ("tonylins", "mobilenetv2_035", {}),
}


def model_of(case: str) -> nn.Module:
    _, name, fields = MODELS[case]
    model = randomise(featx.create_model(name, **fields)).eval()
    if "clip" in case:
        nn.init.zeros_(model.head.bias)
    return model


def written(case: str, model: nn.Module) -> State:
    layout = find_layout(MODELS[case][0], family_names(model))
    assert layout.from_native is not None
    return layout.from_native(model.state_dict())


@pytest.mark.parametrize("case", MODELS)
@torch.no_grad()
def test_a_model_written_in_a_layout_loads_with_equal_outputs(case):
    system, name, fields = MODELS[case]
    model = model_of(case)
    state = written(case, model)
    assert state.keys() != model.state_dict().keys()
    again = featx.create_model(name, checkpoint_path=state, **fields).eval()
    assert again.load_report.layout == system
    x = images(2, 3, 64, 64)
    assert relative_difference(again(x), model(x)) <= 1e-6
    assert same_state(without_counters(again.state_dict()), without_counters(model.state_dict()))


@pytest.mark.parametrize("case", MODELS)
def test_one_layout_recognises_it(case):
    model = model_of(case)
    state = written(case, model)
    found = {layout.system for layout in all_layouts() if layout.recognizes(state)}
    inner = {name.removeprefix("backbone.").removeprefix("vision_model."): tensor for name, tensor in state.items()}
    found |= {layout.system for layout in all_layouts() if layout.recognizes(inner)}
    assert found == {MODELS[case][0]}
    assert not any(
        layout.recognizes(model.state_dict()) for layout in all_layouts() if layout.family in family_names(model)
    )


def without_counters(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


# names restated from the programs' sources

NAMES: dict[str, dict[str, str]] = {
    "openai-clip": {
        "cls_token": "class_embedding",
        "patch_embed.proj.weight": "conv1.weight",
        "norm_pre.bias": "ln_pre.bias",
        "blocks.1.attn.qkv.weight": "transformer.resblocks.1.attn.in_proj_weight",
        "blocks.1.attn.qkv.bias": "transformer.resblocks.1.attn.in_proj_bias",
        "blocks.0.attn.proj.bias": "transformer.resblocks.0.attn.out_proj.bias",
        "blocks.0.norm2.weight": "transformer.resblocks.0.ln_2.weight",
        "blocks.0.mlp.fc2.weight": "transformer.resblocks.0.mlp.c_proj.weight",
        "norm.weight": "ln_post.weight",
        "head.weight": "proj",
    },
    "ResNetV1c": {
        "conv1.0.weight": "backbone.stem.0.weight",
        "conv1.1.running_var": "backbone.stem.1.running_var",
        "conv1.3.weight": "backbone.stem.3.weight",
        "conv1.6.weight": "backbone.stem.6.weight",
        "bn1.weight": "backbone.stem.7.weight",
        "layer2.0.downsample.0.weight": "backbone.layer2.0.downsample.0.weight",
        "fc.weight": "head.fc.weight",
    },
    "ResNetV1d": {"layer2.0.downsample.1.weight": "backbone.layer2.0.downsample.1.weight"},
    "ConvNeXt": {
        "stem.0.weight": "backbone.downsample_layers.0.0.weight",
        "stages.1.downsample.1.weight": "backbone.downsample_layers.1.1.weight",
        "stages.0.blocks.1.conv_dw.weight": "backbone.stages.0.1.depthwise_conv.weight",
        "stages.0.blocks.1.mlp.fc1.weight": "backbone.stages.0.1.pointwise_conv1.weight",
        "stages.0.blocks.1.gamma": "backbone.stages.0.1.gamma",
        "head.norm.weight": "backbone.norm3.weight",
        "head.fc.bias": "head.fc.bias",
    },
    "ViT": {
        "patch_embed.proj.weight": "backbone.patch_embed.projection.weight",
        "blocks.1.norm1.weight": "backbone.layers.1.ln1.weight",
        "blocks.1.attn.qkv.weight": "backbone.layers.1.attn.qkv.weight",
        "blocks.1.mlp.fc1.weight": "backbone.layers.1.ffn.layers.0.0.weight",
        "blocks.1.mlp.fc2.bias": "backbone.layers.1.ffn.layers.1.bias",
        "norm.bias": "backbone.ln1.bias",
        "head.weight": "head.layers.head.weight",
    },
    "detectron2": {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_mean": "stem.conv1.norm.running_mean",
        "layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
        "layer1.0.downsample.1.weight": "res2.0.shortcut.norm.weight",
        "layer4.2.conv3.weight": "res5.2.conv3.weight",
        "layer4.2.bn3.bias": "res5.2.conv3.norm.bias",
        "fc.weight": "linear.weight",
    },
    "lukemelas": {
        "conv_stem.weight": "_conv_stem.weight",
        "bn1.weight": "_bn0.weight",
        "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight",
        "blocks.0.0.bn1.weight": "_blocks.0._bn1.weight",
        "blocks.0.0.se.conv_reduce.bias": "_blocks.0._se_reduce.bias",
        "blocks.0.0.conv_pw.weight": "_blocks.0._project_conv.weight",
        "blocks.1.1.conv_pw.weight": "_blocks.2._expand_conv.weight",
        "blocks.1.1.bn1.weight": "_blocks.2._bn0.weight",
        "blocks.1.1.bn3.weight": "_blocks.2._bn2.weight",
        "conv_head.weight": "_conv_head.weight",
        "bn2.weight": "_bn1.weight",
        "classifier.bias": "_fc.bias",
    },
    "tonylins": {
        "conv_stem.weight": "features.0.0.weight",
        "blocks.0.0.conv_dw.weight": "features.1.conv.0.weight",
        "blocks.0.0.conv_pw.weight": "features.1.conv.3.weight",
        "blocks.0.0.bn2.weight": "features.1.conv.4.weight",
        "blocks.1.0.conv_pw.weight": "features.2.conv.0.weight",
        "blocks.1.0.conv_pwl.weight": "features.2.conv.6.weight",
        "blocks.1.1.bn3.bias": "features.3.conv.7.bias",
        "conv_head.weight": "features.18.0.weight",
        "classifier.weight": "classifier.weight",
    },
}


@pytest.mark.parametrize("case", NAMES)
def test_names_are_those_of_the_program(case):
    model = model_of(case)
    state, own = written(case, model), model.state_dict()
    for native, foreign in NAMES[case].items():
        assert torch.equal(state[foreign].flatten().sort().values, own[native].flatten().sort().values)


@torch.no_grad()
def test_openais_tower_is_converted_as_timm_does():
    model = model_of("openai-clip")
    state = {f"visual.{name}": tensor for name, tensor in written("openai-clip", model).items()}
    expected = _convert_openai_clip(dict(state), nn.Identity())
    assert same_state(expected, model.state_dict())
    text = {"token_embedding.weight": torch.zeros(9, 4), "transformer.resblocks.0.ln_1.weight": torch.zeros(4)}
    beside = {**state, **text, "logit_scale": torch.tensor(1.0), "positional_embedding": torch.zeros(7, 4)}
    again = featx.create_model(CLIP_NAME, checkpoint_path=beside, **VIT)
    assert same_state(again.state_dict(), model.state_dict())
    assert set(again.load_report.skipped) == beside.keys() - state.keys()


CONFIG = {
    "hidden_size": 24,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 32,
}
TEXT = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def towers() -> list[Callable[[str], nn.Module]]:
    def vision(act: str) -> hf.CLIPVisionConfig:
        return hf.CLIPVisionConfig(**CONFIG, hidden_act=act, projection_dim=10)

    return [
        lambda act: hf.CLIPVisionModel(vision(act)),
        lambda act: hf.CLIPVisionModelWithProjection(vision(act)),
        lambda act: hf.CLIPModel(hf.CLIPConfig(vision_config=vision(act), text_config=TEXT, projection_dim=10)),
    ]


@pytest.mark.parametrize("build", towers(), ids=["model", "projection", "whole"])
@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
@torch.no_grad()
def test_maps_and_tokens_equal_those_of_transformers(build, act):
    theirs = randomise(build(act)).eval()
    x = images(2, 3, 64, 64)
    vision = theirs.vision_model if hasattr(theirs, "vision_model") else theirs
    expected = vision(x, output_hidden_states=True)
    ours = featx.create_model(
        CLIP_NAME,
        checkpoint_path=theirs.state_dict(),
        features_only=True,
        output="tokens",
        quick_gelu=act == "quick_gelu",
        **{**VIT, "num_classes": 0},
    ).eval()
    for (prefix, map_), hidden in zip(ours(x), expected.hidden_states[1:], strict=True):
        tokens = torch.cat([prefix, map_.flatten(2).transpose(1, 2)], 1)
        assert relative_difference(tokens, hidden) <= 1e-5
    assert any("quick_gelu=True" in note for note in ours.load_report.notes)


@pytest.mark.parametrize("whole", [False, True])
@torch.no_grad()
def test_maps_of_siglip_equal_those_of_transformers(whole):
    vision = hf.SiglipVisionConfig(**CONFIG)
    text = {**{key: TEXT[key] for key in TEXT if "token" not in key}, "pad_token_id": 0}
    theirs = randomise(
        hf.SiglipModel(hf.SiglipConfig(vision_config=vision, text_config=text))
        if whole
        else hf.SiglipVisionModel(vision)
    ).eval()
    x = images(2, 3, 64, 64)
    encoder = theirs.vision_model if whole else theirs
    expected = encoder(x, output_hidden_states=True)
    ours = featx.create_model(
        "vit_base_patch32_siglip_gap_256",
        checkpoint_path=theirs.state_dict(),
        features_only=True,
        **{**VIT, "num_classes": 0},
    ).eval()
    for map_, hidden in zip(ours(x), expected.hidden_states[1:], strict=True):
        assert relative_difference(map_.flatten(2).transpose(1, 2), hidden) <= 1e-5
    assert ours.data_config.mean == (0.5, 0.5, 0.5)
    assert any(name.endswith("head.probe") for name in ours.load_report.skipped)
    full = featx.create_model(
        "vit_base_patch32_siglip_gap_256", checkpoint_path=theirs.state_dict(), **VIT | {"num_classes": 0}
    )
    written = find_layout("transformers-siglip", ("ViT",)).from_native(full.state_dict())
    state = {name.removeprefix("vision_model."): tensor for name, tensor in theirs.state_dict().items()}
    assert all(torch.equal(tensor, state[name.removeprefix("vision_model.")]) for name, tensor in written.items())


@torch.no_grad()
def test_image_embeddings_equal_those_of_transformers():
    theirs = randomise(towers()[1]("gelu")).eval()
    x = images(2, 3, 64, 64)
    ours = featx.create_model(CLIP_NAME, checkpoint_path=theirs.state_dict(), **VIT).eval()
    assert relative_difference(ours(x), theirs(x).image_embeds) <= 1e-5


def test_a_vit_without_clips_norm_has_no_place_in_it():
    model = featx.create_model("vit_tiny_patch16_224", depth=1)
    for system in ("openai-clip", "transformers-clip"):
        with pytest.raises(CheckpointError, match=r"have norm_pre\.weight, unlike this model"):
            find_layout(system, ("ViT",)).from_native(model.state_dict())


@pytest.mark.parametrize("case", ["ResNetV1c", "ConvNeXt", "ViT"])
def test_a_segmenter_of_openmmlab_gives_its_backbone(case):
    system, name, fields = MODELS[case]
    model = model_of(case)
    state = {n: tensor for n, tensor in written(case, model).items() if not n.startswith("head.")}
    state |= {"decode_head.conv_seg.weight": torch.zeros(2, 2), "data_preprocessor.mean": torch.zeros(3)}
    if case == "ConvNeXt":
        state["backbone.norm1.weight"] = torch.zeros(192)
    extractor = featx.create_model(
        name, features_only=True, checkpoint_path={"state_dict": state, "meta": {}}, **fields
    )
    own = model.state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in extractor.state_dict().items())
    assert extractor.load_report.layout == system
    assert "decode_head.conv_seg.weight" in extractor.load_report.skipped


@pytest.mark.parametrize("prefix", ["backbone.bottom_up.", ""])
def test_a_detector_of_detectron2_gives_its_backbone(prefix):
    model = model_of("detectron2")
    state = {f"{prefix}{n}": tensor for n, tensor in written("detectron2", model).items() if "linear" not in n}
    if prefix:
        state |= {"backbone.fpn_lateral2.weight": torch.zeros(2, 2), "roi_heads.box_head.fc1.weight": torch.zeros(2, 2)}
    extractor = featx.create_model("resnet50", features_only=True, checkpoint_path={"model": state})
    own = model.state_dict()
    assert all(torch.equal(tensor, own[n]) for n, tensor in extractor.state_dict().items() if "num_batches" not in n)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_the_children_of_a_resnet_in_a_sequential_load(prefix):
    """As Lightly keeps its backbones: all children but the classifier, numbered."""
    model = randomise(featx.create_model("resnet18")).eval()
    children = nn.Sequential(*(child for name, child in model.named_children() if name not in ("fc", "flatten")))
    state = {f"{prefix}{name}": tensor for name, tensor in children.state_dict().items()}
    extractor = featx.create_model("resnet18", features_only=True, checkpoint_path=state)
    assert extractor.load_report.layout == "lightly"
    own = model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in extractor.state_dict().items())


@pytest.mark.parametrize("head", ["features.18", "conv"])
@pytest.mark.parametrize("classifier", ["classifier", "classifier.1"])
def test_mobilenetv2s_of_other_programs_keep_their_last_layers_elsewhere(head, classifier):
    model = model_of("tonylins")
    rules = [(r"^features\.18", head), (r"^classifier", classifier)]
    state = {}
    for name, tensor in written("tonylins", model).items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    again = featx.create_model("mobilenetv2_035", checkpoint_path=state)
    assert same_state(again.state_dict(), model.state_dict())
