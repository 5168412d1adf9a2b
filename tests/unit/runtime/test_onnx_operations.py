"""Translation of operations to ONNX: ONNX Runtime returns the values of PyTorch, also for other sizes."""

import pytest
import torch
from conftest import relative_difference
from support.onnx_programs import Then, in_onnx_runtime
from torch import nn
from torch.nn import functional as F

from featx.runtime.onnx.operations import UntranslatedError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZES = [(2, 3, 64, 64), (1, 3, 64, 64), (3, 3, 70, 46)]


def attended(x, **how):
    tokens = x.flatten(2).transpose(1, 2).unflatten(2, (2, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(tokens, tokens.sin(), tokens.tanh(), **how)


ELEMENTWISE = {
    "activations": lambda net, x: F.silu(x) + F.hardswish(x) - F.hardsigmoid(x) * F.relu6(x),
    "activations in place": lambda net, x: F.hardswish(F.relu(x + 1, inplace=True), inplace=True).mul_(2).add_(x),
    "gelus": lambda net, x: F.gelu(x) + F.gelu(x, approximate="tanh"),
    "slopes": lambda net, x: F.leaky_relu(x, 0.2) + F.elu(x, 0.5) + F.softplus(x) + F.mish(x) + F.selu(x),
    "learnt slopes": lambda net, x: net.prelu(x),
    "powers": lambda net, x: (x**2 + x.abs() ** 0.5 + (1 + x.abs()).rsqrt()) / (2 + x.exp()),
    "numbers first": lambda net, x: 1 - x + 2 / (3 + x.abs()) - torch.sub(x, x.sin(), alpha=0.5),
    "bounds": lambda net, x: x.clamp(min=-0.1) + x.clamp(-0.2, 0.3) + torch.maximum(x, x.cos()),
    "choices": lambda net, x: torch.where(x > 0.1, x, -x).masked_fill(x.abs() < 0.05, 7.0),
    "integers": lambda net, x: x + (torch.arange(x.shape[3]) // 2).to(x.dtype),
    "rounding": lambda net, x: (x * 5).round() + x.floor() + x.ceil(),
}
LAYERS = {
    "norms": lambda net, x: net.group(net.batch(x)),
    "norms of channels": lambda net, x: net.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "norms without weights": lambda net, x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)),
    "norms by squares": lambda net, x: F.rms_norm(x.permute(0, 2, 3, 1), (8,), net.layer.weight, 1e-6),
    "grouped convolutions": lambda net, x: net.grouped(x),
    "transposed convolutions": lambda net, x: net.back(x),
    "linear layers": lambda net, x: net.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "attention": lambda net, x: attended(x),
    "attention with a scale": lambda net, x: attended(x, scale=0.3),
    "products that are added": lambda net, x: torch.addcmul(x, x.sin(), x.cos(), value=0.5),
    "batches of products": lambda net, x: torch.baddbmm(
        x.flatten(0, 1), x.flatten(0, 1), x.flatten(0, 1).exp().mT @ x.flatten(0, 1), beta=0.5, alpha=2
    ),
    "products": lambda net, x: x.flatten(2).transpose(1, 2) @ x.flatten(2),
    "softmax": lambda net, x: x.softmax(1) + x.flatten(2).softmax(-1).view_as(x),
}
REDUCTIONS = {
    "means": lambda net, x: x - x.mean((2, 3), keepdim=True) + x.mean(1, keepdim=True) * x.mean(),
    "sums and extremes": lambda net, x: x.sum(1, keepdim=True) + x.amax(1, keepdim=True) - x.amin(1, keepdim=True),
    "lengths": lambda net, x: x + torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True),
    "variances": lambda net, x: x.var(1, keepdim=True) + x.var(1, correction=0, keepdim=True),
    "pools": lambda net, x: F.max_pool2d(x, 3, 2, 1) + F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "pools that round up": lambda net, x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    "pools to one cell": lambda net, x: x * F.adaptive_avg_pool2d(x, 1).sigmoid(),
}
SHAPES = {
    "slices": lambda net, x: torch.cat([x[:, :3], x[:, 5:].neg(), x[:, -2:]], 1),
    "splits": lambda net, x: torch.cat([part * n for n, part in enumerate(x.split([2, 5, 1], 1), 1)], 1),
    "chunks": lambda net, x: (lambda a, b: a * b)(*x.chunk(2, 1)),
    "stacks": lambda net, x: torch.stack([x, -x, x.exp()], 2).flatten(1, 2),
    "unbinding": lambda net, x: (lambda a, b: a - b)(*x.unflatten(1, (2, 4)).unbind(1)),
    "shuffled channels": lambda net, x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2),
    "shuffled pixels": lambda net, x: F.pixel_shuffle(x, 2),
    "rolls": lambda net, x: x.roll((3, -2), (2, 3)) + x.flip(1),
    "tokens": lambda net, x: torch.cat([net.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)[:, 1:],
    "repeats": lambda net, x: x.repeat(1, 2, 1, 1) + x.repeat(1, 2, 1, 1).exp(),
    "paddings": lambda net, x: F.pad(x, (1, 2, 0, 1), value=0.5) + F.pad(x, (1, 2, 1, 0), mode="reflect"),
    "edges": lambda net, x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "places": lambda net, x: x.relu().cumsum(2) - (x.new_ones(1, 1, *x.shape[2:])).cumsum(3),
    "views to sizes": lambda net, x: x.flatten(2).sigmoid().view(x.shape[0], -1, x.shape[2], x.shape[3]),
    "tables": lambda net, x: x * net.table[torch.tensor([0, 2, 1, 3, 3, 2, 1, 0])][:, None, None],
    "chosen channels": lambda net, x: x.index_select(1, torch.tensor([3, 1])) + x[:, 2:3],
    "nearest": lambda net, x: F.interpolate(x, scale_factor=2.0),
    "nearest to a size": lambda net, x: x + F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:]),
    "bilinear": lambda net, x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "samples at a grid": lambda net, x: F.grid_sample(
        x, x[:, :2].permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    ),
    "bilinear by corners": lambda net, x: (
        x + F.interpolate(F.max_pool2d(x, 2), x.shape[2:], mode="bilinear", align_corners=True)
    ),
}
OF_ONE_SIZE = {
    "unit lengths": lambda net, x: F.normalize(x, dim=1),
    "steps": lambda net, x: x[:, ::2, 1::3],
    "cubic": lambda net, x: F.interpolate(x, (20, 13), mode="bicubic"),
    "windows": lambda net, x: x.unfold(2, 5, 3).sum(-1).unfold(3, 4, 4).amax(-1),
    "cells of one size": lambda net, x: F.adaptive_avg_pool2d(x, (4, 8)),
    "masked attention": lambda net, x: (
        attended(x, attn_mask=torch.eye(1024).bool()) + attended(x, attn_mask=torch.eye(1024))
    ),
    "windows of tokens": lambda net, x: (
        x.view(-1, 8, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, 8).softmax(1)
    ),
}
ANY = {**ELEMENTWISE, **LAYERS, **REDUCTIONS, **SHAPES}


def net(then) -> Then:
    made = Then(
        then,
        prelu=nn.PReLU(8),
        group=nn.GroupNorm(2, 8),
        batch=nn.BatchNorm2d(8),
        layer=nn.LayerNorm(8, eps=1e-6),
        grouped=nn.Conv2d(8, 12, (3, 5), (2, 1), (1, 2), groups=4, dilation=(1, 1), bias=False),
        back=nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1),
        linear=nn.Linear(8, 6),
    )
    made.token, made.table = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(4))
    for parameter in made.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    made.batch.running_mean.normal_()
    made.batch.running_var.uniform_(0.5, 2)
    return made.eval()


def assert_close(pairs) -> None:
    for ours, expected in pairs:
        assert ours.shape == expected.shape
        assert relative_difference(ours, expected) < 2e-5  # other kernels sum in another order


@pytest.mark.parametrize("name", ANY)
def test_an_operation_is_right_for_any_size(name):
    assert_close(in_onnx_runtime(net(ANY[name]), *SIZES))


@pytest.mark.parametrize("name", OF_ONE_SIZE)
def test_an_operation_is_right_for_its_size_and_any_batch(name):
    assert_close(in_onnx_runtime(net(OF_ONE_SIZE[name]), *SIZES[:2], sizes=False))


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (lambda net, x: torch.fft.rfft2(x).real, r"aten\._fft_r2c\.default has no translation to ONNX"),
        (
            lambda net, x: F.adaptive_avg_pool2d(x, 5),
            r"adaptive_avg_pool2d.*: an adaptive pool whose cells differ in size",
        ),
        (lambda net, x: F.avg_pool2d(x, 2, divisor_override=3), r"avg_pool2d.*: an average with divisor_override"),
    ],
)
def test_what_has_no_translation_is_reported(then, message):
    with pytest.raises(UntranslatedError, match=message):
        in_onnx_runtime(net(then), *SIZES[:1])
