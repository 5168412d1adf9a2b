"""A batch norm and its activation that keep one map: values and gradients of the two modules, and never where a hook,
a transform or a compiler could tell.
"""

import copy

import pytest
import torch
from conftest import randomize
from torch import nn
from torch.utils.checkpoint import checkpoint

import featx
from featx.models.layers.conv_norm import ConvNorm
from featx.models.layers.normed import ACTIVATIONS, norm_act

X = torch.randn(4, 3, 9, 11, generator=torch.Generator().manual_seed(0))
KINDS = [pytest.param(kind, id=kind.__name__) for kind in ACTIVATIONS]


def pair(act: type[nn.Module], chs: int = 3) -> nn.Sequential:
    """A norm and an activation as the models have them, in training."""
    return randomize(nn.Sequential(nn.BatchNorm2d(chs), act(inplace=True))).train()


def together(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    return norm_act(layers[0], layers[1], x)


def node(y: torch.Tensor) -> str:
    return type(y.grad_fn).__name__


def kept(run, parameters=()) -> int:
    """Bytes kept for the backward pass of what `run` returns beside parameters, each memory counted once."""
    held: dict[int, torch.UntypedStorage] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for address, storage in held.items() if address not in own)


def gradients(run, layers: nn.Sequential, x: torch.Tensor) -> list[torch.Tensor]:
    """The value, the gradients of input, scale and shift of a loss that weighs every cell, and the statistics."""
    y = run(x)
    loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
    found = torch.autograd.grad(loss, [x, *layers.parameters()])
    return [y.detach(), *found, *(buffer.clone() for buffer in layers.buffers())]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("act", KINDS)
def test_values_gradients_and_statistics_are_those_of_the_two_modules(act, memory):
    layers = pair(act).double()
    x = X.double().contiguous(memory_format=memory).requires_grad_()
    plain = copy.deepcopy(layers)
    found, expected = gradients(lambda x: together(layers, x), layers, x), gradients(plain, plain, x)
    assert node(together(layers, x)) == "_NormActBackward"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)  # the variance is computed back from its root


@pytest.mark.parametrize("act", KINDS)
def test_values_in_float32_are_the_same_and_gradients_differ_by_rounding(act):
    layers, x = pair(act), X.clone().requires_grad_()
    plain = copy.deepcopy(layers)
    found, expected = gradients(lambda x: together(layers, x), layers, x), gradients(plain, plain, x)
    assert torch.equal(found[0], expected[0])
    for one, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("act", KINDS)
def test_gradients_of_gradients_are_right(act):
    layers = pair(act).double()
    x = X[:2, :, :3, :3].double().requires_grad_()
    inputs = x, layers[0].weight, layers[0].bias

    def fused(x, weight, bias):
        layers[0]._parameters.update(weight=weight, bias=bias)
        return together(layers, x)

    assert node(fused(*inputs)) == "_NormActBackward"
    assert torch.autograd.gradcheck(fused, inputs)
    assert torch.autograd.gradgradcheck(fused, inputs)


@pytest.mark.parametrize("act", KINDS)
def test_one_map_is_kept_where_two_were(act):
    layers, x = pair(act), X.clone().requires_grad_()
    of_channels = 2 * 4 * X.shape[1]  # mean and reciprocal deviation
    before = kept(lambda: layers(x + 0), layers.parameters())
    assert 0 <= before - 2 * X.nbytes - of_channels <= of_channels  # PyTorch may keep running statistics too
    assert kept(lambda: together(layers, x + 0), layers.parameters()) == X.nbytes + of_channels


def test_a_frozen_convolution_gets_no_gradient_and_the_norm_does():
    layer = randomize(ConvNorm(3, 5, 3, act=nn.SiLU)).train()
    layer.conv.requires_grad_(False)
    layer(X).sum().backward()
    assert layer.conv.weight.grad is None
    assert layer.bn.weight.grad is not None


def test_a_part_of_its_parameters_is_trained():
    layer = randomize(ConvNorm(3, 5, 3, act=nn.SiLU)).train()
    layer.bn.weight.requires_grad_(False)
    layer(X).sum().backward()
    assert layer.bn.weight.grad is None
    assert layer.bn.bias.grad is not None


def test_values_that_change_before_the_backward_pass_are_refused():
    layers, x = pair(nn.SiLU), X.clone().requires_grad_()
    y = together(layers, x + 0)
    with torch.no_grad():
        layers[0].bias.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_autocast_gives_what_it_gives_otherwise():
    layer = randomize(ConvNorm(3, 5, 3, act=nn.SiLU)).train()
    plain = copy.deepcopy(layer)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = layer(X), plain.act(plain.bn(plain.conv(X)))
    assert node(found) == "_NormActBackward"
    assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    found.float().sum().backward()
    expected.float().sum().backward()
    for one, other in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0.02, atol=0.02)  # of bfloat16: 8 bits


HOOKS = {
    "forward": lambda module, see: module.register_forward_hook(lambda *_: see()),
    "forward pre": lambda module, see: module.register_forward_pre_hook(lambda *_: see()),
    "backward": lambda module, see: module.register_full_backward_hook(lambda *_: see()),
    "backward pre": lambda module, see: module.register_full_backward_pre_hook(lambda *_: see()),
    "forward of all": lambda _, see: nn.modules.module.register_module_forward_hook(lambda *_: see()),
    "forward pre of all": lambda _, see: nn.modules.module.register_module_forward_pre_hook(lambda *_: see()),
    "backward of all": lambda _, see: nn.modules.module.register_module_full_backward_hook(lambda *_: see()),
    "backward pre of all": lambda _, see: nn.modules.module.register_module_full_backward_pre_hook(lambda *_: see()),
}


@pytest.mark.parametrize("register", [pytest.param(one, id=name) for name, one in HOOKS.items()])
@pytest.mark.parametrize("number", [0, 1])
def test_a_hook_on_either_module_is_called(number, register):
    layers, seen, x = nn.Sequential(nn.BatchNorm2d(3), nn.SiLU()).train(), [], X.clone().requires_grad_()
    handle = register(layers[number], lambda: seen.append(number))
    try:
        together(layers, x).sum().backward()
    finally:
        handle.remove()
    assert seen
    assert node(together(layers, x)) == "_NormActBackward"


class Norm(nn.BatchNorm2d):
    """A class of the user's."""


OTHERS = {
    "another class": lambda: Norm(3),
    "without scale": lambda: nn.BatchNorm2d(3, affine=False),
    "without statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "of a cumulative mean": lambda: nn.BatchNorm2d(3, momentum=None),
    "frozen": lambda: nn.BatchNorm2d(3).eval(),
    "another norm": lambda: nn.GroupNorm(1, 3),
}


@pytest.mark.parametrize("norm", [pytest.param(one, id=name) for name, one in OTHERS.items()])
def test_other_norms_run_as_they_are(norm):
    layers, x = nn.Sequential(randomize(norm()), nn.SiLU()), X.clone().requires_grad_()
    plain = copy.deepcopy(layers)
    found = together(layers, x)
    assert node(found) == "SiluBackward0"
    assert torch.equal(found, plain(x))


def test_one_value_a_channel_is_refused_as_pytorch_refuses_it():
    layers = pair(nn.SiLU)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        together(layers, torch.zeros(1, 3, 1, 1, requires_grad=True))


def test_no_gradient_is_wanted_and_statistics_are_updated():
    layers = pair(nn.SiLU)
    plain = copy.deepcopy(layers)
    with torch.no_grad():
        assert torch.equal(together(layers, X.clone()), plain(X))
    assert torch.equal(layers[0].running_mean, plain[0].running_mean)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by PyTorch itself, for dual numbers
def test_transforms_of_functions_and_dual_numbers_run_the_modules():
    layer = randomize(ConvNorm(3, 5, 3, act=nn.SiLU)).train()
    params = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(params):
        return torch.func.functional_call(copy.deepcopy(layer), params, (X,)).square().mean()

    found = torch.func.grad(loss)(params)
    loss(dict(layer.named_parameters())).backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X.clone().requires_grad_(), torch.ones_like(X))
        assert torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent is not None


def test_checkpoints_compute_it_again():
    layer = randomize(ConvNorm(3, 5, 3, act=nn.SiLU)).train()
    plain, x = copy.deepcopy(layer), X.clone().requires_grad_()
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    plain(x).sum().backward()
    for one, other in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_it_exports_as_the_two_modules():
    layer = randomize(ConvNorm(3, 5, 3, act=nn.SiLU)).train()
    program = torch.export.export(layer, (X,))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("batch_norm" in name for name in names)
    assert any("silu" in name for name in names)


@pytest.mark.parametrize(("name", "less"), [("mobilenetv3_large_100", 1.1), ("efficientnet_b0", 1.3)])
def test_a_training_step_of_a_model_keeps_less_than_timms(name, less):
    import timm

    ours, theirs = (library.create_model(name, features_only=True).train() for library in (featx, timm))
    x = torch.randn(2, 3, 96, 96)
    before, after = (kept(lambda model=model: model(x), model.parameters()) for model in (theirs, ours))
    assert before / after > less


@pytest.mark.parametrize("name", ["mobilenetv2_035", "mobilenetv3_small_050", "test_efficientnet"])
def test_gradients_of_a_model_are_timms(name):
    import timm

    theirs, ours = (library.create_model(name, drop_rate=0.0).double().train() for library in (timm, featx))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for model in (theirs, ours):
        model(x).square().mean().backward()
    expected = dict(theirs.named_parameters())
    for path, parameter in ours.named_parameters():
        grad = expected[path].grad
        # relative to the largest one of a tensor; beside others that cancel, rounding is all there is
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-8, atol=float(grad.abs().max()) * 1e-8 + 1e-14)
    for path, buffer in ours.named_buffers():
        assert torch.equal(buffer, theirs.get_buffer(path))
