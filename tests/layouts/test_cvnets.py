"""CVNets' names of MobileViT and MobileViTv2. CVNets cannot be installed: the names are written out here, the numbers
are transformers', to which a table of its own leads from CVNets' names."""

import re

import pytest
import torch
from conftest import images, randomize, relative_difference, same_state
from support.mindspore_names import both, conv_norm

import featx
from featx import CheckpointError
from featx.weights.layout import all_layouts, find_layout, recognize_layout

V1, V2 = find_layout("cvnets", ["MobileViT"]), find_layout("cvnets", ["MobileViTV2"])
CASES = [(V1, "mobilevit_xxs"), (V2, "mobilevitv2_050")]
DEPTHS = {3: 2, 4: 4, 5: 3}
EVERY = [name for name in featx.list_models() if name.startswith("mobilevit")]


def family(name):
    return "MobileViTV2" if "v2" in name else "MobileViT"


def shared_names(residuals):
    names = conv_norm("conv_1")
    for block in residuals:
        names |= {name for layer in ("exp_1x1", "conv_3x3", "red_1x1") for name in conv_norm(f"{block}.block.{layer}")}
    return names


def v1_names():
    names = shared_names([f"layer_{n}" for n in ("1.0", "2.0", "2.1", "2.2", "3.0", "4.0", "5.0")])
    names |= conv_norm("conv_1x1_exp") | both("classifier.fc")
    for layer, depth in DEPTHS.items():
        block = f"layer_{layer}.1"
        names |= conv_norm(f"{block}.local_rep.conv_3x3") | {f"{block}.local_rep.conv_1x1.block.conv.weight"}
        for k in range(depth):
            one = f"{block}.global_rep.{k}"
            names |= both(f"{one}.pre_norm_mha.0", f"{one}.pre_norm_mha.1.qkv_proj", f"{one}.pre_norm_mha.1.out_proj")
            names |= both(f"{one}.pre_norm_ffn.0", f"{one}.pre_norm_ffn.1", f"{one}.pre_norm_ffn.4")
        names |= both(f"{block}.global_rep.{depth}") | conv_norm(f"{block}.conv_proj") | conv_norm(f"{block}.fusion")
    return names


def v2_names():
    names = shared_names([f"layer_{n}" for n in ("1.0", "2.0", "2.1", "3.0", "4.0", "5.0")]) | both("classifier.1")
    for layer, depth in DEPTHS.items():
        block = f"layer_{layer}.1"
        names |= conv_norm(f"{block}.local_rep.0") | {f"{block}.local_rep.1.block.conv.weight"}
        for k in range(depth):
            one, attention = f"{block}.global_rep.{k}", f"{block}.global_rep.{k}.pre_norm_attn.1"
            names |= both(f"{one}.pre_norm_attn.0", f"{one}.pre_norm_ffn.0")
            names |= both(f"{attention}.qkv_proj.block.conv", f"{attention}.out_proj.block.conv")
            names |= both(f"{one}.pre_norm_ffn.1.block.conv", f"{one}.pre_norm_ffn.3.block.conv")
        names |= both(f"{block}.global_rep.{depth}") | conv_norm(f"{block}.conv_proj")
    return names


# From CVNets' names to those of transformers, in this order.
TO_TRANSFORMERS = [
    (r"^conv_1\.block\.", "conv_stem."),
    (r"^layer_([12])\.(\d+)\.block\.", lambda m: f"encoder.layer.{int(m[1]) - 1}.layer.{m[2]}."),
    (r"^layer_([345])\.0\.block\.", lambda m: f"encoder.layer.{int(m[1]) - 1}.downsampling_layer."),
    (r"^layer_([345])\.1\.", lambda m: f"encoder.layer.{int(m[1]) - 1}."),
    (r"\.local_rep\.(conv_3x3|0)\.block\.", ".conv_kxk."),
    (r"\.local_rep\.(conv_1x1|1)\.block\.", ".conv_1x1."),
    (r"\.exp_1x1\.block\.", ".expand_1x1."),
    (r"\.conv_3x3\.block\.", ".conv_3x3."),
    (r"\.red_1x1\.block\.", ".reduce_1x1."),
    (r"\.conv_proj\.block\.", ".conv_projection."),
    (r"\.fusion\.block\.", ".fusion."),
    (r"^conv_1x1_exp\.block\.", "conv_1x1_exp."),
    (r"\.global_rep\.(\d+)\.pre_norm_(attn|mha)\.0\.", r".transformer.layer.\1.layernorm_before."),
    (r"\.global_rep\.(\d+)\.pre_norm_attn\.1\.(\w+)\.block\.", r".transformer.layer.\1.attention.\2."),
    (r"\.global_rep\.(\d+)\.pre_norm_mha\.1\.qkv_proj\.", r".transformer.layer.\1.attention.attention.QKV."),
    (r"\.global_rep\.(\d+)\.pre_norm_mha\.1\.out_proj\.", r".transformer.layer.\1.attention.output.dense."),
    (r"\.global_rep\.(\d+)\.pre_norm_ffn\.0\.", r".transformer.layer.\1.layernorm_after."),
    (r"\.global_rep\.(\d+)\.pre_norm_ffn\.1\.block\.", r".transformer.layer.\1.ffn.conv1."),
    (r"\.global_rep\.(\d+)\.pre_norm_ffn\.3\.block\.", r".transformer.layer.\1.ffn.conv2."),
    (r"\.global_rep\.(\d+)\.pre_norm_ffn\.1\.", r".transformer.layer.\1.intermediate.dense."),
    (r"\.global_rep\.(\d+)\.pre_norm_ffn\.4\.", r".transformer.layer.\1.output.dense."),
    (r"\.global_rep\.\d+\.", ".layernorm."),
    (r"\.conv\.weight$", ".convolution.weight"),
    (r"\.conv\.bias$", ".convolution.bias"),
    (r"\.norm\.", ".normalization."),
    (r"^classifier\.(1|fc)\.", "classifier."),
]


def to_transformers(state, prefix):
    new = {}
    for name, tensor in state.items():
        for pattern, replacement in TO_TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        name = name if name.startswith("classifier.") else f"{prefix}.{name}"
        parts = tensor.chunk(3) if ".QKV." in name else [tensor]
        for kind, part in zip(("query", "key", "value"), parts, strict=False):
            new[name.replace("QKV", kind)] = part
    return new


def save(state, path):
    torch.save(state, path)
    return path


@pytest.fixture(scope="module", params=CASES, ids=["v1", "v2"])
def case(request):
    layout, name = request.param
    model = randomize(featx.create_model(name, num_classes=7))
    return layout, name, model


@pytest.mark.parametrize(("layout", "name", "names"), [(*CASES[0], v1_names()), (*CASES[1], v2_names())])
def test_the_names_are_those_of_cvnets(layout, name, names):
    with torch.device("meta"):
        assert layout.from_native(featx.create_model(name).state_dict()).keys() == names


def test_v1_and_v2_have_as_many_tensors_as_the_originals():
    assert (len(v1_names()), len(v2_names())) == (311, 269)


def test_there_and_back_changes_nothing(case):
    layout, _, model = case
    native = model.state_dict()
    before = {name: tensor.clone() for name, tensor in native.items()}
    assert same_state(layout.to_native(layout.from_native(native), native), native)
    assert same_state(native, before)


@pytest.mark.parametrize("name", EVERY)
def test_every_variant_comes_back_with_its_names_and_shapes(name):
    with torch.device("meta"):
        native = featx.create_model(name).state_dict()
    layout = find_layout("cvnets", [family(name)])
    foreign = layout.from_native(native)
    back = layout.to_native(foreign, native)
    assert recognize_layout(foreign, [family(name)]) is layout
    assert {key: tensor.shape for key, tensor in back.items()} == {key: tensor.shape for key, tensor in native.items()}


@pytest.mark.parametrize("size", [(64, 128), (128, 192)])  # transformers' v2 fills what is left of odd maps with zeros
def test_the_numbers_are_those_of_transformers(case, size):
    transformers = pytest.importorskip("transformers")
    layout, _, model = case
    v1 = {"hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "expand_ratio": 2.0}
    if layout is V1:
        reference = transformers.MobileViTForImageClassification(transformers.MobileViTConfig(num_labels=7, **v1))
    else:
        config = transformers.MobileViTV2Config(num_labels=7, width_multiplier=0.5)
        reference = transformers.MobileViTV2ForImageClassification(config)
    foreign = to_transformers(layout.from_native(model.state_dict()), "mobilevit" if layout is V1 else "mobilevitv2")
    reference.load_state_dict(foreign)
    x = images(1, 3, *size)
    with torch.no_grad():
        # what CVNets trained v1 on, and transformers feeds it, is BGR
        expected = reference.eval()(x.flip(1) if layout is V1 else x).logits
        assert relative_difference(model(x), expected) <= 1e-5


def test_a_classifiers_checkpoint_fills_classifiers_and_extractors(case, tmp_path):
    layout, name, model = case
    path = save(layout.from_native(model.state_dict()), tmp_path / "w.pt")
    assert same_state(featx.create_model(name, num_classes=7, checkpoint_path=path).state_dict(), model.state_dict())
    extractor = featx.create_model(name, features_only=True, out_indices=[-1, 1], checkpoint_path=path)
    assert same_state(extractor.state_dict(), featx.FeatureExtractWrapper(model, [-1, 1]).state_dict())
    pooled = featx.create_model(name, num_classes=0, checkpoint_path=path).state_dict()
    assert same_state(
        pooled, {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("head.")}
    )


def test_the_first_convolution_of_v1_is_flipped_and_of_v2_is_not(case):
    layout, _, model = case
    ours = model.state_dict()["stem.conv.weight"]
    theirs = layout.from_native(model.state_dict())["conv_1.block.conv.weight"]
    assert torch.equal(theirs, ours.flip(1) if layout is V1 else ours)
    assert bool(layout.notes) is (layout is V1)


def encoder_of(foreign, prefix="encoder."):
    """What a network keeps of a classifier as its encoder."""
    return {
        f"{prefix}{name}": tensor
        for name, tensor in foreign.items()
        if not name.startswith(("classifier.", "conv_1x1_exp."))
    }


@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("encoder.", []),
        ("encoder.", ["seg_head.aspp.aspp_layer.convs.0.block.conv.weight", "seg_head.aux_head.0.block.norm.bias"]),
        ("encoder.", ["seg_head.psp_layer.psp_branches.0.1.block.conv.weight", "encoder.neural_augmentor.noise._low"]),
        (
            "encoder.",
            ["ssd_heads.0.proj_layer.block.conv.weight", "extra_layers.os_64.dw_conv.block.norm.bias"],
        ),
        ("model.backbone.encoder.", ["model.backbone.fpn_proj_layers.4.block.conv.weight", "model.rpn.head.conv.bias"]),
        ("module.encoder.", ["module.seg_head.classifier.block.conv.bias"]),
    ],
    ids=["alone", "deeplabv3", "pspnet", "ssd", "mask r-cnn", "data parallel"],
)
def test_the_encoder_of_another_network_fills_an_extractor(case, prefix, others, tmp_path):
    layout, name, model = case
    foreign = encoder_of(layout.from_native(model.state_dict()), prefix)
    path = save({**foreign, **{other: torch.zeros(1) for other in others}}, tmp_path / "w.pt")
    stages = ["stages.1", "stages.4"]
    extractor = featx.create_model(name, features_only=True, out_names=stages, checkpoint_path=path).eval()
    expected = featx.FeatureExtractWrapper(model, out_names=stages)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(extractor(images()), expected(images()), strict=True))


def test_learnt_augmentation_is_left_out(case):
    layout, name, model = case
    state = {**layout.from_native(model.state_dict()), "neural_augmentor.contrast._low": torch.zeros(())}
    again = featx.create_model(name, num_classes=7)
    featx.load_weights(again, state)
    assert same_state(again.state_dict(), model.state_dict())


def test_an_encoder_without_expansion_says_so():
    model = randomize(featx.create_model("mobilevit_xxs"))
    encoder = encoder_of(V1.from_native(model.state_dict()))
    with pytest.raises(CheckpointError, match=r"missing    final_conv\.conv\.weight"):
        featx.load_weights(featx.create_model("mobilevit_xxs", features_only=True), encoder)


def test_what_no_layout_knows_is_named(case):
    layout, name, model = case
    state = {**layout.from_native(model.state_dict()), "encoder_ema.x": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"unexpected encoder_ema\.x"):
        featx.load_weights(featx.create_model(name, num_classes=7), state)


def test_without_mapping_foreign_names_are_refused(case):
    layout, name, model = case
    foreign = layout.from_native(model.state_dict())
    with pytest.raises(CheckpointError, match=r"unexpected conv_1\.block\.conv\.weight"):
        featx.load_weights(featx.create_model(name, num_classes=7), foreign, auto_mapping=False)


@pytest.mark.parametrize("levels", [[0], [0, 1], [2]])
def test_a_cut_model_goes_there_and_back(case, levels):
    layout, name, model = case
    native = featx.FeatureExtractWrapper(model, levels).state_dict()
    foreign = layout.from_native(native)
    assert recognize_layout(foreign, [family(name)]) is layout
    assert same_state(layout.to_native(foreign, native), native)


def test_images_of_other_than_three_channels_are_not_turned_round():
    model = randomize(featx.create_model("mobilevit_xxs", in_chans=4))
    foreign = V1.from_native(model.state_dict())
    assert torch.equal(foreign["conv_1.block.conv.weight"], model.stem.conv.weight)


@pytest.mark.parametrize(("name", "other"), [("mobilevit_xxs", V2), ("mobilevitv2_050", V1)])
def test_the_other_version_native_names_and_transformers_names_are_not_recognized(name, other):
    with torch.device("meta"):
        native = featx.create_model(name).state_dict()
    own = find_layout("cvnets", [family(name)])
    foreign = own.from_native(native)
    assert not other.recognizes(foreign)
    assert not own.recognizes(native)
    assert not own.recognizes(to_transformers(foreign, "mobilevit"))


def test_no_other_layout_recognizes_these_names(case):
    layout, _, model = case
    foreign = layout.from_native(model.state_dict())
    assert [other for other in all_layouts() if other.recognizes(foreign)] == [layout]
