"""Gradients of attention maps."""

import pytest
import torch
import torch.nn.functional as F
from conftest import images, randomize, relative_difference
from support.attention_models import same_weights_every_time as same_weights_every_time
from support.attention_models import tiny_vit
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import featx
from featx import ArgumentError
from featx.attention import capture_attention


class StepByStep(TorchFunctionMode):
    """Attention as the paper writes it, its weights kept with their graph: what autograd says of them."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        weights.requires_grad_()
        self.maps.append(weights)
        return weights @ v


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilevit_xxs", "mobilevitv2_050"])
def test_gradients_are_those_of_autograd(name, frozen):
    arch = {"dim": 48, "depth": 3, "image_size": 64} if name.startswith("vit") else {}
    model, x = randomize(featx.create_model(name, **arch)).double(), images(2, 3, 64, 80).double()
    model.requires_grad_(not frozen)
    with capture_attention(model, gradients=True) as seen:
        model(x)[:, 3].square().sum().backward()
    if name.startswith("mobilevitv2"):
        expected = separable_gradients(model, x)
    else:
        with StepByStep() as reference:
            loss = model(x)[:, 3].square().sum()
        expected = torch.autograd.grad(loss, reference.maps)
    assert len(seen.gradients) == len(expected) > 0
    for got, wanted in zip(seen.gradients.values(), expected, strict=True):
        assert relative_difference(got, wanted) <= 1e-10  # fp64
    assert frozen == all(parameter.grad is None for parameter in model.parameters())


def separable_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    kept: list[Tensor] = []

    def keep(_, inputs):
        kept.append(inputs[0].requires_grad_())

    handles = [m.attn_drop.register_forward_pre_hook(keep) for m in model.modules() if hasattr(m, "attn_drop")]
    loss = model(x)[:, 3].square().sum()
    for handle in handles:
        handle.remove()
    return list(torch.autograd.grad(loss, kept))


def test_gradients_come_also_after_the_block():
    model, x = tiny_vit(), images(1, 3, 64, 64)
    with capture_attention(model, [1], gradients=True) as seen:
        loss = model(x).square().sum()
    assert seen.gradients == {}
    loss.backward()
    assert seen.gradients["blocks.1"].shape == seen.maps["blocks.1"].shape


def test_a_new_forward_leaves_no_stale_gradient():
    model, x = tiny_vit(), images(1, 3, 64, 64)
    with capture_attention(model, [1], gradients=True) as seen:
        first = model(x).square().sum()
        first.backward(retain_graph=True)
        second = model(2 * x).square().sum()
        assert seen.gradients == {}
        first.backward()  # of a map that is no longer kept
        assert seen.gradients == {}
        second.backward()
        assert list(seen.gradients) == ["blocks.1"]


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_without_autograd_are_refused(off):
    model, x = tiny_vit(), images(1, 3, 64, 64)
    with capture_attention(model, gradients=True), off(), pytest.raises(ArgumentError, match="runs without autograd"):
        model(x)
    with off(), capture_attention(model) as seen:
        model(x)
    assert len(seen.maps) == 3


def test_gradients_of_weights_that_a_kernel_drops_are_refused():
    model = tiny_vit(attn_drop_rate=0.1).train()
    with capture_attention(model, gradients=True), pytest.raises(ArgumentError, match=r"drops weights \(rate 0\.1\)"):
        model(images(1, 3, 64, 64))
