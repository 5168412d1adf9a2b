"""A batch norm that overwrites the output of its convolution: equal values, and only where nothing else reads it."""

import copy
from functools import partial

import pytest
import torch
from conftest import randomize
from torch import nn

import featx
from featx.models.layers.normed import ConvNorms, normed

X = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def layers() -> ConvNorms:
    return randomize(ConvNorms(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(inplace=True)))


def own_result(layers: nn.Sequential) -> tuple[torch.Tensor, torch.Tensor]:
    """What `normed` returns, and what the convolution had returned to it."""
    conv, seen = layers[0], []
    original = conv.forward
    conv.forward = lambda x: seen.append(original(x)) or seen[-1]
    return normed(conv, layers[1], X), seen[0]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_numbers_are_those_of_the_two_modules(layers, memory, dtype):
    layers, x = layers.to(dtype), X.to(dtype).contiguous(memory_format=memory)
    with torch.inference_mode():
        assert torch.equal(layers(x), nn.Sequential(*layers)(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_in_inference_it_writes_over_what_the_convolution_returned(layers, mode):
    with mode():
        result, convolved = own_result(layers)
    assert result is convolved


def test_with_gradients_it_does_not(layers):
    result, convolved = own_result(layers)
    assert result is not convolved
    result.sum().backward()
    assert layers[0].weight.grad is not None


def test_in_training_it_does_not_and_statistics_are_counted(layers):
    before = layers[1].running_mean.clone()
    with torch.no_grad():
        result, convolved = own_result(layers.train())
    assert result is not convolved
    assert not torch.equal(layers[1].running_mean, before)


HOOKS = {
    "behind the convolution": lambda layers, see: layers[0].register_forward_hook(lambda _m, _x, y: see(y)),
    "before the norm": lambda layers, see: layers[1].register_forward_pre_hook(lambda _m, x: see(x[0])),
    "behind everything": lambda layers, see: nn.modules.module.register_module_forward_hook(
        lambda m, _x, y: see(y) if m is layers[0] else None
    ),
}


@pytest.mark.parametrize("register", [pytest.param(one, id=name) for name, one in HOOKS.items()])
def test_a_hook_keeps_what_the_convolution_returned(layers, register):
    seen: list[torch.Tensor] = []
    handle = register(layers, lambda y: seen.append(y))
    with torch.no_grad():
        layers(X)
    handle.remove()
    with torch.no_grad():
        assert torch.equal(seen[0], layers[0](X))


@pytest.mark.parametrize("norm", [partial(nn.GroupNorm, 1), nn.InstanceNorm2d, nn.SyncBatchNorm, nn.Identity])
def test_other_norms_run_as_they_are(norm):
    layers = randomize(ConvNorms(nn.Conv2d(3, 5, 3), norm(5)))
    with torch.no_grad():
        assert torch.equal(layers(X), layers[1](layers[0](X)))


def test_a_norm_without_statistics_or_scales_runs_as_it_is():
    for norm in (nn.BatchNorm2d(5, track_running_stats=False), nn.BatchNorm2d(5, affine=False)):
        layers = randomize(ConvNorms(nn.Conv2d(3, 5, 3), norm))
        with torch.no_grad():
            assert torch.equal(layers(X), layers[1](layers[0](X)))


def test_autocast_gives_what_it_gives_otherwise(layers):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = layers(X), nn.Sequential(*layers)(X)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_it_can_be_mapped_over_a_batch_of_models(layers):
    both = [layers, randomize(copy.deepcopy(layers), seed=1)]
    params, buffers = torch.func.stack_module_state(both)
    call = lambda p, b: torch.func.functional_call(layers, (p, b), (X,))  # noqa: E731
    with torch.no_grad():
        found = torch.vmap(call)(params, buffers)
        for one, layers_ in zip(found, both, strict=True):
            assert torch.allclose(one, layers_(X), atol=1e-6)  # a grouped convolution adds in another order


def test_it_exports_and_traces_as_the_two_modules(layers):
    with torch.no_grad():
        program = torch.export.export(layers, (X,), strict=False)
        assert torch.equal(program.module()(X), layers(X))
        assert not any("out" in str(node.target) for node in program.graph.nodes if node.op == "call_function")


class Stem(nn.Module):
    """A convolution, or a sequence that ends with one, and its norm, as children of a model."""

    feature_info = ({"chs": 5, "reduction": 1, "name": "act"},)

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv, self.norm, self.act = conv, nn.BatchNorm2d(5), nn.ReLU()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


@pytest.mark.parametrize("deep", [False, True])
def test_the_norm_of_a_stem_writes_over_its_convolution(deep):
    last = nn.Conv2d(3, 5, 3, padding=1)
    model = randomize(Stem(ConvNorms(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), last) if deep else last))
    extractor = featx.FeatureExtractWrapper(model)
    seen, original = [], last.forward
    last.forward = lambda x: seen.append(original(x)) or seen[-1]
    with torch.no_grad():
        expected = model(X)
        (map_,) = extractor(X)
    plain, overwritten = seen
    assert torch.equal(map_, expected)
    assert torch.equal(overwritten, model.norm(plain))
    assert not torch.equal(overwritten, plain)


def test_a_level_that_is_a_convolution_stays():
    model = randomize(Stem(nn.Conv2d(3, 5, 3, padding=1)))
    model.feature_info = ({"chs": 5, "reduction": 1, "name": "conv"}, *model.feature_info)
    with torch.no_grad():
        assert torch.equal(featx.FeatureExtractWrapper(model)(X)[0], model.conv(X))


def test_a_sequence_that_ends_with_a_convolution_ends_with_it(layers):
    ending = ConvNorms(*layers[:2], nn.Conv2d(5, 2, 1))
    with torch.no_grad():
        assert torch.equal(ending(X), ending[2](ending[1](ending[0](X))))
