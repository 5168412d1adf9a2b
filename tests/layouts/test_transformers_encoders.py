"""Image encoders that transformers keeps inside other models, or as backbones."""

import pytest
import torch
import transformers as hf
from conftest import images, randomize, same_state
from support.transformers_cases import CASES, DIM, HF_VIT, built, close, outputs, saved
from support.transformers_cases import case as case

from featx import CheckpointError


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mobilevit", hf.MobileViTForSemanticSegmentation), ("mobilevitv2", hf.MobileViTV2ForSemanticSegmentation)],
)
@pytest.mark.parametrize("output_stride", [16, 8])
def test_the_encoder_of_a_segmentation_model_gives_its_maps(name, kind, output_stride, tmp_path):
    case = CASES[name]
    config = type(case.config)(**{**case.config.to_dict(), "output_stride": output_stride})
    theirs, x = built(kind(config)), images(2, 3, 64, 128)
    ours = case.loaded(
        saved(theirs, tmp_path), features_only=True, out_indices=case.levels, output_stride=output_stride
    )
    with torch.no_grad():
        close(ours(x), case.maps(outputs(case, theirs, x)))


VISION = {**HF_VIT, "intermediate_size": 4 * DIM}
TEXT = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
TOKENS = {"bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    "kind",
    [hf.BlipModel, hf.BlipForConditionalGeneration, hf.BlipForImageTextRetrieval, hf.BlipForQuestionAnswering],
)
def test_the_image_encoder_is_taken_from_every_blip(kind, tmp_path):
    case = CASES["blip"]
    theirs = randomize(kind(hf.BlipConfig(vision_config=VISION, text_config={**TEXT, **TOKENS})))
    ours = case.loaded(saved(theirs, tmp_path), num_classes=0)
    expected = case.layout.to_native(theirs.vision_model.state_dict(), ())
    assert same_state(ours.state_dict(), expected)


def test_the_output_of_blips_image_encoder_is_ours(tmp_path):
    case = CASES["blip"]
    theirs, x = built(case.theirs()), images(2, 3, *case.size)
    ours = case.loaded(saved(theirs, tmp_path), num_classes=0)
    with torch.no_grad():
        close([ours.forward_features(x)], [outputs(case, theirs, x).last_hidden_state])


def encoder_of(model, case):
    """Its weights under our names, without those of pretraining and of transformers' pooler."""
    state = case.layout.to_native(model.base_model.state_dict(), ())
    return {name: tensor for name, tensor in state.items() if "mask_token" not in name and "pooler" not in name}


@pytest.mark.parametrize("kind", [hf.ViTModel, hf.ViTForMaskedImageModeling, hf.ViTMAEForPreTraining])
def test_what_pretraining_leaves_in_a_vit_is_left_out(kind, tmp_path):
    config = hf.ViTMAEConfig if kind is hf.ViTMAEForPreTraining else hf.ViTConfig
    theirs, case = randomize(kind(config(**VISION))), CASES["vit"]
    ours = case.loaded(saved(theirs, tmp_path), num_classes=0)
    assert same_state(ours.state_dict(), encoder_of(theirs, case))


@pytest.mark.parametrize("kind", [hf.Dinov2ForImageClassification, hf.Dinov2Backbone])
def test_every_dinov2_gives_its_encoder(kind, tmp_path):
    case = CASES["dinov2"]
    theirs = randomize(kind(case.config))
    ours = case.loaded(saved(theirs, tmp_path), num_classes=0)
    assert same_state(ours.state_dict(), encoder_of(theirs, case))


def test_maps_of_dinov2s_backbone_class_are_our_normalized_ones(tmp_path):
    case = CASES["dinov2 with registers"]
    config = hf.Dinov2WithRegistersConfig(**HF_VIT, use_swiglu_ffn=True, out_features=["stage1", "stage2"])
    theirs, x = built(hf.Dinov2WithRegistersBackbone(config)), images(2, 3, *case.size)
    ours = case.loaded(saved(theirs, tmp_path), features_only=True, norm_maps=True)
    with torch.no_grad():
        close(ours(x), theirs(x).feature_maps)


@pytest.mark.parametrize("kind", [hf.ConvNextBackbone, hf.ResNetBackbone])
def test_maps_of_a_backbone_class_are_ours_but_for_its_own_norms(kind, tmp_path):
    case = CASES["convnext" if kind is hf.ConvNextBackbone else "resnet, basic"]
    theirs, x = built(kind(case.config)), images(2, 3, 64, 64)
    ours = case.loaded(saved(theirs, tmp_path), features_only=True, out_indices=case.levels, num_classes=0)
    with torch.no_grad():
        close(ours(x), case.maps(outputs(case, theirs, x)))


def test_a_deit_with_a_token_of_distillation_is_not_taken_for_a_vit(tmp_path):
    path = saved(hf.DeiTModel(hf.DeiTConfig(**VISION)), tmp_path)
    with pytest.raises(CheckpointError, match=r"unexpected embeddings.distillation_token"):
        CASES["vit"].model(checkpoint_path=path)
