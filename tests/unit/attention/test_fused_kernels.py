"""Attention maps of fused kernels: dropout, checkpointing, precision, masks, scales, and refusals."""

import pytest
import torch
import torch.nn.functional as F
from conftest import images, relative_difference
from support.attention_models import inputs_of, tiny_vit
from support.attention_models import same_weights_every_time as same_weights_every_time
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from featx import ContractError
from featx.attention import capture_attention


def test_maps_are_before_dropout():
    model, x = tiny_vit(attn_drop_rate=0.5), images(1, 3, 64, 64)
    with torch.no_grad(), capture_attention(model, [0]) as expected:
        model(x)
    with torch.no_grad(), capture_attention(model.train(), [0]) as seen:
        model(x)
    assert torch.equal(seen.maps["blocks.0"], expected.maps["blocks.0"])


class Checkpointed(nn.Module):
    """A model whose blocks are run once more in the backward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.runs = model, 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.model._tokens(self.model.patch_embed(x))
        for block in self.model.blocks:
            x = checkpoint(self.run, block, x, use_reentrant=False)
        return self.model.forward_head(self.model.norm(x))

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        self.runs += 1
        return block(x)


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_blocks_are_captured_once(frozen):
    model, x = tiny_vit().requires_grad_(not frozen), images(1, 3, 64, 64)
    with capture_attention(model, gradients=True) as expected:
        model(x).square().sum().backward()
    wrapped = Checkpointed(model)
    with capture_attention(wrapped, gradients=True) as seen:
        output = wrapped(x)
        maps = dict(seen.maps)
        output.square().sum().backward()
    assert wrapped.runs == 6
    assert all(seen.maps[name] is map_ for name, map_ in maps.items())
    for name, gradient in expected.gradients.items():
        assert torch.equal(seen.gradients[f"model.{name}"], gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_of_low_precision_are_exact_for_the_queries_and_keys_it_has(dtype):
    model, x = tiny_vit().to(dtype), images(1, 3, 64, 64).to(dtype)
    expected = model(x)
    with capture_attention(model, [0], gradients=True) as seen:
        output = model(x)
        output.float().sum().backward()
    attention = model.blocks[0].attn
    qkv = attention.qkv(inputs_of(model, "blocks.0.attn", x)).double()
    q, k, _ = qkv.unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
    assert torch.equal(output, expected)
    assert seen.maps["blocks.0"].dtype == seen.gradients["blocks.0"].dtype == torch.float32
    assert relative_difference(seen.maps["blocks.0"].double(), (q @ k.mT / 4).softmax(-1)) <= 1e-6  # fp32


def test_autocast_is_captured_as_it_computes():
    model, x = tiny_vit(), images(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with capture_attention(model, [-1]) as seen:
            assert torch.equal(model(x), expected)
    with torch.no_grad(), capture_attention(model, [-1]) as precise:
        model(x)
    assert seen.maps["blocks.2"].dtype == torch.float32
    assert relative_difference(seen.maps["blocks.2"], precise.maps["blocks.2"]) <= 0.2  # of random weights, in bf16
    assert not torch.equal(seen.maps["blocks.2"], precise.maps["blocks.2"])


def test_what_autocast_rounds_on_its_way_into_the_kernel_is_rounded_in_the_map():
    q, k, v = (images(2, 3, 5, 8, seed=n) for n in range(3))
    model = nn.Sequential(Own())
    with torch.autocast("cpu", torch.bfloat16), capture_attention(model, ["0"]) as seen:
        assert model((q, k, v)).dtype == torch.bfloat16
    expected = (q.bfloat16().double() @ k.bfloat16().double().mT / 8**0.5).softmax(-1)
    assert relative_difference(seen.maps["0"].double(), expected) <= 1e-6  # fp32


class Own(nn.Module):
    """A user's module that calls the kernel, with whatever it is told."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.options = options

    def forward(self, qkv):
        return F.scaled_dot_product_attention(*qkv, **self.options)


BOOL = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("options", "scores_of"),
    [
        ({}, lambda s: s / 8**0.5),
        ({"scale": 0.7}, lambda s: s * 0.7),
        ({"is_causal": True}, lambda s: (s / 8**0.5).masked_fill(torch.ones(4, 5).triu(1).bool(), -torch.inf)),
        ({"attn_mask": BOOL}, lambda s: (s / 8**0.5).masked_fill(~BOOL, -torch.inf)),
        ({"attn_mask": images(2, 1, 4, 5).double()}, lambda s: s / 8**0.5 + images(2, 1, 4, 5).double()),
    ],
)
def test_masks_and_scales_enter_the_map(options, scores_of):
    model = Own(**options)
    q, k, v = (images(2, 3, n, 8, seed=n).double().requires_grad_() for n in (4, 5, 5))
    weights = scores_of(q @ k.mT).softmax(-1).nan_to_num(0.0)  # a query without keys has none
    weights.retain_grad()
    (weights @ v).pow(3).sum().backward()
    wrapped = nn.Sequential(model)
    with capture_attention(wrapped, ["0"], gradients=True) as seen:
        output = wrapped((q, k, v))
        output.pow(3).sum().backward()
    assert relative_difference(output, weights @ v) <= 1e-12
    assert relative_difference(seen.maps["0"], weights) <= 1e-12
    assert relative_difference(seen.gradients["0"], weights.grad) <= 1e-10


def test_keys_shared_by_groups_of_heads_are_repeated():
    q, k, v = (images(2, heads, 5, 8, seed=heads).double().requires_grad_() for heads in (6, 2, 2))
    repeated = [x.repeat_interleave(3, 1) for x in (k, v)]
    weights = (q @ repeated[0].mT / 8**0.5).softmax(-1)
    weights.retain_grad()
    (weights @ repeated[1]).pow(3).sum().backward()
    model = nn.Sequential(Own(enable_gqa=True))
    with capture_attention(model, ["0"], gradients=True) as seen:
        model((q, k, v)).pow(3).sum().backward()
    assert relative_difference(seen.maps["0"], weights) <= 1e-12
    assert relative_difference(seen.gradients["0"], weights.grad) <= 1e-10


def mixed(weights, v):
    return weights.mean(1, keepdim=True) @ v


def written_into(weights, v):
    weights *= 2
    return weights @ v


def twice(weights, v):
    return weights @ v + weights.softmax(-1) @ v


def not_used(weights, v):
    return v


def of_three_axes(weights, v):
    return weights[:, 0].softmax(-1) @ v[:, 0]


class Steps(nn.Module):
    """A user's module that goes from scores to what it puts out by the function it is given."""

    def __init__(self, use) -> None:
        super().__init__()
        self.use = use

    def forward(self, scores, v):
        return self.use(scores.softmax(-1), v)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("use", [mixed, written_into, twice, not_used, of_three_axes])
def test_weights_that_cannot_be_proven_are_refused(use, mode):
    model = nn.ModuleDict({"own": Steps(use)})
    refused = pytest.raises(ContractError, match="expected to see one tensor")
    with mode(), capture_attention(model, ["own"]) as seen, refused:
        model["own"](images(2, 3, 5, 5), images(2, 3, 5, 4))
    assert seen.maps == {}


def test_weights_of_a_module_that_computes_step_by_step_are_followed():
    model = nn.ModuleDict({"own": Steps(lambda weights, v: F.dropout(weights, 0.5, True).contiguous() @ v)})
    scores, v = images(2, 3, 5, 5).requires_grad_(), images(2, 3, 5, 4)
    with capture_attention(model, ["own"], gradients=True) as seen:
        torch.manual_seed(0)
        model["own"](scores, v).sum().backward()
    torch.manual_seed(0)
    weights = scores.detach().softmax(-1).requires_grad_()
    (F.dropout(weights, 0.5, True) @ v).sum().backward()
    assert torch.equal(seen.maps["own"], weights)
    assert torch.equal(seen.gradients["own"], weights.grad)
