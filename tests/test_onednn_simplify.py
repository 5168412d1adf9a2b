"""What is rewritten around packed layers: gone where it may, kept where something else reads it, right in any case."""

from collections import Counter

import pytest
import torch
from conftest import images, random_extractor, relative_difference
from torch import fx, nn

import featx
from featx import FeatureExtractWrapper

TOLERANCE = 1e-5  # of the largest value: a few layers whose sums are in another order

pytestmark = [
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN"),
    pytest.mark.usefixtures("tolerant_of_torch"),
]


class Perceptron(nn.Module):
    """Two linear layers over the channels of a map, as in ConvNeXt, and what may stand around them."""

    feature_info = ({"chs": 4, "reduction": 1, "name": "first"}, {"chs": 4, "reduction": 1, "name": "last"})
    is_rewritten = True

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 4)
        self.gamma = nn.Parameter(torch.randn(4))
        self.row = nn.Parameter(torch.randn(1, 1, 16))
        self.table = nn.Parameter(torch.randn(1, 4, 8, 8))

    def forward_features(self, x):
        x = self.first(x)
        hidden = self.fc1(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.fc2(nn.functional.gelu(hidden).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.kind == "hidden read twice":
            y = y + hidden.mean(1, keepdim=True)
        if self.kind == "product read twice":
            return [y * self.gamma.view(-1, 1, 1) + x, self.last(y)]
        if self.kind == "factor per row":
            y = y * self.row
        if self.kind == "table of the grid":
            y = y + nn.functional.interpolate(self.table, scale_factor=2.0)
        if self.kind == "sum of one with itself":
            return [x, y + y]
        if self.kind == "scaled and read later":
            z = self.last(x)
            return [z * self.gamma.view(-1, 1, 1) + z, y]
        return [x, y * self.gamma.view(-1, 1, 1) + x]


def made(kind):
    torch.manual_seed(0)
    original = FeatureExtractWrapper(Perceptron(kind).eval())
    return original, featx.optimize(original, runtime="onednn", example=images(2, 3, 16, 16))


def kinds(optimized):
    graph = optimized._engine.graph
    nodes = [node for node in graph.graph.nodes if node.op.startswith("call")]
    names = (
        type(graph.get_submodule(node.target)).__name__ if node.op == "call_module" else str(node.target)
        for node in nodes
    )
    return Counter(name.removeprefix("aten.").partition(".")[0] for name in names)


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("plain", {"PackedLinear": 1, "PackedLinearAdd": 1, "gelu": 0, "mul": 0, "add": 0}),
        ("hidden read twice", {"gelu": 1, "PackedLinear": 2}),
        ("product read twice", {"mul": 1, "PackedLinear": 2}),
        ("factor per row", {"mul": 1, "mul_": 1}),
        ("table of the grid", {"upsample_nearest2d": 0}),
        ("sum of one with itself", {"add": 1}),
        ("scaled and read later", {"mul": 1, "add_": 1}),
    ],
)
def test_what_only_a_layers_result_goes_through_is_in_its_kernel(kind, left):
    original, optimized = made(kind)
    with torch.no_grad():
        pairs = zip(optimized(images(3, 3, 16, 16)), original(images(3, 3, 16, 16)), strict=True)
        assert max(relative_difference(ours, true) for ours, true in pairs) < TOLERANCE
    found = kinds(optimized)
    assert {name: found[name] for name in left} == left


def test_standardised_kernels_and_positions_are_computed_once():
    torch.manual_seed(0)
    original = featx.create_model("vit_tiny_r_s16_p8_224", features_only=True).eval()
    found = kinds(featx.optimize(original, runtime="onednn", example=images(1, 3, 64, 64)))
    assert "batch_norm" not in found
    assert not any("upsample" in name for name in found)
    assert found["PackedLinearAdd"] == 24


@pytest.mark.parametrize("name", ["resnest14d", pytest.param("hrnet_w18_small", marks=pytest.mark.sweep)])
def test_sums_are_written_over_memory_that_nobody_reads_any_more(name):
    original = featx.create_model(name, features_only=True).eval()
    found = kinds(featx.optimize(original, runtime="onednn", example=images(1, 3, 64, 64)))
    assert found["add_"] > 0


class Strides(fx.Interpreter):
    """Runs a graph and keeps what convolutions and pools were given."""

    def __init__(self, graph):
        super().__init__(graph)
        self.given = []

    def run_node(self, node):
        args, _ = self.fetch_args_kwargs_from_env(node)
        if node.op == "call_module" or "pool" in str(node.target):
            self.given.append(args[0])
        return super().run_node(node)


@pytest.mark.parametrize("name", ["resnest14d", "resnet50d", "mobilenetv3_small_050"])
def test_what_layers_pass_on_of_a_single_image_is_seen_to_be_in_channels_last(name):
    x = images(1, 3, 64, 64)
    optimized = featx.optimize(random_extractor(name), runtime="onednn", example=x)
    run = Strides(optimized._engine.graph)
    with torch.no_grad():
        run.run(x.to(memory_format=torch.channels_last))
    wide = [given for given in run.given if given.shape[2] > 1]
    assert len(wide) > 10
    # PyTorch goes by all strides, that of the images too, though there is but one
    assert all(given.stride(1) == 1 and given.stride(0) >= given.shape[2] * given.stride(2) for given in wide)
