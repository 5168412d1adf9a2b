"""MindCV's names and numbers.

What MindCV calls its tensors, and their shapes, was written down from its own networks (commit 51b0636 on MindSpore
2.10): data/mindcv_names.json.gz. Two folders in data hold weights that it saved and the outputs it computed with them.
"""

import gzip
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from check_golden_mindcv import check_mindcv, mobilenetv3
from conftest import images, randomize, relative_difference, same_state
from support.mindspore_writer import checkpoint
from torch import nn

import featx
from featx import CheckpointError
from featx.models.layers.padding import SameAvgPool2d, SameConv2d, SameMaxPool2d
from featx.weights.config_codec import same_value
from featx.weights.layout import all_layouts, recognize_layout
from featx.weights.load import family_names, load_weights

DATA = Path(__file__).parents[1] / "data"
NAMES = json.loads(gzip.decompress((DATA / "mindcv_names.json.gz").read_bytes()))
LAYOUTS = [layout for layout in all_layouts() if layout.system == "mindcv"]

# MindCV's name to ours, and the fields in which the network differs from our variant of that name.
OTHERS = {
    **{f"resnest{depth}": (f"resnest{depth}d", {}) for depth in (14, 26, 50)},
    "resnest101": ("resnest101e", {}),
    "repvgg_b1g2": ("repvgg_b1g4", {"groups": 2}),
    **{f"mobilenet_v2_{width}": (f"mobilenetv2_{width}", {}) for width in ("075", "100", "140")},
    **{f"mobilenet_v3_{size}_100": (f"mobilenetv3_{size}_100", {}) for size in ("small", "large")},
    **{f"mobilenet_v3_{size}_075": mobilenetv3({"arch": size, "alpha": 0.75}) for size in ("small", "large")},
    **{f"efficientnet_v2_{size}": (f"efficientnetv2_{size}", {}) for size in "sm"},
    **{f"rexnet_{width}": ("rexnet_100", {"width": int(width) / 10}) for width in ("09", "10", "13", "15", "20")},
}
SMALLEST = [
    *("resnet18", "resnet50", "resnest14", "repvgg_a0", "convnext_tiny", "convnextv2_atto", "mobilenet_v2_075"),
    *("mobilenet_v3_large_075", "mobilenet_v3_small_100", "efficientnet_b0", "efficientnet_b5", "efficientnet_v2_s"),
    *("rexnet_09", "hrnet_w32"),
]
EVERY = [name if name in SMALLEST else pytest.param(name, marks=pytest.mark.sweep) for name in NAMES]

# A small network of each kind: MindCV's name of its kind, a variant of ours and its fields.
TINY = {
    "resnet": ("resnet18", "resnet18", {"depths": (1, 1, 1, 1)}),
    "resnest": ("resnest14", "resnest14d", {}),
    "repvgg": ("repvgg_a0", "repvgg_a0", {"depths": (1, 2, 2, 1), "groups": ((1,), (1, 2), (1, 1), (1,))}),
    "convnext": ("convnext_tiny", "convnext_tiny", {"depths": (1, 1, 2, 1), "chs": (16, 24, 32, 48)}),
    "convnextv2": ("convnextv2_atto", "convnextv2_atto", {"depths": (1, 1, 2, 1), "chs": (16, 24, 32, 48)}),
    "mobilenetv2": ("mobilenet_v2_075", "mobilenetv2_035", {}),
    "mobilenetv3": ("mobilenet_v3_small_100", "mobilenetv3_small_050", {}),
    "efficientnet": ("efficientnet_b0", "efficientnet_b0", {}),
    "rexnet": ("rexnet_09", "rexnet_100", {"width": 0.4}),
    "hrnet": ("hrnet_w32", "hrnet_w18_small", {"width": 8, "depth": 1, "stem_depth": 1}),
}


def of_names(name):
    """Tensors without values, under the names of one of MindCV's networks."""
    return {tag: torch.empty(shape, device="meta") for tag, shape in NAMES[name].items()}


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@cache
def classes_of(ours):
    with torch.device("meta"):
        return family_names(featx.create_model(ours))


def layout_of(name, ours):
    """The layout of MindCV's network of that name, which is of a class of ours."""
    layout = recognize_layout(of_names(name), classes_of(ours))
    assert layout is not None
    assert layout.system == "mindcv"
    return layout


@pytest.fixture(scope="module", params=TINY)
def tiny(request):
    """The layout, how to build the network, a network, and its tensors under MindCV's names."""
    kind, name, fields = TINY[request.param]
    layout = layout_of(kind, name)
    fields = {"num_classes": 7, **fields, **layout.settings}
    model = randomize(featx.create_model(name, **fields), seed=3)
    return layout, (name, fields), model, layout.from_native(model.state_dict())


@pytest.mark.parametrize("name", EVERY)
def test_names_and_shapes_are_those_of_mindcvs_network(name):
    ours, fields = OTHERS.get(name, (name, {}))
    state = of_names(name)
    layout = layout_of(name, ours)
    with torch.device("meta"):
        model = featx.create_model(ours, **{**fields, **layout.settings})
    native = model.state_dict()
    assert shapes(layout.to_native(state, list(native))) == shapes(native)
    assert shapes(layout.from_native(native)) == shapes(state)


@pytest.mark.parametrize("case", ["mindcv_repvgg_tiny", "mindcv_convnext_tinydims"])
def test_outputs_are_those_that_mindcv_computed(case):
    manifest = json.loads((DATA / case / "manifest.json").read_text())
    rows = check_mindcv(DATA / case, manifest)
    assert len(rows) >= 9
    assert not [row for row in rows if not row[1] <= row[2]]


def test_there_and_back_nothing_changes_but_the_count_of_batches(tiny):
    layout, _, model, theirs = tiny
    before = model.state_dict()
    kept = {name: tensor.clone() for name, tensor in theirs.items()}
    again = layout.to_native(theirs, list(before))
    counts = {name for name in before if name.endswith("num_batches_tracked")}
    biases = {name for name in before if layout.family == "HRNet" and name not in layout.to_native(theirs, ())}
    folded = {name.replace(".0.bias", ".1.running_mean") for name in biases}
    assert again.keys() == before.keys()
    assert all(again[name].item() == 0 for name in counts)
    assert all(torch.equal(again[name], before[name]) for name in before.keys() - counts - biases - folded)
    assert same_state(theirs, kept)
    assert same_state(layout.from_native(again), theirs)


@pytest.fixture
def saved(tiny, tmp_path):
    """A file as MindSpore writes it of the network's weights."""
    path = tmp_path / "w.ckpt"
    path.write_bytes(checkpoint(tiny[3]))
    return path


def test_a_saved_network_is_built_as_mindcv_builds_it_and_computes_the_same(tiny, saved):
    layout, (name, fields), model, _ = tiny
    loaded = featx.create_model(name, checkpoint_path=saved, **without(fields, layout.settings)).eval()
    assert loaded.load_report.layout == "mindcv"
    with torch.no_grad():
        # HRNet's biases go into the means of norms, which rounds
        assert relative_difference(loaded(images()), model(images())) < 1e-6


@pytest.mark.parametrize("out_indices", [None, [0], [2, 1]])
def test_a_saved_network_fills_an_extractor(tiny, saved, out_indices):
    layout, (name, fields), model, _ = tiny
    extractor = featx.create_model(
        name,
        features_only=True,
        out_indices=out_indices,
        checkpoint_path=saved,
        **without(fields, layout.settings),
    ).eval()
    expected = featx.FeatureExtractWrapper(model, out_indices)
    with torch.no_grad():
        for ours, theirs in zip(extractor(images()), expected(images()), strict=True):
            assert relative_difference(ours, theirs) < 1e-6


def without(fields, settings):
    return {name: value for name, value in fields.items() if name not in settings}


def test_an_extractors_weights_go_there_and_back(tiny):
    layout, (name, fields), model, _ = tiny
    extractor = featx.FeatureExtractWrapper(model, [0, 1])
    again = featx.create_model(name, features_only=True, out_indices=[0, 1], **fields).eval()
    load_weights(again, layout.from_native(extractor.state_dict()))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(again(images()), extractor(images()), strict=True))


def test_a_classifier_of_another_size_is_left_fresh(tiny, saved):
    layout, (name, fields), model, _ = tiny
    three = featx.create_model(name, checkpoint_path=saved, **without({**fields, "num_classes": 3}, layout.settings))
    assert set(three.load_report.fresh) == {f"{three.last_linear}.{part}" for part in ("weight", "bias")}
    first = next(iter(three.state_dict()))
    assert torch.equal(three.state_dict()[first], model.state_dict()[first])


def test_the_flattened_spelling_is_recognized(tiny):
    layout, _, model, theirs = tiny
    flat = {
        tag.replace("features.", "features_", 1).replace("feature.", "feature_", 1)
        if tag.startswith("feature")
        else tag: tensor
        for tag, tensor in theirs.items()
    }
    assert recognize_layout(flat, family_names(model)) is layout
    assert same_state(
        layout.to_native(flat, list(model.state_dict())), layout.to_native(theirs, list(model.state_dict()))
    )


def test_what_training_saves_beside_the_network_is_left_out(tiny):
    _, (name, fields), model, theirs = tiny
    averages = {f"ema.{tag}": tensor + 1 for tag, tensor in theirs.items()}
    momenta = {f"moments.{tag}": tensor + 1 for tag, tensor in theirs.items()}
    progress = {"epoch_num": torch.tensor(3), "learning_rate": torch.tensor(0.1), "global_step": torch.zeros(1)}
    loaded = featx.create_model(name, **fields)
    report = load_weights(loaded, {**theirs, **averages, **momenta, **progress})
    assert report.skipped.keys() == {*averages, *momenta, *progress}
    last = f"{model.last_linear}.weight"
    assert torch.equal(loaded.state_dict()[last], model.state_dict()[last])


def test_moving_averages_are_taken_where_they_are_asked_for(tiny):
    _, (name, fields), model, theirs = tiny
    averages = {f"ema.{tag}": tensor + 1 for tag, tensor in theirs.items()}
    loaded = featx.create_model(name, **fields)
    load_weights(loaded, {**theirs, **averages}, container="ema")
    last = f"{model.last_linear}.weight"
    assert torch.equal(loaded.state_dict()[last], model.state_dict()[last] + 1)


def test_our_own_names_are_not_recognized(tiny):
    layout, _, model, _ = tiny
    assert not layout.recognizes(model.state_dict())


def test_networks_of_one_class_are_distinguished():
    recognized = {
        name: [LAYOUTS.index(layout) for layout in LAYOUTS if layout.recognizes(of_names(name))] for name in NAMES
    }
    for name, layouts in recognized.items():
        by_family = [LAYOUTS[index].family for index in layouts]
        assert len(set(by_family)) == len(by_family), name


def modules_of(name, kind):
    ours, fields = OTHERS.get(name, (name, {}))
    with torch.device("meta"):
        model = featx.create_model(ours, **{**fields, **layout_of(name, ours).settings})
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize(("name", "eps"), [("efficientnet_b4", 1e-5), ("efficientnet_b5", 1e-3)])
def test_the_epsilon_of_wide_efficientnets_is_larger(name, eps):
    assert {module.eps for module in modules_of(name, nn.BatchNorm2d)} == {eps}


def test_settings_pad_as_tensorflow_what_mindcv_pads_so():
    assert len(modules_of("resnet18", SameMaxPool2d)) == 1
    assert len(modules_of("resnest50", SameMaxPool2d)) == 1
    assert [pool.stride for pool in modules_of("resnest50", SameAvgPool2d)] == [2, 2, 2]
    assert len(modules_of("convnext_tiny", SameConv2d)) == 4
    assert len(modules_of("efficientnet_b0", SameConv2d)) == 5
    strided = modules_of("mobilenet_v3_large_100", SameConv2d)
    assert [conv.groups > 1 for conv in strided] == [True] * 4
    for name in ("repvgg_a0", "mobilenet_v2_100", "rexnet_10", "hrnet_w32"):
        assert not modules_of(name, SameConv2d | SameMaxPool2d | SameAvgPool2d)


def test_settings_approximate_gelu_by_tanh():
    assert {act.approximate for act in modules_of("convnext_tiny", nn.GELU)} == {"tanh"}


def test_patches_that_are_partly_covered_count():
    model = featx.create_model("convnext_atto", features_only=True, patch=SameConv2d).eval()
    with torch.no_grad():
        assert [map_.shape[2:] for map_ in model(images(1, 3, 65, 96))] == [(17, 24), (9, 12), (5, 6), (3, 3)]


def test_a_layer_that_hrnet_has_no_bias_in_gets_one_of_zero():
    name, fields = "hrnet_w18_small", {"num_classes": 2}
    model = randomize(featx.create_model(name, **fields))
    (layout,) = (layout for layout in LAYOUTS if layout.family == "HRNet")
    native = layout.to_native(layout.from_native(model.state_dict()), list(model.state_dict()))
    biases = [tag for tag in native if tag.startswith(("downsamp", "final")) and tag.endswith(".0.bias")]
    assert len(biases) == 4
    assert not any(native[tag].any() for tag in biases)


def test_a_tensor_too_many_is_named(tiny):
    _, (name, fields), _, theirs = tiny
    with pytest.raises(CheckpointError, match="unexpected extra"):
        load_weights(featx.create_model(name, **fields), {**theirs, "extra": torch.zeros(2)})


def test_images_are_those_of_mindcvs_recipe(tmp_path):
    model = featx.create_model("efficientnet_b1")
    layout = layout_of("efficientnet_b1", "efficientnet_b1")
    path = tmp_path / "w.ckpt"
    path.write_bytes(checkpoint(layout.from_native(model.state_dict())))
    data = featx.create_model("efficientnet_b1", checkpoint_path=path).data_config
    assert (data.size, data.crop, data.mean) == ((240, 240), 0.875, (0.485, 0.456, 0.406))


def test_a_network_built_as_mindcv_builds_it_is_saved_and_built_again(tiny, saved, tmp_path):
    layout, (name, fields), _, _ = tiny
    loaded = featx.create_model(name, checkpoint_path=saved, **without(fields, layout.settings)).eval()
    featx.save(loaded, tmp_path / "folder")
    again = featx.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    assert same_state(again.state_dict(), loaded.state_dict())
    assert same_value(again.config, loaded.config)
