"""NetsPresso's names of MobileViT. NetsPresso Trainer cannot be installed: the names are written out here, the numbers
are transformers', to which a table of its own leads from NetsPresso's names."""

import re

import pytest
import torch
from conftest import images, randomize, relative_difference, same_state
from safetensors.torch import save_file
from support.mindspore_names import both, conv_norm

import featx
from featx import CheckpointError
from featx.weights.layout import all_layouts, find_layout, recognize_layout

LAYOUT = find_layout("netspresso", ["MobileViT"])
NAME = "mobilevit_xxs"


def names():
    found = conv_norm("patch_embed.conv") | conv_norm("conv_1x1_exp")
    for residual in ("0.0", "1.0", "1.1", "1.2", "2.0", "3.0", "4.0"):
        for layer in range(3):
            found |= conv_norm(f"encoder.blocks.{residual}.block.{layer}")
    for stage, depth in {2: 2, 3: 4, 4: 3}.items():
        block = f"encoder.blocks.{stage}.1"
        found |= conv_norm(f"{block}.local_rep.0") | {f"{block}.local_rep.1.block.conv.weight"}
        for k in range(depth):
            one = f"{block}.global_rep.{k}"
            found |= both(*(f"{one}.{path}" for path in ("layernorm_before", "layernorm_after")))
            found |= both(*(f"{one}.token_mixer.{path}" for path in ("query", "key", "value", "linear")))
            found |= both(f"{one}.channel_mlp.ffn.dense1", f"{one}.channel_mlp.ffn.dense2")
        found |= both(f"{block}.global_rep.{depth}") | conv_norm(f"{block}.proj") | conv_norm(f"{block}.fusion")
    return {f"backbone.{name}" for name in found} | both("head.classifier.1")


# From NetsPresso's names to those of transformers, in this order.
TO_TRANSFORMERS = [
    (r"^head\.classifier\.1\.", "classifier."),
    (r"^backbone\.", "mobilevit."),
    (r"\.patch_embed\.conv\.block\.", ".conv_stem."),
    (r"\.encoder\.blocks\.([01])\.", r".encoder.layer.\1.layer."),
    (r"\.encoder\.blocks\.([234])\.0\.", r".encoder.layer.\1.downsampling_layer."),
    (r"\.encoder\.blocks\.([234])\.1\.", r".encoder.layer.\1."),
    (r"\.block\.0\.block\.", ".expand_1x1."),
    (r"\.block\.1\.block\.", ".conv_3x3."),
    (r"\.block\.2\.block\.", ".reduce_1x1."),
    (r"\.local_rep\.0\.block\.", ".conv_kxk."),
    (r"\.local_rep\.1\.block\.", ".conv_1x1."),
    (r"\.proj\.block\.", ".conv_projection."),
    (r"\.(fusion|conv_1x1_exp)\.block\.", r".\1."),
    (r"\.global_rep\.(\d+)\.(\w+\.\w+)", r".transformer.layer.\1.\2"),
    (r"\.global_rep\.\d+\.", ".layernorm."),
    (r"\.token_mixer\.linear\.", ".attention.output.dense."),
    (r"\.token_mixer\.", ".attention.attention."),
    (r"\.channel_mlp\.ffn\.dense1\.", ".intermediate.dense."),
    (r"\.channel_mlp\.ffn\.dense2\.", ".output.dense."),
    (r"\.conv\.weight$", ".convolution.weight"),
    (r"\.norm\.", ".normalization."),
]


@pytest.fixture(scope="module")
def model():
    return randomize(featx.create_model(NAME, num_classes=7))


@pytest.fixture(scope="module")
def foreign(model):
    return LAYOUT.from_native(model.state_dict())


def test_the_names_are_those_of_netspresso(foreign):
    assert foreign.keys() == names()
    assert len(names()) == 347


def test_there_and_back_changes_nothing(model, foreign):
    native = model.state_dict()
    before = {name: tensor.clone() for name, tensor in native.items()}
    assert same_state(LAYOUT.to_native(foreign, native), native)
    assert same_state(native, before)


@pytest.mark.parametrize("name", ["mobilevit_xs", "mobilevit_s"])
def test_every_variant_comes_back_with_its_names_and_shapes(name):
    with torch.device("meta"):
        native = featx.create_model(name).state_dict()
    back = LAYOUT.to_native(LAYOUT.from_native(native), native)
    assert {key: tensor.shape for key, tensor in back.items()} == {key: tensor.shape for key, tensor in native.items()}


@pytest.mark.parametrize("size", [(64, 96), (97, 161)])
def test_the_numbers_are_those_of_transformers(model, foreign, size):
    transformers = pytest.importorskip("transformers")
    xxs = {"hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "expand_ratio": 2.0}
    reference = transformers.MobileViTForImageClassification(transformers.MobileViTConfig(num_labels=7, **xxs))
    theirs = {}
    for name, tensor in foreign.items():
        for pattern, replacement in TO_TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        theirs[name] = tensor
    reference.load_state_dict(theirs)
    x = images(1, 3, *size)
    with torch.no_grad():
        assert relative_difference(model(x), reference.eval()(x).logits) <= 1e-5


def test_a_whole_models_checkpoint_fills_classifiers_and_extractors(model, foreign, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(foreign, path)
    assert same_state(featx.create_model(NAME, num_classes=7, checkpoint_path=path).state_dict(), model.state_dict())
    extractor = featx.create_model(NAME, features_only=True, checkpoint_path=path)
    assert same_state(extractor.state_dict(), featx.FeatureExtractWrapper(model).state_dict())


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_a_backbones_checkpoint_fills_an_extractor(model, foreign, prefix):
    alone = {
        name.replace("backbone.", prefix, 1): tensor for name, tensor in foreign.items() if name.startswith("backbone.")
    }
    extractor = featx.create_model(NAME, features_only=True)
    featx.load_weights(extractor, alone)
    assert same_state(extractor.state_dict(), featx.FeatureExtractWrapper(model).state_dict())


@pytest.mark.parametrize("path", ["head.classifier", "head.classifier.0", "head.classifier.3"])
def test_the_one_layer_of_a_head_is_the_classifier_whatever_its_number(model, foreign, path):
    state = {name.replace("head.classifier.1", path): tensor for name, tensor in foreign.items()}
    again = featx.create_model(NAME, num_classes=7)
    featx.load_weights(again, state)
    assert same_state(again.state_dict(), model.state_dict())


def test_a_head_of_two_layers_is_left_out(model, foreign):
    layers = {"head.classifier.0.weight": torch.zeros(8, 320), "head.classifier.0.bias": torch.zeros(8)}
    state = {**foreign, **layers}
    extractor = featx.create_model(NAME, features_only=True)
    featx.load_weights(extractor, state)
    assert same_state(extractor.state_dict(), featx.FeatureExtractWrapper(model).state_dict())
    with pytest.raises(CheckpointError, match=r"missing    head\.fc\.weight"):
        featx.load_weights(featx.create_model(NAME, num_classes=7), state)


def test_a_checkpoint_without_a_value_layer_says_so(foreign):
    state = {name: tensor for name, tensor in foreign.items() if ".value." not in name}
    with pytest.raises(CheckpointError, match=r"missing    stages\.2\.1\.transformer\.0\.attn\.qkv\.weight"):
        featx.load_weights(featx.create_model(NAME, num_classes=7), state)


@pytest.mark.parametrize("levels", [[0], [2]])
def test_a_cut_model_goes_there_and_back(model, levels):
    native = featx.FeatureExtractWrapper(model, levels).state_dict()
    foreign = LAYOUT.from_native(native)
    assert recognize_layout(foreign, ["MobileViT"]) is LAYOUT
    assert same_state(LAYOUT.to_native(foreign, native), native)


def test_no_other_layout_recognizes_these_names_nor_this_one_native_names(model, foreign):
    assert [other for other in all_layouts() if other.recognizes(foreign)] == [LAYOUT]
    assert not LAYOUT.recognizes(model.state_dict())
    assert not LAYOUT.recognizes(find_layout("cvnets", ["MobileViT"]).from_native(model.state_dict()))
