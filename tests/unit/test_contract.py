"""What `verify` finds beyond shapes: modes, values, and refused image sizes."""

import pytest
import torch
from torch import Tensor, nn

import featx
from featx import ContractError, FeatureExtractWrapper, InputError


class Net(nn.Module):
    """Two convolutions of stride 2, the second with whatever a test puts after it."""

    def __init__(self, after: nn.Module) -> None:
        super().__init__()
        self.feature_info = [{"chs": 4, "reduction": 2, "name": "a"}, {"chs": 8, "reduction": 4, "name": "b"}]
        self.a = nn.Conv2d(3, 4, 3, 2, 1)
        self.b = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), after)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Smaller(nn.Module):
    """Halves maps in training."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2, ::2] if self.training else x


class Even(nn.Module):
    """Takes maps of even sides."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            raise InputError("odd sides")
        return x


def test_values_that_differ_from_run_to_run_are_found():
    model = Net(Noise())
    featx.verify(model)
    with pytest.raises(ContractError, match="b: a second forward of the same images returns another map"):
        featx.verify(model, [(64, 96)], values=True)
    with pytest.raises(ContractError, match="b: a second forward of the same images returns another map"):
        featx.verify(FeatureExtractWrapper(model, [1]), [(64, 96)], values=True)


def test_dropout_is_no_lack_of_determinism():
    model = Net(nn.Dropout(0.5)).train()
    assert featx.verify(model, [(64, 96)], values=True).refused == {}
    assert all(module.training for module in model.modules())


def test_maps_that_depend_on_the_mode_are_found_and_modes_are_kept():
    model = Net(Smaller()).eval()
    model.a.train()
    with pytest.raises(ContractError, match=r"others with train\(True\)"):
        featx.verify(model)
    assert [module.training for module in (model, model.a, model.b)] == [False, True, False]


def test_sizes_that_are_refused_are_distinguished_from_those_proven():
    proof = featx.verify(Net(Even()), [(64, 64), (64, 68), (64, 72)])
    assert list(proof.sizes) == [(64, 64), (64, 72)]
    assert proof.refused == {(64, 68): "odd sides"}
    with pytest.raises(ContractError, match="no images of any of the sizes"):
        featx.verify(Net(Even()), [(64, 68)])


@pytest.mark.parametrize("name", ["resnet18", "timm/test_resnet", "torchvision/shufflenet_v2_x0_5"])
def test_values_of_native_and_bridged_models_are_proven(name):
    featx.verify(featx.create_model(name), [(64, 96)], values=True)


def test_reprs_of_results_are_one_line():
    model = featx.create_model("resnet18", features_only=True)
    assert repr(featx.verify(model)) == "Verification(5 levels at 5 image sizes)"
    state = featx.create_model("resnet18").state_dict()
    report = featx.create_model("resnet18", num_classes=7, checkpoint_path=state).load_report
    assert repr(report) == "LoadReport('the checkpoint', layout='native': 120 loaded, 2 skipped, 2 fresh)"
