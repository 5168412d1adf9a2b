"""Instances, names and weights of transformers' models: what is supported, and what is refused."""

import json

import pytest
import torch
from conftest import images, randomize
from support.tap_models import outputs, run
from support.transformers_types import CLIP, CONVS, EVERY, assert_same, extracted, model_of, pyramid_of, transformers

from featx import FeatureExtractWrapper
from featx.bridges import transformers as bridge
from featx.errors import ArgumentError, ContractError, InputError, UnknownModelError, WeightsNotFoundError
from featx.tapped_levels import tap


def test_a_model_in_hand_stays_as_it_is():
    model = model_of("vit")
    modules = [name for name, _ in model.named_modules()]
    hooks, settings = [len(module._forward_hooks) for module in model.modules()], model.config.to_dict()
    FeatureExtractWrapper(bridge.pyramid(model), [0])
    assert [name for name, _ in model.named_modules()] == modules
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert model.config.to_dict() == settings


def test_a_classifier_in_hand_gives_maps_under_its_own_names():
    model = randomize(bridge.build("convnext", num_classes=5, **CONVS))
    extractor = FeatureExtractWrapper(bridge.pyramid(model), [-1, -2])
    assert {name.split(".")[0] for name in extractor.state_dict()} == {"convnext"}
    with torch.no_grad():
        states = model(images(), output_hidden_states=True).hidden_states
        assert_same(extractor(images()), [states[-1], states[-2]])


def test_a_backbone_in_hand_offers_the_stages_it_has_norms_for():
    config = transformers.ConvNextConfig(**CONVS, out_features=["stage2", "stage4"])
    pyramid = bridge.pyramid(transformers.ConvNextBackbone(config))
    assert pyramid.feature_info.names() == ["stage2", "stage4"]
    assert pyramid.feature_info.reduction() == [8, 32]


def test_the_image_encoder_of_a_model_of_images_and_text_gives_maps():
    text = {**CLIP, "vocab_size": 9}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=CLIP)).eval()
    extractor = FeatureExtractWrapper(bridge.pyramid(model), [0])
    assert {name.split(".")[0] for name in extractor.state_dict()} == {"vision_model"}
    assert extractor(images(1, 3, 32, 32))[0].shape == (1, 16, 4, 4)


@pytest.mark.parametrize("size", [(128, 128), (192, 256), (96, 160)])
def test_an_encoder_with_a_neck_gives_the_maps_of_its_backbone(size):
    model, x = model_of("sam2_vision_model"), images(1, 3, *size)
    with torch.no_grad():
        states = model.backbone(x).intermediate_hidden_states
    expected = [state.permute(0, 3, 1, 2) for state in states]
    assert_same(extracted(pyramid_of("sam2_vision_model"), x), expected)
    extractor = FeatureExtractWrapper(pyramid_of("sam2_vision_model"), [2, 0])
    assert extractor.feature_info.reduction() == [16, 4]
    assert {name.split(".")[0] for name in extractor.state_dict()} == {"backbone"}
    assert_same(extracted(pyramid_of("sam2_vision_model"), x, [2, 0]), [expected[2], expected[0]])


def test_sizes_that_do_not_fill_the_windows_of_positions_are_refused_with_one_that_does():
    pyramid = pyramid_of("sam2_vision_model")
    assert pyramid.size_divisor == 32
    with pytest.raises(InputError, match=r"takes no images of 100x132 pixels .* resize them to 96x128"):
        extracted(pyramid, images(1, 3, 100, 132))


@pytest.mark.parametrize("names", [["backbone.patch_embed"], ["neck.convs.3"], ["neck.convs.0", "backbone.blocks.1"]])
def test_modules_of_an_encoder_with_a_neck_give_maps_of_every_size(names):
    model = model_of("sam2_vision_model")
    extractor = tap(model, names)
    for size in [(128, 128), (96, 160), (64, 64)]:
        x = images(1, 3, *size)
        returned = zip(names, outputs(model, names, x), strict=True)
        expected = [map_ if "neck" in name else map_.permute(0, 3, 1, 2) for name, map_ in returned]
        assert_same(run(extractor, x), expected)


def test_where_the_package_declares_other_channels_the_measured_ones_stand():
    pyramid = bridge.pyramid(bridge.build("hgnet_v2"))
    assert "stem has 48 channels, declared are 64" in pyramid.corrections
    assert pyramid_of("convnext").corrections == ()


def test_a_model_that_takes_no_images_is_refused():
    text = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(ContractError, match="BertModel has no part that takes images"):
        bridge.pyramid(transformers.BertModel(text))


def test_an_unknown_type_is_refused_with_the_closest_ones():
    with pytest.raises(UnknownModelError, match=r"no model type 'convnxt', but \['convnext'"):
        bridge.build("convnxt")


@pytest.mark.parametrize("kind", sorted(bridge.REFUSED))
def test_types_without_maps_are_refused_with_the_reason(kind):
    with pytest.raises(UnknownModelError, match="returns no maps: "):
        bridge.build(kind)


def test_types_of_models_that_take_no_images_are_refused():
    with pytest.raises(UnknownModelError, match="'bert', which returns no maps"):
        bridge.build("bert")


def test_unknown_settings_are_refused_with_the_closest_ones():
    with pytest.raises(ArgumentError, match=r"no field 'hidden_sise' \(did you mean \['hidden_size'"):
        bridge.build("vit", hidden_sise=8)
    with pytest.raises(ArgumentError, match="cannot trade strides for dilation: leave output_stride out"):
        bridge.build("convnext", output_stride=16)
    with pytest.raises(ArgumentError, match="does not accept this configuration"):
        bridge.build("vit", hidden_size="wide")
    with pytest.raises(ArgumentError, match="no classifier of type vitdet"):
        bridge.build("vitdet", num_classes=3)


def test_channels_sizes_and_strides_reach_the_configuration():
    model = bridge.build("vit", in_chans=1, **{**CLIP, "image_size": 64})
    assert model(images(1, 1, 64, 64)).last_hidden_state.shape[1] == 65
    assert FeatureExtractWrapper(bridge.pyramid(model), [0]).in_chans == 1
    dilated = bridge.pyramid(bridge.build("mobilevit", output_stride=16, **EVERY["mobilevit"][0]))
    assert dilated.feature_info.reduction() == [2, 4, 8, 16]


def saved(tmp_path, model):
    model.save_pretrained(tmp_path)
    return str(tmp_path)


def test_weights_of_a_folder_are_loaded(tmp_path):
    model = model_of("convnext")
    folder = saved(tmp_path, model)
    processor = {"size": {"shortest_edge": 48}, "crop_pct": 0.75, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processor, "resample": 2}))
    loaded = bridge.build(folder, pretrained=True).eval()
    assert_same(extracted(bridge.pyramid(loaded), images()), extracted(pyramid_of("convnext"), images()))
    data = FeatureExtractWrapper(bridge.pyramid(loaded)).data_config
    assert (data.size, data.crop, data.mean, data.interpolation) == ((48, 48), 0.75, (0.1,) * 3, "bilinear")


def test_weights_of_a_classifier_fill_the_backbone_without_its_fresh_norms(tmp_path):
    classifier = randomize(bridge.build("convnext", num_classes=5, **CONVS))
    backbone = bridge.build(saved(tmp_path, classifier), pretrained=True)
    for name, tensor in backbone.state_dict().items():
        if "hidden_states_norms" not in name:
            assert torch.equal(tensor, classifier.state_dict()[f"convnext.{name}"])


def test_weights_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"do not fit: other shapes .*patch_embeddings"):
        bridge.build(saved(tmp_path, model_of("convnext")), pretrained=True, in_chans=4)


def test_weights_that_are_not_there_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(WeightsNotFoundError, match="is a model type, which has no weights"):
        bridge.build("vit", pretrained=True)
    with pytest.raises(WeightsNotFoundError, match="name a folder that save_pretrained wrote"):
        bridge.build(str(tmp_path))
    model_of("convnext").config.save_pretrained(tmp_path)
    with pytest.raises(WeightsNotFoundError, match="cannot load the weights of"):
        bridge.build(str(tmp_path), pretrained=True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsNotFoundError, match=r"cannot load the config\.json of owner/missing"):
        bridge.build("owner/missing", cache_dir=tmp_path)
