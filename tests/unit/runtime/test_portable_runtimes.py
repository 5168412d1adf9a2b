"""Extractors on ONNX Runtime and OpenVINO: the original's maps, for the images that their graph supports."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import COPIES, SMALL, OneConv, assert_same, images, randomize, relative_difference, worst
from support.export_cases import PORTABLE, TOLERANCE
from torch import nn

import featx
from featx import ArgumentError, ContractError, FeatureExtractWrapper, InputError
from featx.runtime.backends.openvino import OpenVinoEngine

FAST = ["resnet18", "mobilenetv3_small_050", "repvgg_a0", "timm/test_byobnet", "torchvision/resnet18"]
BRIDGED = [
    *("timm/test_vit", "timm/densenet121", "timm/mobileone_s0", "torchvision/mobilenet_v3_small", "timm/levit_128"),
    *("timm/convit_tiny", "timm/swin_tiny_patch4_window7_224", "timm/xcit_nano_12_p8_224"),
    *("timm/resnet33ts", "timm/seresnet33ts", "timm/eca_resnet33ts", "torchvision/swin_t", "timm/test_maxvit"),
]
REST = [name for name in SMALL if name not in FAST] + BRIDGED

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytestmark = pytest.mark.usefixtures("tolerant_of_torch")


@pytest.fixture(scope="module")
def made():
    """An extractor, and the same extractor on a runtime, built once."""
    known = {}

    def make(name, runtime):
        if (name, runtime) not in known:
            torch.manual_seed(0)
            original = randomize(featx.create_model(name, features_only=True))
            known[name, runtime] = original, featx.optimize(original, runtime=runtime)
        return known[name, runtime]

    return make


@pytest.mark.parametrize("runtime", PORTABLE)
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.sweep) for name in REST)])
def test_maps_are_those_of_the_original_for_any_batch(name, runtime, made):
    original, optimized = made(name, runtime)
    assert optimized.feature_info == original.feature_info
    size = original._inner.fixed_size or original.data_config.size
    for batch in (1, 2, 3):
        assert worst(optimized, original, images(batch, 3, *size)) < TOLERANCE


@pytest.mark.parametrize("runtime", PORTABLE)
@pytest.mark.parametrize("size", [(64, 96), (97, 161), (224, 224)])
@pytest.mark.parametrize("name", ["resnet18", "timm/test_byobnet"])
def test_convolutional_models_take_any_size(name, size, runtime, made):
    original, optimized = made(name, runtime)
    for batch in (1, 2):
        assert worst(optimized, original, images(batch, 3, *size)) < TOLERANCE


class Overwritten(nn.Module):
    """A map that a later sum or activation overwrites in place, and convolutions that read it before and after."""

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
        if self.kind == "view of a map that is read":
            z = x.flatten(2)
            z += y.flatten(2)
            return [x, self.last(x)]
        return [x.clone(), self.last(y.relu_()) + x]


KINDS = ["sum over a map that is read later", "activation over what a convolution has read"]
KINDS += ["sum over what a convolution has read", "plain"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_in_place_stays_right(kind):
    torch.manual_seed(0)
    original = FeatureExtractWrapper(Overwritten(kind).eval())
    optimized = featx.optimize(original, runtime="onnxruntime", example=images(2, 3, 16, 24))
    assert worst(optimized, original, images(2, 3, 16, 24, seed=1)) < TOLERANCE


def test_a_map_that_is_changed_through_a_view_is_refused():
    original = FeatureExtractWrapper(Overwritten("view of a map that is read").eval())
    with pytest.raises(ContractError, match=r"another view of it was written to\): use runtime='eager'"):
        featx.optimize(original, runtime="onnxruntime", example=images(2, 3, 16, 24))


@pytest.mark.skipif("openvino" not in PORTABLE, reason="needs openvino")
def test_openvino_compiles_for_the_example_and_once_more_for_all_other_shapes(monkeypatch):
    model = randomize(featx.create_model("test_efficientnet", features_only=True), seed=0).eval()
    compiled, compile_graph = [], OpenVinoEngine._compile
    monkeypatch.setattr(
        OpenVinoEngine, "_compile", lambda engine, graph: compiled.append(graph) or compile_graph(engine, graph)
    )
    engine = featx.optimize(model, runtime="openvino", example=images(4, 3, 64, 96), cache=False)
    assert len(compiled) == 2  # both were compared with the model
    loaded = copy.copy(engine)
    loaded._engine.load()
    batches = [images(4, 3, 64, 96), *(images(number, 3, 96, 64) for number in (1, 2, 3, 4))]
    with ThreadPoolExecutor(len(batches)) as pool:
        found = list(pool.map(loaded, batches))
    assert len(compiled) == 4
    for maps, batch in zip(found, batches, strict=True):
        assert all(relative_difference(*pair) < TOLERANCE for pair in zip(maps, model(batch), strict=True))


@pytest.mark.skipif("openvino" not in PORTABLE, reason="needs openvino")
def test_the_batch_of_the_example_is_compared_where_it_is_compiled_for(monkeypatch):
    model = randomize(featx.create_model("test_efficientnet", features_only=True), seed=0).eval()
    call = OpenVinoEngine.__call__
    monkeypatch.setattr(
        OpenVinoEngine, "__call__", lambda engine, x: [map_ * (1 + (len(x) == 4)) for map_ in call(engine, x)]
    )
    with pytest.raises(ContractError, match=r"differs by .* for 4 of 64x64 pixels"):
        featx.optimize(model, runtime="openvino", example=images(4, 3, 64, 64), cache=False)


@pytest.mark.parametrize("copied", COPIES)
def test_it_can_be_copied_and_pickled(copied, made):
    _, optimized = made("resnet18", "onnxruntime")
    twin = copied(optimized)
    with torch.no_grad():
        assert_same(twin(images()), optimized(images()))
    assert twin.feature_info == optimized.feature_info
    assert twin.size_divisor == optimized.size_divisor
    assert twin.data_config == optimized.data_config


def test_the_order_and_the_kind_of_output_stay():
    original = randomize(featx.create_model("resnet18", features_only=True, out_indices=[3, 1], output="dict"))
    optimized = featx.optimize(original, runtime="onnxruntime")
    with torch.no_grad():
        ours, reference = optimized(images()), original(images())
    assert list(ours) == list(reference) == ["layer3", "layer1"]
    assert all(relative_difference(ours[name], reference[name]) < TOLERANCE for name in ours)
    assert optimized.feature_info.out_indices == original.feature_info.out_indices


def test_the_original_is_untouched():
    original = randomize(featx.create_model("resnet18", features_only=True))
    before = copy.deepcopy(original.state_dict())
    featx.optimize(original, runtime="onnxruntime")
    assert all(torch.equal(before[key], value) for key, value in original.state_dict().items())


def test_nodes_and_weights_have_the_names_of_modules(tmp_path):
    featx.export(featx.create_model("resnet18", features_only=True).eval(), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert "layer1.0.conv1.weight" in [one.name for one in graph.initializer]
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    assert convolutions[1].startswith("layer1.0.conv1/Conv_")


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


def test_a_graph_that_is_right_for_squares_takes_no_others():
    original = FeatureExtractWrapper(OfSquares().eval())
    optimized = featx.optimize(original, runtime="onnxruntime", example=images(1, 3, 48, 48))
    assert worst(optimized, original, images(2, 3, 48, 48)) < TOLERANCE
    with pytest.raises(InputError, match=r"for any batch of images of 48x48 pixels, got 1 of 48x64, .* example="):
        optimized(images(1, 3, 48, 64))


def test_sizes_of_maps_follow_the_rule_of_the_family():
    """MobileViTv2 rounds up to whole patches: 224 pixels give 8 cells at 1/32; other models have 7."""
    original = randomize(featx.create_model("mobilevitv2_050", features_only=True, out_indices=[-1]))
    optimized = featx.optimize(original, runtime="onnxruntime", example=images(1, 3, 64, 64))
    assert optimized.source.size_rule(224, 32) == 8


def test_images_of_other_channels_are_refused(made):
    with pytest.raises(InputError, match="expected 3 channels"):
        made("resnet18", "onnxruntime")[1](images(2, 4, 64, 64))


@pytest.mark.parametrize("move", [lambda m: m.double(), lambda m: m.to("meta"), lambda m: nn.Sequential(m).half()])
def test_moving_or_converting_it_is_refused(move, made):
    optimized = copy.deepcopy(made("resnet18", "onnxruntime")[1])
    with pytest.raises(ArgumentError, match=r"built by runtime='onnxruntime' for cpu and torch\.float32, and cannot"):
        move(optimized)
    assert optimized.cpu().float()(images())[0].dtype == torch.float32


@pytest.mark.parametrize("runtime", PORTABLE)
def test_dtypes_that_it_does_not_compute_in_are_refused(runtime, made):
    with pytest.raises(ArgumentError, match=r"it computes in .* not in torch\.float16"):
        featx.optimize(made("resnet18", "onnxruntime")[0], runtime=runtime, dtype=torch.float16)


def test_a_model_elsewhere_than_on_the_cpu_is_refused():
    with torch.device("meta"):
        model = featx.create_model("resnet18", features_only=True).eval()
    with pytest.raises(ArgumentError, match=r"it runs on CPUs, and the model is on \['meta'\]"):
        featx.optimize(model, runtime="onnxruntime")


class Undecided(OneConv):
    """Runs other operations for other values, which no graph can represent."""

    def forward_features(self, x):
        return [self.conv(x) if x.sum().item() > 0 else -self.conv(x)]


class Spectral(OneConv):
    """Has an operation without a translation to ONNX."""

    def forward_features(self, x):
        return [torch.fft.rfft2(self.conv(x)).abs()]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Undecided, r"Undecided cannot be captured \(aten\._local_scalar_dense.*\): use runtime='eager'"),
        (Spectral, r"Spectral: aten\._fft_r2c\.default has no translation to ONNX: use runtime='eager'"),
    ],
)
def test_a_model_that_cannot_be_captured_is_refused_and_runs_on_eager(model, message):
    original = FeatureExtractWrapper(model().eval())
    with pytest.raises(ContractError, match=message):
        featx.optimize(original, runtime="onnxruntime", example=images())
    assert worst(featx.optimize(original, runtime="eager"), original, images()) < TOLERANCE
