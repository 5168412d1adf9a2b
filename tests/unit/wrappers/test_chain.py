"""Chain: maps of sequential models, and refusals of models that run their children in another way."""

from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from conftest import hooked_maps, images
from torch import nn

import featx
from featx import ContractError, FeatureExtractWrapper


def conv(in_chs: int, chs: int) -> nn.Conv2d:
    return nn.Conv2d(in_chs, chs, 3, 2, 1)


class Net(nn.Module):
    """Three strided convolutions that the function `run` calls."""

    names = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 4), conv(4, 4), conv(4, 8)
        if "act" in self.names:
            self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 2)
        chs = {"a": 4, "b": 4, "c": 8, "act": 8, "fc": 8}
        self.feature_info = [{"chs": chs[n], "reduction": 2 ** (i + 1), "name": n} for i, n in enumerate(self.names)]

    def run(self, x):
        return self.c(self.b(self.a(x)))

    def forward(self, x):
        return self.fc(self.run(x).mean((2, 3)))


def net(run, names=Net.names) -> nn.Module:
    return type("Net", (Net,), {"run": run, "names": names})()


def test_children_run_in_order_give_the_maps_of_the_model():
    model = Net()
    with torch.no_grad():
        ours = FeatureExtractWrapper(model)(images())
    assert all(torch.equal(a, b) for a, b in zip(ours, hooked_maps(model, images()), strict=True))


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (lambda self, x: self.c(self.b(self.b(self.a(x)))), "'b' twice"),
        (lambda self, x: self.c(self.a(x)), "calls 'c' where 'b' is registered"),
        (lambda self, x: self.c(F.relu(self.b(self.a(x)))), "input of 'c' from something else"),
        (lambda self, x: self.c(self.b(self.a(x)) + 1), "input of 'c' from something else"),
        (lambda self, x: self.c(self.b(self.a(2 * x))), "changes the images before 'a'"),
        (lambda self, x: torch.cat([self.a(x)] * 2, 1), "never calls 'b'"),
        (lambda self, x: self.c(self.b(input=self.a(x))), "calls 'b' with 0 positional and 1 keyword"),
    ],
    ids=["twice", "skipped", "function-between", "sum-between", "changed-images", "never", "keyword"],
)
def test_other_forwards_are_refused_and_the_module_is_named(run, problem):
    with pytest.raises(ContractError, match=problem):
        FeatureExtractWrapper(net(run))


def test_children_registered_out_of_order_are_refused():
    model = Net()
    model.feature_info = [{"chs": 3, "reduction": 1, "name": "z"}, *model.feature_info[1:]]
    model.z = nn.Identity()
    model.run = lambda x: Net.run(model, model.z(x))
    with pytest.raises(ContractError, match="registered in the order"):
        FeatureExtractWrapper(model)


def test_several_inputs_are_refused():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    model = net(lambda self, x: self.c(self.both(self.b(self.a(x)), 1)))
    model.both = Two()
    model.c = model._modules.pop("c")  # registered after `both`, as it runs
    with pytest.raises(ContractError, match="calls 'both' with 2 positional"):
        FeatureExtractWrapper(model)


@pytest.mark.parametrize("name", ["d", "a.weight", "a.0", ""])
def test_a_level_that_is_not_a_module_is_refused(name):
    model = Net()
    model.feature_info[2]["name"] = name
    with pytest.raises(ContractError, match=r"which no module|a module path"):
        FeatureExtractWrapper(model)


def test_a_level_inside_another_level_is_refused():
    model = Net()
    model.a = nn.Sequential(model.a, nn.ReLU())
    model.feature_info.insert(0, {"chs": 4, "reduction": 2, "name": "a.0"})
    with pytest.raises(ContractError, match=r"names \['a'\].*lies inside another level"):
        FeatureExtractWrapper(model)


def test_modules_after_the_deepest_level_may_run_in_any_way():
    model = net(lambda self, x: self.c(self.b(self.a(x))) * self.a(x).mean())
    assert len(FeatureExtractWrapper(model)(images())) == 3


def test_a_map_that_a_later_module_overwrites_is_copied_before():
    model = net(lambda self, x: self.act(self.c(self.b(self.a(x)))), names=("a", "b", "c", "act"))
    model.feature_info[3]["reduction"] = 8
    with torch.no_grad():
        ours = FeatureExtractWrapper(model)(images())
    expected = hooked_maps(model, images())
    assert (expected[2] < 0).any()
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_a_level_that_is_not_a_map_is_refused_and_the_module_is_named():
    model = net(lambda self, x: self.fc(self.c(self.b(self.a(x)))), names=("a", "b", "c", "fc"))
    model.fc = nn.Flatten()
    with pytest.raises(ContractError, match=r"'fc' returned a tensor of shape \(2, 768\), not a map"):
        FeatureExtractWrapper(model)(images())


def test_the_order_is_proven_in_training_and_in_eval_mode():
    model = net(lambda self, x: self.c(self.b(self.a(x + 1 if self.training else x))))
    with pytest.raises(ContractError, match="changes the images before 'a'"):
        FeatureExtractWrapper(model.eval())


def test_a_forward_that_a_copy_shares_with_the_original_is_refused():
    model = Net()
    model.forward = lambda x: model.c(model.b(model.a(x)))
    with pytest.raises(ContractError, match=r"never calls 'a'.* define it in the class"):
        FeatureExtractWrapper(model)


def test_a_model_that_needs_values_to_run_is_refused():
    model = net(lambda self, x: self.c(self.b(self.a(x))) if x.mean().item() > 0 else x)
    with pytest.raises(ContractError, match="does not run on meta tensors"):
        FeatureExtractWrapper(model)


def test_the_proof_changes_no_norm_statistics_and_calls_no_hooks():
    model = net(lambda self, x: self.c(self.b(self.a(x))))
    model.b = nn.Sequential(model.b, nn.BatchNorm2d(4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    FeatureExtractWrapper(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_backbone_subclass_with_its_own_forward_is_proven_too():
    class Skipping(featx.Backbone):
        last_linear = "c"

        def __init__(self) -> None:
            super().__init__()
            self.in_chans = 3
            self.a, self.b, self.c = conv(3, 4), conv(4, 4), conv(4, 4)
            self.feature_info = featx.Levels([featx.FeatureInfo(4, 2, "a"), featx.FeatureInfo(4, 4, "b")])

        def forward_features(self, x):
            return self.b(F.relu(self.a(x)))

    with pytest.raises(ContractError, match="input of 'b' from something else"):
        FeatureExtractWrapper(Skipping())


def test_verify_finds_wrong_feature_info():
    model = Net()
    model.feature_info[0]["chs"], model.feature_info[2]["reduction"] = 5, 16
    with pytest.raises(ContractError) as refused:
        featx.verify(model)
    assert "a at (224, 224): shape (2, 4, 112, 112), but feature_info says 5 channels" in str(refused.value)
    assert "c at (224, 224): 28 cells for 224 pixels at 1/16" in str(refused.value)


def test_verify_accepts_an_extractor():
    assert featx.verify(FeatureExtractWrapper(Net(), [1]), sizes=[(64, 64)]).sizes == {(64, 64): ((16, 16),)}


def test_a_child_may_have_any_name():
    for name in ("inner", "levels", "steps", "output", "source", "chain"):
        model = Net()
        model.add_module(name, model._modules.pop("b"))
        model.add_module("c", model._modules.pop("c"))
        model.fc = model._modules.pop("fc")
        model.run = MethodType(lambda self, x, n=name: self.c(self.get_submodule(n)(self.a(x))), model)
        model.feature_info[1]["name"] = name
        with torch.no_grad():
            maps = FeatureExtractWrapper(model)(images())
        assert all(torch.equal(a, b) for a, b in zip(maps, hooked_maps(model, images()), strict=True))
