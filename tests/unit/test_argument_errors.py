"""A wrong value of any argument raises an error of featx in a few lines."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import featx
from featx.describe import describe
from featx.training import freeze, freeze_norms, param_groups, recompute

NAME = "mobilenetv3_small_050"
MOST_LINES = 12

VALUES = {
    "none": None,
    "zero": 0,
    "negative": -7,
    "large": 10**9,
    "float": 2.5,
    "nan": float("nan"),
    "bool": True,
    "empty": "",
    "misspelt": "blocks.1.nothing",
    "bytes": b"bytes",
    "nowhere": Path("nothing/here"),
    "folder": Path(__file__).parent,
    "nul": "a\0b",
    "long": "x" * 5000,
    "empty list": [],
    "numbers": [1, -99],
    "nans": [float("nan")],
    "nones": [None],
    "pair": (0, -3),
    "texts": ["", "nothing"],
    "dictionary": {1: 2},
    "object": object(),
    "tensor": torch.zeros(2),
    "module": nn.ReLU(),
}

TINY = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3, 2), act=nn.ReLU()))


@pytest.fixture(scope="module")
def backbone():
    with torch.device("meta"):
        return featx.create_model(NAME)


def on_meta(call):
    def function(model, value):
        with torch.device("meta"):
            call(model, value)

    return function


def made(argument):
    return on_meta(lambda _, value: featx.create_model(NAME, features_only=True, **{argument: value}))


CREATED = ("out_indices", "out_names", "output", "output_stride", "in_chans", "num_classes", "global_pool", "drop_rate")
CREATED += ("checkpoint_path", "layout", "container", "device", "dtype")
CALLS = {
    "create_model": lambda _, value: featx.create_model(value),
    "create_model of timm": lambda _, value: featx.create_model(f"timm/{value}"),
    "create_model of a folder": lambda _, value: featx.create_model(f"local-dir:{value}"),
    **{f"create_model {argument}": made(argument) for argument in CREATED},
    "timm image_size": lambda _, value: featx.create_model("timm/test_vit", image_size=value),
    "timm in_chans": on_meta(lambda _, value: featx.create_model("timm/test_resnet", in_chans=value)),
    "list_models": lambda _, value: featx.list_models(value),
    "extractor": lambda _, value: featx.FeatureExtractWrapper(value),
    "tap model": lambda _, value: featx.tap(value, ["conv"]),
    "tap names": lambda _, value: featx.tap(TINY, value),
    "tap one name": lambda _, value: featx.tap(TINY, [value]),
    "tap key": lambda _, value: featx.tap(TINY, [featx.Tap("conv", key=value)]),
    "tap layout": lambda _, value: featx.tap(TINY, [featx.Tap("conv", layout=value)]),
    "tap prefix": lambda _, value: featx.tap(TINY, [featx.Tap("conv", prefix=value)]),
    "tap example": lambda _, value: featx.tap(TINY, ["conv"], value),
    "tap argument": lambda _, value: featx.tap(TINY, ["conv"], argument=value),
    "tap output": lambda _, value: featx.tap(TINY, ["conv"], output=value),
    "discover model": lambda _, value: featx.discover(value),
    "discover input_size": lambda _, value: featx.discover(TINY, value),
    "discover example": lambda _, value: featx.discover(TINY, example=value),
    "discover argument": lambda _, value: featx.discover(TINY, argument=value),
    "discover within": lambda _, value: featx.discover(TINY, within=value),
    "verify model": lambda _, value: featx.verify(value),
    "verify sizes": featx.verify,
    "verify one size": lambda model, value: featx.verify(model, [value]),
    "describe size": describe,
    "freeze model": lambda _, value: freeze(value),
    "freeze upto": freeze,
    "freeze_norms": lambda _, value: freeze_norms(value),
    "recompute": recompute,
    "load_weights": featx.load_weights,
    "load_weights skip": lambda model, value: featx.load_weights(model, model.state_dict(), skip=value),
    "load_weights layout": lambda model, value: featx.load_weights(model, model.state_dict(), layout=value),
    "load_weights container": lambda model, value: featx.load_weights(model, model.state_dict(), container=value),
    "transform": lambda model, value: featx.transform(model, size=value),
    "transform model": lambda _, value: featx.transform(value),
    "param_groups": param_groups,
}


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of tensors without values that are filled
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_value_of_an_argument_is_an_error_of_featx(backbone, call, value):
    message = "taken"
    try:
        CALLS[call](backbone, VALUES[value])
    except featx.FeatxError as error:
        message = str(error)
    assert 0 < len(message.splitlines()) <= MOST_LINES


def test_each_argument_is_called_by_its_own_name(backbone):
    with pytest.raises(featx.OutIndicesError, match=r"^upto='block.3' \(did you mean 'blocks.3'\?\): expected"):
        freeze(backbone, "block.3")
    with pytest.raises(featx.ArgumentError, match=r"^input_size=\(0, -3\): expected \(height, width\) in pixels"):
        featx.discover(backbone, (0, -3))
    with pytest.raises(featx.ArgumentError, match=r"^each of sizes=.*expected .height, width."):
        featx.verify(backbone, [(2, 2, 2)])
    with pytest.raises(featx.ArgumentError, match=r"^num_classes='many': expected an int of at least 0"):
        featx.create_model(NAME, num_classes="many")
    with pytest.raises(featx.ArgumentError, match=r"^device='gpu': expected a device that PyTorch finds here"):
        featx.create_model(NAME, device="gpu")


@pytest.mark.parametrize("other", ["hrnet_w18_small", "vit_tiny_patch16_224", "resnet50"])
def test_a_checkpoint_of_another_model_is_refused_in_a_few_lines(backbone, other):
    with torch.device("meta"):
        state = featx.create_model(other).state_dict()
    with pytest.raises(featx.CheckpointError, match="tensors differ and none was loaded") as refused:
        featx.load_weights(backbone, state)
    lines = str(refused.value).splitlines()
    assert len(lines) <= MOST_LINES
    assert {line.split()[0] for line in lines[1:]} >= {"missing", "unexpected"}
    assert sum("more" in line for line in lines) >= 2


class Listed(nn.Module):
    """One that returns a list, one whose result no image reaches, one without a call, one called with no tensor."""

    def __init__(self):
        super().__init__()
        self.conv, self.constant, self.idle, self.table = nn.Conv2d(3, 4, 1), nn.Linear(5, 4), nn.Identity(), Table()

    def forward(self, x):
        return self.conv(x) + self.constant(x.new_ones(5))[:, None, None] + self.table().mean()


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.ones(1, 4, 8, 8))

    def forward(self):
        return self.values


@pytest.mark.parametrize("name", ["constant", "idle", "table"])
def test_a_tap_that_gives_no_map_is_answered_with_where_maps_are_listed(name):
    model = Listed()
    with pytest.raises(featx.ContractError, match=rf"module '{name}' .*: tap one that featx.discover\(model\) lists"):
        featx.tap(model, [name])
    assert len(featx.tap(model, featx.discover(model))(torch.zeros(1, 3, 8, 8))) == 1


def test_a_part_that_is_called_without_a_tensor_stays():
    model = Listed()
    taken = featx.tap(model, ["conv"])
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(taken(x)[0], model.conv(x))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["conv", "conv"], r"^\['conv'\] tapped twice"),
        ([featx.Tap("conv", key=0)], "returned a tensor .*: leave key=0 out"),
    ],
)
def test_what_is_wrong_with_a_tap_is_said_in_its_words(names, words):
    with pytest.raises(featx.FeatxError, match=words):
        featx.tap(Listed(), names)
