"""The onednn runtime: the original's maps from fused kernels, for the images that the graph is right for."""

import copy

import pytest
import torch
from conftest import COPIES, SMALL, OneConv, assert_same, images, randomise, relative_difference, worst
from exporting import needs_compiler
from torch import nn

import featx
from featx import ArgumentError, ContractError, FeatureExtractWrapper, InputError, MissingPackageError
from featx.runtime.packed import PackedConv, PackedConvAdd, PackedConvAddTo, PackedLinear
from featx.runtime.portions import LARGEST_TENSOR, Portions

TOLERANCE = 1e-4  # of the largest value: other kernels sum in another order
FAST = ["resnet18", "mobilenetv3_small_050", "repvgg_a0", "timm/test_byobnet", "torchvision/resnet18"]
BRIDGED = ["timm/test_vit", "timm/densenet121", "timm/mobileone_s0", "torchvision/mobilenet_v3_small"]
REST = [name for name in SMALL if name not in FAST] + BRIDGED

pytestmark = [
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN"),
    pytest.mark.usefixtures("tolerant_of_torch"),
]


@pytest.fixture(scope="module")
def made():
    """An extractor and its fused twin by name, made once."""
    known = {}

    def make(name):
        if name not in known:
            torch.manual_seed(0)
            original = randomise(featx.create_model(name, features_only=True))
            known[name] = original, featx.optimize(original, runtime="onednn")
        return known[name]

    return make


def layers(optimized, kind):
    return [module for module in optimized._engine.graph.modules() if type(module) is kind]


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.sweep) for name in REST)])
def test_maps_are_those_of_the_original_for_any_batch(name, made):
    original, optimized = made(name)
    assert optimized.feature_info == original.feature_info
    assert layers(optimized, PackedConv) or layers(optimized, PackedLinear)
    size = original._inner.fixed_size or original.data_config.size
    for batch in (1, 2, 3):
        assert worst(optimized, original, images(batch, 3, *size)) < TOLERANCE


@pytest.mark.parametrize("size", [(64, 96), (97, 161), (224, 224)])
@pytest.mark.parametrize("name", ["resnet18", "timm/test_byobnet"])
def test_convolutional_models_take_any_size(name, size, made):
    original, optimized = made(name)
    for batch in (1, 2):
        assert worst(optimized, original, images(batch, 3, *size)) < TOLERANCE


def test_activations_and_residual_sums_are_in_the_kernels(made):
    _, optimized = made("resnet18")
    kinds = [str(node.target) for node in optimized._engine.graph.graph.nodes if node.op == "call_function"]
    assert not any(word in kind for kind in kinds for word in ("relu", "add", "batch_norm", "conv2d"))
    assert len(layers(optimized, PackedConvAdd)) + len(layers(optimized, PackedConvAddTo)) == 8


class Overwritten(nn.Module):
    """A map that a later sum or activation is written over, and convolutions that read it before and after."""

    feature_info = ({"chs": 4, "reduction": 1, "name": "first"}, {"chs": 4, "reduction": 1, "name": "last"})
    is_rewritten = True

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first, self.second, self.last = (nn.Conv2d(chs, 4, 3, padding=1) for chs in (3, 4, 4))

    def forward_features(self, x):
        x = self.first(x)
        y = self.second(x)
        if self.kind == "sum over a map that is read later":
            kept = x
            x += y
            return [kept, self.last(x)]
        if self.kind == "activation over what a convolution has read":
            torch.relu_(x)
            return [x, self.last(x) + y.relu()]
        if self.kind == "sum over what a convolution has read":
            x += 1
            return [x, (y + self.last(x)).relu()]
        if self.kind == "view of a map":
            z = x.flatten(2)
            z += y.flatten(2)
            return [x, self.last(x)]
        return [x.clone(), self.last(y.relu_()) + x]


@pytest.mark.parametrize(
    "kind",
    [
        "sum over a map that is read later",
        "activation over what a convolution has read",
        "sum over what a convolution has read",
        "view of a map",
        "plain",
    ],
)
def test_what_is_written_in_place_stays_right(kind):
    torch.manual_seed(0)
    original = FeatureExtractWrapper(Overwritten(kind).eval())
    optimized = featx.optimize(original, runtime="onednn", example=images(2, 3, 16, 24))
    assert worst(optimized, original, images(2, 3, 16, 24, seed=1)) < TOLERANCE


@pytest.mark.parametrize("copied", COPIES)
def test_it_can_be_copied_and_pickled(copied, made):
    _, optimized = made("resnet18")
    twin = copied(optimized)
    with torch.no_grad():
        assert_same(twin(images()), optimized(images()))
    assert twin.feature_info == optimized.feature_info
    assert twin.size_divisor == optimized.size_divisor
    assert twin.data_config == optimized.data_config


def test_the_order_and_the_kind_of_output_stay():
    original = randomise(featx.create_model("resnet18", features_only=True, out_indices=[3, 1], output="dict"))
    optimized = featx.optimize(original, runtime="onednn")
    with torch.no_grad():
        ours, reference = optimized(images()), original(images())
    assert list(ours) == list(reference) == ["layer3", "layer1"]
    assert all(relative_difference(ours[name], reference[name]) < TOLERANCE for name in ours)
    assert optimized.feature_info.out_indices == original.feature_info.out_indices


def test_tokens_stay():
    original = randomise(featx.create_model("vit_wee_patch16_reg1_gap_256", features_only=True, output="tokens"))
    optimized = featx.optimize(original, runtime="onednn", example=images(2, 3, 64, 64))
    x = images(3, 3, 64, 64)
    with torch.no_grad():
        for (prefix, map_), (true_prefix, true_map) in zip(optimized(x), original(x), strict=True):
            assert relative_difference(prefix, true_prefix) < TOLERANCE
            assert relative_difference(map_, true_map) < TOLERANCE


def test_the_original_is_untouched(made):
    original, _ = made("resnet18")
    before = copy.deepcopy(original.state_dict())
    featx.optimize(original, runtime="onednn")
    assert all(torch.equal(before[key], value) for key, value in original.state_dict().items())


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16")
def test_bfloat16_says_how_similar_its_maps_are(made):
    original, _ = made("resnet18")
    optimized = featx.optimize(original, runtime="onednn", dtype=torch.bfloat16, example=images(2, 3, 64, 64))
    assert list(optimized.agreement) == original.feature_info.names()
    assert min(optimized.agreement.values()) > 0.999
    assert f">= {min(optimized.agreement.values()):.4f}" in repr(optimized)
    with torch.no_grad():
        assert {map_.dtype for map_ in optimized(images())} == {torch.bfloat16}


def test_images_of_another_size_are_refused_where_the_graph_depends_on_it():
    original = randomise(featx.create_model("vit_wee_patch16_reg1_gap_256", features_only=True))
    optimized = featx.optimize(original, runtime="onednn", example=images(2, 3, 64, 64))
    with pytest.raises(InputError, match=r"for any batch of images of 64x64 pixels, got 2 of 64x96, .* example="):
        optimized(images(2, 3, 64, 96))


class Mirrored(nn.Module):
    def forward(self, x):
        return x + x.transpose(2, 3)


class OfSquares(nn.Module):
    feature_info = ({"chs": 8, "reduction": 2, "name": "mirrored"},)

    def __init__(self):
        super().__init__()
        self.conv, self.mirrored = nn.Conv2d(3, 8, 2, 2), Mirrored()

    def forward(self, x):
        return self.mirrored(self.conv(x))


def test_a_graph_that_is_right_for_squares_of_any_size_takes_no_others():
    original = FeatureExtractWrapper(OfSquares().eval())
    optimized = featx.optimize(original, runtime="onednn")
    assert worst(optimized, original, images(1, 3, 48, 48)) < TOLERANCE
    with pytest.raises(InputError, match="got 1 of 48x64, which its graph is not right for"):
        optimized(images(1, 3, 48, 64))


@pytest.mark.parametrize("runtime", ["onednn", pytest.param("compile", marks=needs_compiler)])
def test_sizes_of_maps_follow_the_rule_of_the_family(runtime):
    """MobileViTv2 rounds up to whole patches: 224 pixels give 8 cells at 1/32, where others have 7."""
    original = randomise(featx.create_model("mobilevitv2_050", features_only=True, out_indices=[-1]))
    optimized = featx.optimize(original, runtime=runtime, example=images(1, 3, 64, 64))
    assert optimized._source.size_rule(224, 32) == 8


def test_images_of_other_channels_are_refused(made):
    with pytest.raises(InputError, match="expected 3 channels"):
        made("resnet18")[1](images(2, 4, 64, 64))


@pytest.mark.parametrize("move", [lambda m: m.double(), lambda m: m.to("meta"), lambda m: nn.Sequential(m).half()])
def test_moving_or_converting_it_is_refused(move, made):
    optimized = copy.deepcopy(made("resnet18")[1])
    with pytest.raises(ArgumentError, match=r"built by runtime='onednn' for cpu and torch\.float32, and cannot"):
        move(optimized)
    assert optimized.cpu().float()(images())[0].dtype == torch.float32


def test_a_missing_onednn_is_said(made, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(MissingPackageError, match=r"this build of PyTorch lacks oneDNN's kernels"):
        featx.optimize(made("resnet18")[0], runtime="onednn")


def test_dtypes_that_it_does_not_compute_in_are_refused(made):
    with pytest.raises(ArgumentError, match=r"it computes in .* not in torch\.float16"):
        featx.optimize(made("resnet18")[0], runtime="onednn", dtype=torch.float16)


def test_a_model_elsewhere_than_on_the_cpu_is_refused():
    with torch.device("meta"):
        model = featx.create_model("resnet18", features_only=True).eval()
    with pytest.raises(ArgumentError, match=r"it runs on cpu, and the model is on \['meta'\]"):
        featx.optimize(model, runtime="onednn")


class Undecided(OneConv):
    """Does other things for other values, which no graph can."""

    def forward_features(self, x):
        return [self.conv(x) if x.sum().item() > 0 else -self.conv(x)]


def test_a_model_that_cannot_be_captured_is_refused():
    original = FeatureExtractWrapper(Undecided().eval())
    with pytest.raises(ContractError, match=r"Undecided cannot be captured by torch\.export \(.*use runtime='eager'"):
        featx.optimize(original, runtime="onednn", example=images())


@pytest.mark.parametrize("batch", [2, 3, 4, 5])
def test_large_batches_are_run_in_portions(batch, made, monkeypatch):
    original, optimized = made("resnet18")
    monkeypatch.setattr("featx.runtime.portions.LARGEST_TENSOR", 2 * 64 * 32 * 48 * 4)  # of two images
    ran = []
    graph = optimized._engine.graph
    handle = graph.register_forward_pre_hook(lambda _, given: ran.append(len(given[0])))
    assert worst(optimized, original, images(batch, 3, 64, 96)) < TOLERANCE
    handle.remove()
    assert ran == [2] * (batch // 2) + [1] * (batch % 2)
    assert all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in optimized(images(batch, 3, 64, 96)))


def test_a_portion_is_as_large_as_fits_into_memory_that_is_kept():
    portions = Portions(largest=LARGEST_TENSOR / 1000)
    assert [portions.images(side, side) for side in (5, 10, 20, 40)] == [32, 8, 2, 1]
    assert Portions(largest=1.0, most=3).images(5, 5) == 3
