"""BLIP's image encoder inside its checkpoint: against outputs of BLIP itself, and against transformers' BLIP."""

import re
from pathlib import Path

import pytest
import torch
from check_golden import check
from conftest import images, randomize, relative_difference, same_state

import featx
from featx import CheckpointError
from featx.weights.layout import all_layouts, find_layout

LAYOUT = find_layout("blip", ["ViT"])
NAME, TINY = "vit_tiny_patch16_224", {"dim": 96, "depth": 2, "heads": 3, "image_size": 64, "antialias": False}

LAYERS = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")

# What else is in checkpoints of the published models.
OTHERS = [
    *("visual_encoder_m.cls_token", "text_encoder.embeddings.word_embeddings.weight", "text_encoder_m.pooler.bias"),
    *("text_decoder.cls.predictions.bias", "vision_proj.weight", "text_proj_m.bias", "itm_head.bias", "temp"),
    *("image_queue", "text_queue", "queue_ptr", "idx_queue", "ptr_queue", "cls_head.0.weight"),
]

# From BLIP's names to those of transformers, in this order.
TO_TRANSFORMERS = [
    (r"^visual_encoder\.", ""),
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
]


@pytest.fixture(scope="module")
def model():
    return randomize(featx.create_model(NAME, num_classes=0, **TINY))


@pytest.fixture(scope="module")
def foreign(model):
    return {**LAYOUT.from_native(model.state_dict()), **{name: torch.zeros(1) for name in OTHERS}}


def test_maps_attention_and_gradients_are_those_of_blip():
    rows = list(check(Path(__file__).parents[1] / "data" / "blip_vit_64"))
    assert [row.output for row in rows] == ["tokens", "attention_map", "attn_gradients"]
    assert not [row for row in rows if row.failure]


@pytest.mark.parametrize("size", [(64, 64), (96, 80)])
def test_the_numbers_are_those_of_transformers_at_any_size(model, size):
    transformers = pytest.importorskip("transformers")
    widths = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = transformers.BlipVisionConfig(**widths, image_size=64, patch_size=16, layer_norm_eps=1e-6)
    reference = transformers.BlipVisionModel(config).eval()
    theirs = {}
    for name, tensor in LAYOUT.from_native(model.state_dict()).items():
        for pattern, replacement in TO_TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        theirs[name] = tensor
    reference.load_state_dict(theirs)
    x = images(1, 3, *size)
    with torch.no_grad():
        expected = reference(x, interpolate_pos_encoding=True).last_hidden_state
        assert relative_difference(model.forward_features(x), expected) <= 1e-5


def test_the_names_are_those_of_blip(foreign):
    blocks = [f"blocks.{k}.{layer}" for k in (0, 1) for layer in LAYERS]
    names = {f"{path}.{leaf}" for path in ("patch_embed.proj", "norm", *blocks) for leaf in ("weight", "bias")}
    expected = {f"visual_encoder.{name}" for name in {*names, "cls_token", "pos_embed"}}
    assert foreign.keys() - OTHERS == expected


@pytest.mark.parametrize("wrap", [lambda state: {"model": state, "epoch": 3}, lambda state: state])
def test_a_checkpoint_of_the_whole_model_fills_encoder_and_extractor(model, foreign, wrap, tmp_path):
    torch.save(wrap(foreign), tmp_path / "w.pth")
    encoder = featx.create_model(NAME, num_classes=0, checkpoint_path=tmp_path / "w.pth", **TINY)
    assert same_state(encoder.state_dict(), model.state_dict())
    extractor = featx.create_model(NAME, features_only=True, checkpoint_path=tmp_path / "w.pth", **TINY)
    assert same_state(extractor.state_dict(), featx.FeatureExtractWrapper(model).state_dict())


def test_there_and_back_changes_nothing(model):
    native = model.state_dict()
    assert same_state(LAYOUT.to_native(LAYOUT.from_native(native), native), native)


def test_positions_are_interpolated_as_blip_does():
    assert LAYOUT.settings == {"antialias": False}


def test_what_blip_has_no_place_for_is_refused():
    with torch.device("meta"):
        native = featx.create_model(NAME, num_classes=7, **TINY).state_dict()
    with pytest.raises(CheckpointError, match=r"no place for \['head.weight', 'head.bias'\]"):
        LAYOUT.from_native(native)


def test_a_classifier_asked_for_is_missing(foreign):
    with pytest.raises(CheckpointError, match=r"missing    head\.weight"):
        featx.load_weights(featx.create_model(NAME, num_classes=7, **TINY), foreign)


def test_what_no_layout_knows_is_named(foreign):
    model = featx.create_model(NAME, num_classes=0, **TINY)
    with pytest.raises(CheckpointError, match="unexpected visual_projector"):
        featx.load_weights(model, {**foreign, "visual_projector": torch.zeros(1)})


def test_no_other_layout_recognizes_these_names_nor_this_one_native_names(model, foreign):
    assert [other for other in all_layouts() if other.recognizes(foreign)] == [LAYOUT]
    assert not LAYOUT.recognizes(model.state_dict())
