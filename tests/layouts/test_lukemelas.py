"""EfficientNet of efficientnet-pytorch and MobileNetV2 of tonylins: timm is the reference, with the names restated."""

import pytest
import timm
import torch
from conftest import images, randomize, relative_difference, same_state
from torch import Tensor

import featx
from featx import CheckpointError
from featx.weights.layout import all_layouts, find_layout

State = dict[str, Tensor]
TOLERANCE = 1e-5  # single precision, the same operations in another order
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# native names of the convolutions and norms of a block in the order in which they run, and lukemelas' names
INVERTED = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "se.conv_reduce": "_se_reduce",
    "se.conv_expand": "_se_expand",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}
SEPARABLE = {
    "conv_dw": "_depthwise_conv",
    "bn1": "_bn1",
    "conv_pw": "_project_conv",
    "bn2": "_bn2",
    "se.conv_reduce": "_se_reduce",
    "se.conv_expand": "_se_expand",
}
ENDS = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}


def lukemelas(state: State) -> State:
    """timm's names as those of efficientnet-pytorch, block after block."""
    blocks = list(dict.fromkeys(tuple(name.split(".")[1:3]) for name in state if name.startswith("blocks.")))
    new: State = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if not name.startswith("blocks."):
            new[f"{ENDS[module]}.{leaf}"] = tensor
            continue
        _, stage, number, inside = module.split(".", 3)
        table = SEPARABLE if stage == "0" else INVERTED
        new[f"_blocks.{blocks.index((stage, number))}.{table[inside]}.{leaf}"] = tensor
    return new


@pytest.fixture(scope="module", params=["tf_efficientnet_b0", "tf_efficientnet_lite0"])
def reference(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomize(timm.create_model(request.param, num_classes=7))
    model.name = request.param
    return model


@pytest.mark.parametrize("padded", [True, False], ids=["tf_", ""])
def test_logits_are_those_of_timm_with_either_variant(reference, padded):
    name = reference.name if padded else reference.name.removeprefix("tf_")
    model = featx.create_model(name, num_classes=7, checkpoint_path=lukemelas(reference.state_dict())).eval()
    assert model.load_report.layout == "lukemelas"
    x = images(2, 3, 64, 95)
    with torch.no_grad():
        assert relative_difference(model(x), reference(x)) <= TOLERANCE


def test_there_and_back_changes_nothing(reference):
    native = reference.state_dict()
    layout = find_layout("lukemelas", ["EfficientNet"])
    assert layout.from_native is not None
    theirs = layout.from_native(native)
    assert same_state(theirs, lukemelas(native))
    assert same_state(layout.to_native(theirs, native.keys()), native)
    assert [other.system for other in all_layouts() if other.recognizes(theirs)] == ["lukemelas"]


def test_lite_variants_expect_other_images(reference):
    model = featx.create_model(reference.name, num_classes=7, checkpoint_path=lukemelas(reference.state_dict()))
    assert model.data_config.mean[0] == (0.5 if "lite" in reference.name else 0.485)


@pytest.mark.sweep
@pytest.mark.parametrize("name", [*(f"b{k}" for k in range(9)), *(f"lite{k}" for k in range(5))])
def test_every_size_fits(name):
    with torch.device("meta"):
        native = featx.create_model(f"tf_efficientnet_{name}").state_dict()
    theirs = lukemelas(native)
    again = find_layout("lukemelas", ["EfficientNet"], theirs).to_native(theirs, native.keys())
    assert {key: tensor.shape for key, tensor in again.items()} == {key: t.shape for key, t in native.items()}


def test_what_efficientnet_pytorch_has_no_place_for_is_refused():
    with torch.device("meta"):
        native = featx.create_model("efficientnetv2_s").state_dict()
    from_native = find_layout("lukemelas", ["EfficientNet"]).from_native
    assert from_native is not None
    with pytest.raises(CheckpointError, match=r"no place for these tensors: 'blocks.0.0.conv.weight'"):
        from_native(native)


def tonylins(state: State, *, older: bool) -> State:
    """timm's names of a MobileNetV2 in the order in which its layers run, numbered."""
    convs = [name.removesuffix(".weight") for name in state if state[name].ndim == 4]
    norms = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
    blocks = list(dict.fromkeys(".".join(name.split(".")[:3]) for name in convs if name.startswith("blocks.")))
    head = f"features.{len(blocks) + 1}" if older else "conv"
    table = {"conv_stem": "features.0.0", "bn1": "features.0.1", "conv_head": f"{head}.0", "bn2": f"{head}.1"}
    for number, block in enumerate(blocks, start=1):
        inside = zip(
            [name for name in convs if name.startswith(f"{block}.")],
            [name for name in norms if name.startswith(f"{block}.")],
            strict=True,
        )
        for index, (conv, norm) in enumerate(inside):
            table |= {conv: f"features.{number}.conv.{3 * index}", norm: f"features.{number}.conv.{3 * index + 1}"}
    table["classifier"] = "classifier.1" if older else "classifier"
    return {f"{table[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("older", [False, True])
def test_logits_of_tonylins_names_are_those_of_timm(older):
    reference = randomize(timm.create_model("mobilenetv2_035", num_classes=7))
    theirs = tonylins(reference.state_dict(), older=older)
    last = "features.18.0.weight" if older else "conv.0.weight"
    assert {"features.1.conv.3.weight", "features.2.conv.7.running_var", last} <= theirs.keys()
    assert [other.system for other in all_layouts() if other.recognizes(theirs)] == ["tonylins"]
    model = featx.create_model("mobilenetv2_035", num_classes=7, checkpoint_path=theirs).eval()
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        assert relative_difference(model(x), reference(x)) <= TOLERANCE


def test_tonylins_names_are_written():
    native = randomize(featx.create_model("mobilenetv2_035")).state_dict()
    from_native = find_layout("tonylins", ["EfficientNet"]).from_native
    assert from_native is not None
    assert same_state(from_native(native), tonylins(native, older=False))


def test_what_tonylins_has_no_place_for_is_refused():
    with torch.device("meta"):
        native = featx.create_model("efficientnet_b0").state_dict()
    from_native = find_layout("tonylins", ["EfficientNet"]).from_native
    assert from_native is not None
    with pytest.raises(CheckpointError, match=r"tonylins' MobileNetV2 has no place for .*se.conv_reduce"):
        from_native(native)
