"""The error of a checkpoint that does not fit: the likely cause first, a few examples, all details in attributes."""

import pickle

import pytest
import torch
from torch import Tensor

import featx
from featx import CheckpointError
from featx.errors import CheckpointMismatchError

NAME = "resnet18"
MOST_LINES = 12


def tensors(name: str, **fields) -> dict[str, Tensor]:
    with torch.device("meta"):
        state = featx.create_model(name, **fields).state_dict()
    return {key: torch.zeros(tensor.shape, dtype=tensor.dtype) for key, tensor in state.items()}


def mismatch(state: dict[str, Tensor], name: str = NAME, **arguments) -> CheckpointMismatchError:
    with pytest.raises(CheckpointMismatchError) as refused:
        featx.create_model(name, checkpoint_path=state, **arguments)
    assert len(str(refused.value).splitlines()) <= MOST_LINES
    return refused.value


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ("resnet18", "resnet50"),
        ("resnet18", "vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224", "vit_small_patch16_224"),
        ("mobilenetv3_small_100", "mobilenetv3_small_050"),
        ("hrnet_w18_small", "efficientnet_lite0"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "net."])
def test_a_file_of_another_model_is_named_and_that_model_loads_it(asked, stored, prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in tensors(stored).items()}
    cause = str(mismatch(state, asked)).splitlines()[1]
    assert cause.startswith("  the checkpoint fits ")
    named = cause.removeprefix("  the checkpoint fits ").removesuffix(": create that model").split(", ")
    assert stored in named or named[-1] == "…"
    featx.create_model(named[0], checkpoint_path=state)


def test_a_file_of_another_variant_without_classifier_or_counters_is_named():
    state = {
        name: tensor
        for name, tensor in tensors("resnet50").items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    assert "the checkpoint fits resnet50: create that model" in str(mismatch(state))


def test_a_classifier_alone_is_the_cause_and_the_advice_works():
    state = tensors(NAME, num_classes=7)
    assert "the checkpoint has 7 classes, pass num_classes=7" in str(mismatch(state))
    featx.create_model(NAME, checkpoint_path=state, num_classes=7)
    del state["fc.weight"], state["fc.bias"]
    assert "pass features_only=True or num_classes=0 to create_model, or skip=('fc.',) to load_weights" in str(
        mismatch(state)
    )
    featx.create_model(NAME, checkpoint_path=state, features_only=True)
    featx.create_model(NAME, checkpoint_path=state, num_classes=0)
    featx.load_weights(featx.create_model(NAME), state, skip=("fc.",))


@pytest.mark.parametrize(
    ("renamed", "cause"),
    [
        (lambda name: name.replace(".", "/").replace("weight", "kernel"), "the names are those of Flax, TensorFlow or"),
        (
            lambda name: name.replace("running_mean", "moving_mean").replace("conv", "c"),
            "TensorFlow, Keras or MindSpore",
        ),
        (lambda name: f"{name.partition('.')[0]}_x.{name}", "no name is one of the model's; they begin with ['"),
    ],
)
def test_names_of_other_programs_have_their_causes(renamed, cause):
    error = mismatch({renamed(name): tensor for name, tensor in tensors(NAME).items()})
    assert cause in str(error)


def test_a_layout_of_another_family_is_named():
    torchvision = pytest.importorskip("torchvision")
    state = torchvision.models.mobilenet_v3_small(weights=None).state_dict()
    assert "looks like MobileNetV3 in the layout torchvision: create a model of that family" in str(mismatch(state))


def test_all_differences_are_attributes_and_survive_pickling():
    state = tensors("resnet50")
    error = mismatch(state)
    model = featx.create_model(NAME)
    kinds = {kind for kind, _ in error.differences.values()}
    assert kinds == {"unexpected", "misshaped"}
    expected = {name for name, tensor in state.items() if name not in model.state_dict()}
    assert {name for name, (kind, _) in error.differences.items() if kind == "unexpected"} == expected
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, CheckpointError)
    assert (str(again), again.differences) == (str(error), error.differences)


def test_six_kinds_of_differences_still_fit_into_the_message():
    state = tensors(NAME)
    state["conv1.weight"] = torch.zeros(1)
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].to(torch.int8)
    state["layer1.0.conv2.weight"] = state["layer1.0.conv2.weight"] * torch.nan
    for i in range(1, 5):
        state |= {f"extra{i}": torch.zeros(2), f"extra{i}.bias": torch.zeros(2)}
        del state[f"layer{i}.0.bn1.bias"], state[f"layer{i}.1.bn1.bias"], state[f"layer{i}.1.bn2.bias"]
    error = mismatch(state)
    assert {kind for kind, _ in error.differences.values()} == {
        "missing",
        "unexpected",
        "misshaped",
        "mistyped",
        "not finite",
    }


def test_counters_are_only_added_to_norms_that_the_checkpoint_has():
    state = {name: t for name, t in tensors(NAME).items() if not name.startswith("bn1.")}
    assert "bn1.num_batches_tracked" in mismatch(state).differences
