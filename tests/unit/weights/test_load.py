"""How models are filled: without random initialization, without copies, on the requested device and dtype."""

import pytest
import torch
from conftest import SMALL_VARIANTS, images, randomize
from safetensors.torch import load_file, save_file

import featx

NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(randomize(featx.create_model(NAME)).state_dict(), path)
    return path


@pytest.mark.parametrize("name", SMALL_VARIANTS)
def test_a_filled_model_has_every_tensor_and_computes(name):
    state = randomize(featx.create_model(name)).state_dict()
    model = featx.create_model(name, checkpoint_path=state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training
    model(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_nothing_random_is_drawn_for_values_that_a_file_has(file):
    before = torch.random.get_rng_state()
    featx.create_model(NAME, checkpoint_path=file)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_callers_tensors_stay_the_callers():
    state = randomize(featx.create_model(NAME)).state_dict()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    model = featx.create_model(NAME, checkpoint_path=state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(state[name], kept[name]) for name in state)


def test_training_does_not_change_the_file(file):
    before = file.read_bytes()
    model = featx.create_model(NAME, checkpoint_path=file)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert file.read_bytes() == before


def test_tensors_that_share_memory_in_a_file_do_not_in_the_model(tmp_path):
    state = randomize(featx.create_model(NAME)).state_dict()
    state["bn1.bias"] = state["bn1.weight"]
    torch.save(state, tmp_path / "w.pt")
    model = featx.create_model(NAME, checkpoint_path=tmp_path / "w.pt")
    with torch.no_grad():
        model.bn1.weight.zero_()
    assert torch.equal(model.bn1.bias, state["bn1.bias"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("features_only", [True, False])
def test_the_type_is_chosen_at_loading(file, dtype, features_only):
    model = featx.create_model(NAME, features_only=features_only, checkpoint_path=file, dtype=dtype)
    stored = load_file(file)
    for name, tensor in model.state_dict().items():
        expected = dtype if stored[name].is_floating_point() else stored[name].dtype
        assert tensor.dtype == expected
        assert torch.equal(tensor, stored[name].to(expected))


def test_a_fresh_head_and_a_model_without_weights_have_the_type_asked_for(file):
    model = featx.create_model(NAME, num_classes=3, checkpoint_path=file, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in featx.create_model(NAME, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_halves_in_a_file_fill_a_model_of_floats(tmp_path):
    state = {n: t.half() if t.is_floating_point() else t for n, t in featx.create_model(NAME).state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    model = featx.create_model(NAME, checkpoint_path=tmp_path / "w.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_device_is_chosen_at_loading(file):
    model = featx.create_model(NAME, checkpoint_path=file, device="meta")
    assert all(tensor.is_meta for tensor in model.state_dict().values())
