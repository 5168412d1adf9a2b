"""The interface that programs for timm models use: names, heads, pools and views, compared with timm's."""

import numpy as np
import pytest
import timm
import torch
from conftest import SMALL, images, randomize, relative_difference, same_state
from support.timm_parity import is_vit, of_timm
from timm.models import get_pretrained_cfg

import featx
from featx import ArgumentError
from featx.meta_init import init_empty_weights
from featx.weights.layouts.flax import to_flax

# One of each kind of head: behind a convolution, before one, with a norm, alone, on tokens; the others in the sweep.
HEADS = ["test_efficientnet", "mobilenetv3_small_050", "convnext_atto", "regnety_002", "vit_tiny_patch16_224"]
HEADED = [name if name in HEADS else pytest.param(name, marks=pytest.mark.sweep) for name in SMALL]
# where every kind of pool is tried
POOLED = [
    name if name in ("test_efficientnet", "mobilenetv3_small_050") else pytest.param(name, marks=pytest.mark.sweep)
    for name in SMALL
]
EVERY = [name if name in HEADS else pytest.param(name, marks=pytest.mark.sweep) for name in featx.list_models()]
POOLS = ["avg", "max", "avgmax", "catavgmax", "", "token"]
X = (1, 3, 64, 96)


def pair(name, **kwargs):
    """Our model and timm's with the same random weights, ViTs of two blocks."""
    theirs = randomize(of_timm(name, **kwargs, **({"depth": 2, "fc_norm": False} if is_vit(name) else {})))
    ours = featx.create_model(name, **kwargs, **({"depth": 2, "fc_norm": False} if is_vit(name) else {})).eval()
    own = ours.state_dict()
    # timm's classifier of cells is a convolution
    ours.load_state_dict({key: tensor.reshape(own[key].shape) for key, tensor in theirs.state_dict().items()})
    return ours, theirs


@torch.no_grad()
@pytest.mark.parametrize("name", HEADED)
def test_features_pre_logits_and_logits_equal_timms(name):
    ours, theirs = pair(name)
    features, expected = ours.forward_features(images(*X)), theirs.forward_features(images(*X))
    assert relative_difference(features, expected) <= 1e-5
    pre_logits = ours.forward_head(features, pre_logits=True)
    assert relative_difference(pre_logits, theirs.forward_head(expected, pre_logits=True)) <= 1e-5
    assert relative_difference(ours.forward_head(features), theirs.forward_head(expected)) <= 1e-5
    assert torch.equal(ours.get_classifier()(pre_logits), ours(images(*X)))
    sizes = ours.num_classes, ours.num_features, ours.head_hidden_size
    assert sizes == (theirs.num_classes, theirs.num_features, theirs.head_hidden_size)


@torch.no_grad()
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", POOLED)
def test_pools_are_those_that_timm_has(name, pool):
    try:
        ours, theirs = pair(name, global_pool=pool, num_classes=5 if pool else 0)
    except AssertionError:  # timm's answer
        with pytest.raises(ArgumentError, match=f"global_pool='{pool}'.*choose"):
            featx.create_model(name, global_pool=pool)
        return
    assert relative_difference(ours(images(*X)), theirs(images(*X))) <= 1e-5
    assert ours.head_hidden_size == theirs.head_hidden_size
    for model in (ours, theirs):
        model.reset_classifier(0)
    assert ours.num_classes == 0
    assert relative_difference(ours(images(*X)), theirs(images(*X))) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["regnety_002", "mobilenetv3_small_050", "convnext_atto"])
def test_without_a_pool_the_classifier_reads_every_cell(name):
    pooled = randomize(featx.create_model(name, num_classes=5))
    cells = featx.create_model(name, num_classes=5, global_pool="", checkpoint_path=pooled.state_dict()).eval()
    features = cells.forward_features(images(*X))
    for row in range(2):
        for column in range(3):
            one = pooled.forward_head(features[:, :, row : row + 1, column : column + 1])
            torch.testing.assert_close(cells(images(*X))[:, :, row, column], one, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("pool", [None, *POOLS])
@pytest.mark.parametrize("name", POOLED)
def test_a_reset_classifier_equals_one_that_was_built_so(name, pool):
    vit = {"depth": 2} if is_vit(name) else {}
    model = randomize(featx.create_model(name, num_classes=3, **vit)).half()
    kind = {} if pool is None else {"global_pool": pool}
    try:
        built = featx.create_model(name, num_classes=4, **kind, **vit).eval()
        model.reset_classifier(4, **kind)
    except ArgumentError:
        assert model.num_classes == 3
        assert model.float()(images(*X)).shape == (1, 3)
        return
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.float16}
    built.load_state_dict(model.float().state_dict())
    assert torch.equal(model(images(*X)), built(images(*X)))
    assert not model.get_classifier().training
    assert (model.num_classes, model.head_hidden_size) == (4, built.head_hidden_size)


def test_a_pool_that_changes_the_layers_behind_it_is_refused_with_what_to_build():
    model = featx.create_model("mobilenetv3_small_050")
    with pytest.raises(ArgumentError, match=r"global_pool='catavgmax' gives conv_head.weight another shape.*build"):
        model.reset_classifier(5, "catavgmax")
    assert featx.create_model("mobilenetv3_small_050", global_pool="catavgmax").eval()(images(*X)).shape == (1, 1000)


@pytest.mark.parametrize("name", EVERY)
def test_the_view_of_the_configuration_says_what_timms_says(name):
    with init_empty_weights():
        model = featx.create_model(name)
    ours, theirs = model.default_cfg, get_pretrained_cfg(name).to_dict()
    for key in ("architecture", "num_classes", "pool_size", "first_conv", "classifier", "mean", "std", "crop_pct"):
        assert ours[key] == theirs[key], key
    assert (ours["input_size"], ours["interpolation"]) == (theirs["input_size"], theirs["interpolation"])
    assert ours["tag"] == (theirs["tag"] if theirs.get("hf_hub_id") else "")
    assert model.pretrained_cfg == ours
    first, names = ours["first_conv"], model.state_dict().keys()
    layers = [*([first] if isinstance(first, str) else first), *([ours["classifier"]] if ours["num_classes"] else [])]
    assert {f"{layer}.weight" for layer in layers} <= names


def test_the_view_cannot_be_changed_and_follows_the_model():
    model = featx.create_model("resnet18.tv_in1k", in_chans=4, num_classes=7, image_size=(64, 96), output_stride=16)
    with pytest.raises(TypeError):
        model.default_cfg["num_classes"] = 3
    assert (model.default_cfg["tag"], model.default_cfg["hf_hub_id"]) == ("tv_in1k", "timm/resnet18.tv_in1k")
    assert (model.default_cfg["input_size"], model.default_cfg["pool_size"]) == ((4, 64, 96), (4, 6))
    model.reset_classifier(2)
    assert model.default_cfg["num_classes"] == 2


def test_extractors_show_their_models_view():
    cfg = featx.create_model("resnet18", features_only=True, out_indices=[1]).default_cfg
    assert (cfg["architecture"], cfg["input_size"]) == ("resnet18", (3, 224, 224))
    bridged = featx.create_model("timm/resnet18", features_only=True)
    assert bridged.pretrained_cfg["architecture"] == "resnet18"


@pytest.mark.usefixtures("shapes_alone")
@pytest.mark.parametrize("name", EVERY)
def test_shapes_of_features_heads_and_pools_are_what_the_model_says(name, code_paths):
    with init_empty_weights():
        model, x = featx.create_model(name, image_size=64).eval(), torch.empty(2, 3, 64, 64)
        if code_paths.have("shapes of features, heads and pools", model):
            return
        features, cells = model.forward_features(x), model.default_cfg["pool_size"]
        axis = 2 if model.gives_tokens else 1
        assert features.shape[axis] == model.num_features
        assert cells is None or features.shape[2:] == cells
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        model.reset_classifier(0)
        assert (model.num_classes, model(x).shape) == (0, (2, model.head_hidden_size))
        if getattr(model.config, "global_pool", "") == "map":  # a pool with weights cannot be exchanged
            with pytest.raises(featx.ArgumentError, match=rf"create_model\('{name}', global_pool=''\)"):
                model.reset_classifier(0, "")
            model = featx.create_model(name, image_size=64, num_classes=0, global_pool="").eval()
        else:
            model.reset_classifier(0, "")
        assert model(x).shape[axis] == model.head_hidden_size
        assert cells is None or model(x).shape[2:] == cells
        assert model(x).shape == featx.create_model(name, image_size=64, num_classes=0, global_pool="")(x).shape
        model.reset_classifier(6)
        assert model(x).shape[axis] == 6


@pytest.mark.parametrize("name", HEADED)
def test_every_parameter_gets_a_gradient(name):
    model = featx.create_model(name, num_classes=42, **({"depth": 2} if is_vit(name) else {})).train()
    logits = model(images(2, 3, 64, 64))
    logits.mean().backward()
    assert logits.shape == (2, 42)
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
@pytest.mark.parametrize("name", HEADED)
def test_intermediates_are_the_extractors_maps_beside_the_features(name):
    model = randomize(featx.create_model(name, **({"depth": 3} if is_vit(name) else {})))
    x, asked = images(*X), [1, -1, 0]
    features, maps = model.forward_intermediates(x, indices=asked)
    assert torch.equal(features, model.forward_features(x))
    expected = featx.FeatureExtractWrapper(model, asked)(x)
    assert all(torch.equal(map_, true) for map_, true in zip(maps, expected, strict=True))
    alone = model.forward_intermediates(x, asked, intermediates_only=True, output_fmt="NLC")
    assert all(torch.equal(rows, map_.flatten(2).mT) for rows, map_ in zip(alone, maps, strict=True))
    last, (shallow,) = model.forward_intermediates(x, [0], stop_early=True)
    assert torch.equal(last, shallow)
    rows = timm.models.FeatureInfo(model.feature_info, asked)
    assert rows.channels() == [map_.shape[1] for map_ in maps]


@torch.no_grad()
def test_intermediates_of_a_vit_with_norm_and_prefix_tokens_equal_timms():
    ours, theirs = pair("vit_tiny_patch16_224")
    options = {"indices": [0, 1], "norm": True, "return_prefix_tokens": True, "intermediates_only": True}
    found = zip(
        ours.forward_intermediates(images(*X), **options),
        theirs.forward_intermediates(images(*X), **options),
        strict=True,
    )
    for (map_, prefix), (expected, tokens) in found:
        assert relative_difference(map_, expected) <= 1e-5
        assert relative_difference(prefix, tokens) <= 1e-5


def test_what_intermediates_cannot_be_is_refused():
    model = featx.create_model("resnet18")
    with pytest.raises(ArgumentError, match="output_fmt='NHWC': choose one of"):
        model.forward_intermediates(images(*X), output_fmt="NHWC")
    with pytest.raises(featx.OutIndicesError, match="there is no level 9"):
        model.forward_intermediates(images(*X), [9])
    with pytest.raises(featx.InputError, match="expected 3 channels"):
        model.forward_intermediates(images(1, 4, 64, 64))


@pytest.mark.parametrize("feature_cls", ["list", "getter", "hook", "fx"])
def test_kinds_of_timms_extractors_are_one_here(feature_cls):
    x = images(*X)
    torch.manual_seed(0)
    maps = featx.create_model("resnet18", features_only=True, feature_cls=feature_cls).eval()(x)
    torch.manual_seed(0)
    by_name = featx.create_model("resnet18", features_only=True, feature_cls="dict").eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(maps, by_name.values(), strict=True))


def test_the_name_is_called_model_name():
    assert featx.create_model(model_name="resnet18", features_only=True, out_indices=[0, 1]).feature_info.names()
    with pytest.raises(ArgumentError, match=r"no argument 'name' .did you mean 'model_name'.*model_name='resnet18'"):
        featx.create_model(name="resnet18")
    with pytest.raises(ArgumentError, match="model_name='': expected a name"):
        featx.create_model()
    with pytest.raises(ArgumentError, match=r"by position, and got \[None, 'w.pt'\] behind them: pass these by name"):
        featx.create_model("resnet18", False, None, "w.pt")


@pytest.mark.parametrize(
    ("kwargs", "advice"),
    [
        ({"img_size": 64}, "did you mean 'image_size'"),
        ({"embed_dim": 64}, "did you mean 'dim'"),
        ({"patch_size": 8}, "did you mean 'patch'"),
        ({"dynamic_img_size": True}, "leave it out: images of every size are taken"),
        ({"scriptable": True}, "leave it out: models are traced and exported as they are"),
        ({"pretrained_cfg": "tag"}, "name a tag, such as resnet50.a1_in1k, or pass checkpoint_path="),
        ({"features_only": True, "feature_cls": "x"}, "feature_cls='x': choose one of"),
    ],
)
def test_arguments_of_timm_without_counterpart_are_answered_with_what_to_do(kwargs, advice):
    with pytest.raises(ArgumentError, match=advice):
        featx.create_model("vit_tiny_patch16_224", **kwargs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"filter": ["resnet1*", "vit_*"], "exclude_filters": ["*d", "vit_h*"]},
        {"filter": "resnet5*", "pretrained": True},
        {"filter": "resnet50.*", "include_tags": True},
        {"filter": "vit_tiny*", "include_tags": True, "exclude_filters": "*in21k"},
        {"filter": "regnet*", "module": "regnet", "name_matches_cfg": True},
    ],
)
def test_models_are_listed_by_timms_filters(arguments):
    known = {*featx.list_models(), *featx.list_models(include_tags=True)}
    theirs = {name for name in timm.list_models(**arguments) if name in known}
    assert theirs
    assert set(featx.list_models(**arguments)) == theirs


def test_models_are_listed_by_the_file_of_their_class():
    assert featx.list_models(module="hrnet") == featx.list_models("hrnet*")
    every, rotary = set(featx.list_models(["vit_*", "deit*"])), set(featx.list_models("vit_*", module="eva"))
    assert set(featx.list_models(module=["vision_transformer"])) == every - rotary
    assert featx.list_models(module="nothing") == []


@torch.no_grad()
def test_saved_heads_are_built_again_here_and_by_timm(tmp_path):
    model = randomize(featx.create_model("vit_tiny_patch16_224", depth=1, num_classes=3))
    model.reset_classifier(4, "avg")
    featx.save(model, tmp_path)
    again = featx.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, dynamic_img_size=True).eval()
    assert torch.equal(again(images(*X)), model(images(*X)))
    assert relative_difference(again(images(*X)), theirs(images(*X))) <= 1e-5


@torch.no_grad()
def test_the_last_norm_of_a_vit_is_where_the_weights_have_it():
    theirs = randomize(of_timm("vit_tiny_patch16_224", depth=1, global_pool="avg"))
    ours = featx.create_model(
        "vit_tiny_patch16_224", depth=1, global_pool="avg", checkpoint_path=theirs.state_dict()
    ).eval()
    assert relative_difference(ours(images(*X)), theirs(images(*X))) <= 1e-5


def test_files_of_flax_fill_timms_vits(tmp_path):
    native = randomize(featx.create_model("vit_tiny_patch16_224", depth=1)).state_dict()
    np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in to_flax(native, 3).items()})
    model = featx.create_model("timm/vit_tiny_patch16_224", depth=1, checkpoint_path=tmp_path / "w.npz")
    assert same_state(model.state_dict(), native)
    maps = featx.create_model(
        "timm/vit_tiny_patch16_224", depth=1, features_only=True, checkpoint_path=tmp_path / "w.npz"
    )
    assert all(torch.equal(tensor, native[name]) for name, tensor in maps.state_dict().items())


def test_widths_of_mlps_and_of_hybrid_stems_are_fields():
    ours = featx.create_model("vit_tiny_patch16_224", depth=1, mlp_ratio=3)
    theirs = timm.create_model("vit_tiny_patch16_224", depth=1, mlp_ratio=3)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    with init_empty_weights():
        stem = featx.create_model("vit_small_r26_s32_224", depth=1, stem_chs=32).patch_embed.backbone
    assert stem.stem.conv.out_channels == 32
    assert [stage.blocks[-1].conv3.out_channels for stage in stem.stages] == [128, 256, 512, 1024]
    with pytest.raises(ArgumentError, match="stem_chs=40: expected a multiple of 32"):
        featx.create_model("vit_small_r26_s32_224", stem_chs=40)
