"""Non-finite weights are detected in the dtype of the model, not in the file's."""

import pytest
import torch
from conftest import randomize
from safetensors.torch import save_file
from torch import nn

import featx
from featx import CheckpointError

NAME = "mobilenetv3_small_050"
WEIGHT = "conv_stem.weight"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CASES = [
    (torch.float32, torch.float16, 1e6),
    (torch.float32, torch.float16, -65520.0),  # rounds to infinity, where 65519 does not
    (torch.float32, torch.bfloat16, 3.4e38),
    (torch.bfloat16, torch.float16, 1e6),
    (torch.float64, torch.float16, 1e200),
    (torch.float64, torch.bfloat16, 1e200),
    (torch.float64, torch.float32, -1e200),
]


def with_value(value: float, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A checkpoint of that type, with the value somewhere in it."""
    state = randomize(featx.create_model(NAME)).state_dict()
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    state[WEIGHT].view(-1)[5] = value
    return state


def created(state, dtype):
    return featx.create_model(NAME, checkpoint_path=state, dtype=dtype)


def extractor(state, dtype):
    return featx.create_model(NAME, features_only=True, checkpoint_path=state, dtype=dtype)


def filled(state, dtype):
    model = featx.create_model(NAME, dtype=dtype)
    featx.load_weights(model, state)
    return model


def bridged(state, dtype):
    return featx.create_model(f"timm/{NAME}", checkpoint_path=state, dtype=dtype)


def segmenter(state, dtype):
    own = featx.create_segmenter("linear", NAME, num_classes=2).state_dict()
    own |= {f"backbone.{name}": tensor for name, tensor in state.items() if f"backbone.{name}" in own}
    return featx.create_segmenter("linear", NAME, num_classes=2, checkpoint_path=own, dtype=dtype)


ENTRIES = [created, extractor, filled, bridged, segmenter]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(("stored", "held", "value"), CASES, ids=str)
def test_values_that_are_infinite_in_the_models_type_are_refused_by_name(entry, stored, held, value):
    with pytest.raises(
        CheckpointError, match=rf"not finite (backbone\.)?{WEIGHT}: it holds values that overflow {held}"
    ):
        entry(with_value(value, stored), held)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("held", FLOATS, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_infinite_everywhere_are_refused_as_such(entry, held, value):
    with pytest.raises(CheckpointError, match=rf"not finite .*{WEIGHT}: it holds infinite values or NaN"):
        entry(with_value(value, torch.float32), held)


@pytest.mark.parametrize("entry", [created, filled])
@pytest.mark.parametrize(
    ("stored", "held", "value"),
    [
        (torch.float32, torch.float16, 65519.0),
        (torch.float64, torch.float32, 3e38),
        (torch.float32, torch.float64, 3e38),
        (torch.float16, torch.bfloat16, 65504.0),
        (torch.bfloat16, torch.float32, 1e30),
    ],
    ids=str,
)
def test_the_largest_values_of_the_models_type_are_taken(entry, stored, held, value):
    weight = entry(with_value(value, stored), held).state_dict()[WEIGHT]
    assert weight.dtype == held
    assert weight.view(-1)[5].item() == pytest.approx(value, rel=0.01)


def test_files_are_judged_as_dictionaries_are(tmp_path):
    save_file(with_value(1e200, torch.float64), tmp_path / "w.safetensors")
    for mmap in (False, True):
        with pytest.raises(CheckpointError, match=r"values that overflow torch\.float32"):
            featx.create_model(NAME, checkpoint_path=tmp_path / "w.safetensors", mmap=mmap)


def test_infinite_values_are_taken_if_asked_for():
    model = featx.create_model(NAME, dtype=torch.float16)
    featx.load_weights(model, with_value(1e6, torch.float32), finite=False)
    assert model.get_parameter(WEIGHT).view(-1)[5] == float("inf")


def test_values_that_adapting_made_too_large_are_refused():
    state = with_value(1.0, torch.float32)
    state[WEIGHT] += 30_000
    with pytest.raises(CheckpointError, match=f"{WEIGHT}: it holds values that overflow torch.float16"):
        featx.create_model(NAME, in_chans=1, checkpoint_path=state, dtype=torch.float16)


def test_a_users_model_with_weights_beyond_the_type_asked_for_is_refused(own_registry):
    class Large(nn.Module):
        feature_info = ({"chs": 2, "reduction": 1, "name": "conv"},)

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)
            self.register_buffer("mask", torch.tensor([-float("inf")]))
            nn.init.constant_(self.conv.weight, 1e6)

        def forward(self, x):
            return self.conv(x)

    @featx.register_model
    def large(pretrained=False, **kwargs):
        return Large()

    assert featx.create_model("large", dtype=torch.bfloat16).conv.weight.dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match=r"Large has values that overflow torch.float16, in 'conv.weight'"):
        featx.create_model("large", dtype=torch.float16)
