"""ResNets cut as Lightly does: torchvision's is the reference."""

import pytest
import torch
import torchvision
from conftest import images, randomize, relative_difference, same_state
from torch import nn

import featx
from featx import CheckpointError
from featx.weights.layout import all_layouts, find_layout

TOLERANCE = 1e-5  # single precision, the same operations in another order
LAYOUT = find_layout("lightly", ["ResNet"])


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_the_last_map_is_that_of_the_children_of_torchvisions_resnet(prefix):
    backbone = nn.Sequential(*list(randomize(torchvision.models.resnet18(weights=None)).children())[:-1]).eval()
    theirs = {f"{prefix}{name}": tensor for name, tensor in backbone.state_dict().items()}
    if prefix:
        theirs["projection_head.layers.0.weight"] = torch.zeros(3, 3)
    assert {f"{prefix}0.weight", f"{prefix}7.1.bn2.running_var"} <= theirs.keys()
    model = featx.create_model("resnet18", num_classes=0, checkpoint_path=theirs).eval()
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        assert relative_difference(model(x), backbone(x).flatten(1)) <= TOLERANCE


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_there_and_back_changes_nothing(name):
    native = featx.create_model(name, num_classes=7).state_dict()
    assert LAYOUT.from_native is not None
    theirs = LAYOUT.from_native(native)
    assert "9.weight" in theirs
    assert same_state(LAYOUT.to_native(theirs, native.keys()), native)
    assert [other.system for other in all_layouts() if other.recognizes(theirs)] == ["lightly"]


def test_what_torchvision_lacks_is_refused():
    with torch.device("meta"):
        native = featx.create_model("resnet18d").state_dict()
    assert LAYOUT.from_native is not None
    with pytest.raises(CheckpointError, match=r"no ResNet of that kind: it would not know '0.0.weight'"):
        LAYOUT.from_native(native)
