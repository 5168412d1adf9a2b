"""RepVGG's checkpoints under its authors' names."""

import pytest
import torch
from conftest import images, randomize, relative_difference, same_state, to_native
from torch import Tensor

import featx
from featx.models.repvgg import reparameterize
from featx.weights.layout import find_layout, recognize_layout

FIELDS = {"depths": (2, 1, 1, 1), "widths": (0.25, 0.25, 0.25, 0.25), "num_classes": 7}


def native(name: str, *, fused: bool = False) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomize(featx.create_model(name, **FIELDS))
    if fused:
        reparameterize(model)
    return model.state_dict()


def foreign(state: dict[str, Tensor]) -> dict[str, Tensor]:
    from_native = find_layout("repvgg", ["RepVGG"]).from_native
    assert from_native is not None
    return from_native(state)


def test_the_names_are_the_authors():
    theirs = {name: tuple(tensor.shape) for name, tensor in foreign(native("repvgg_d2se")).items()}
    expected = {
        "stage0.rbr_dense.conv.weight": (16, 3, 3, 3),
        "stage0.rbr_dense.bn.running_var": (16,),
        "stage0.rbr_1x1.conv.weight": (16, 3, 1, 1),
        "stage0.se.down.weight": (1, 16, 1, 1),
        "stage1.1.rbr_identity.weight": (16,),
        "stage1.1.rbr_identity.num_batches_tracked": (),
        "stage4.0.rbr_1x1.bn.bias": (128,),
        "stage4.0.se.up.bias": (128,),
        "linear.weight": (7, 128),
    }
    assert expected.items() <= theirs.items()
    assert not [name for name in theirs if not name.startswith(("stage", "linear."))]
    fused = foreign(native("repvgg_a0", fused=True))
    assert {"stage0.rbr_reparam.weight", "stage1.1.rbr_reparam.bias"} <= fused.keys()


@pytest.mark.parametrize("fused", [False, True], ids=["training", "deployment"])
@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_d2se"])
def test_there_and_back_again_nothing_has_changed(name, fused):
    ours = native(name, fused=fused)
    again = to_native(foreign(ours), ours.keys(), ["RepVGG"])
    assert same_state(again, ours)


@pytest.mark.parametrize("fused", [False, True], ids=["training", "deployment"])
def test_our_own_names_are_taken_for_ours(fused):
    assert recognize_layout(native("repvgg_a0", fused=fused), ["RepVGG"]) is None


@pytest.mark.parametrize("features_only", [False, True])
def test_a_file_under_the_authors_names_fills_the_model(features_only, tmp_path):
    torch.save(foreign(native("repvgg_d2se")), tmp_path / "w.pth")
    expected = featx.create_model("repvgg_d2se", **FIELDS).eval()
    expected.load_state_dict(native("repvgg_d2se"))
    model = featx.create_model(
        "repvgg_d2se", features_only=features_only, checkpoint_path=tmp_path / "w.pth", **FIELDS
    ).eval()
    x = images(1, 3, 64, 75)
    with torch.no_grad():
        ours = model(x)[-1] if features_only else model(x)
        reference = expected.forward_features(x) if features_only else expected(x)
    assert relative_difference(ours, reference) == 0
