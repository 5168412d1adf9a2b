"""Lower precisions of trained networks: similarity of maps to float32, on photographs that were not calibrated on."""

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.trained_networks import CALIBRATION, JUDGED, dinov2_small, lite0, mobilenetv2, photographs
from torch import Tensor, nn

import featx
from featx.errors import ArgumentError, ContractError, InputError
from featx.runtime import runtimes
from featx.runtime.agreement import agreement
from featx.runtime.backends.openvino import computes_bfloat16

SIZE = 224  # pixels a side
# A texture and a micrograph, of which Lite0 knows no class: its two most probable ones differ by 0.002 and 0.014.
UNDECIDED = {torch.bfloat16: (), torch.int8: ("grass", "ihc")}
LITE0 = [
    ("onnxruntime", torch.int8, 0.995),
    ("openvino", torch.int8, 0.995),
    ("openvino", torch.bfloat16, 0.999),
    ("eager", torch.bfloat16, 0.999),
]
MOBILENETV2 = [
    ("onnxruntime", torch.int8, 0.99),
    ("openvino", torch.int8, 0.99),
    ("openvino", torch.bfloat16, 0.999),
    ("eager", torch.bfloat16, 0.999),
]
DINOV2 = [
    ("onnxruntime", torch.int8, 0.995),
    ("openvino", torch.int8, 0.995),
    ("openvino", torch.bfloat16, 0.999),
    ("eager", torch.bfloat16, 0.999),
]
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lite0": lambda: lite0(features_only=True),
    "mobilenetv2": mobilenetv2,
    "dinov2": dinov2_small,
}


@cache
def network(name: str) -> nn.Module:
    return NETWORKS[name]()


@cache
def optimized(name: str, runtime: str, dtype: torch.dtype) -> nn.Module:
    if runtimes()[runtime] is not None:
        pytest.skip(f"{runtime}: {runtimes()[runtime]}")
    supported = computes_bfloat16() if runtime == "openvino" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype is torch.bfloat16 and not supported:
        pytest.skip("no bfloat16")
    images = photographs(network(name), CALIBRATION, SIZE)
    return featx.optimize(network(name), runtime=runtime, dtype=dtype, example=images)


@torch.no_grad()
def logits(deepest: Tensor) -> Tensor:
    """Logits of Lite0's classifier in float32, from the deepest map of its extractor."""
    model = lite0()
    return model.classifier(model.act2(model.bn2(model.conv_head(deepest.float()))).mean((2, 3)))


@torch.no_grad()
def test_lite0_says_what_the_photographs_show():
    model = lite0()
    names = ("coffee", "chelsea", "motorcycle_left", "rocket")
    assert model(photographs(model, names)).argmax(1).tolist() == [
        967,
        282,
        665,
        657,
    ]  # espresso, tiger cat, moped, missile


@pytest.mark.sweep
@pytest.mark.parametrize(("runtime", "dtype", "least"), LITE0)
def test_levels_of_lite0_agree(runtime, dtype, least):
    made = optimized("lite0", runtime, dtype)
    found = agreement(made, network("lite0"), photographs(network("lite0"), JUDGED))
    assert min(found.values()) >= least, found


@pytest.mark.sweep
@pytest.mark.parametrize(("runtime", "dtype", "least"), MOBILENETV2)
def test_levels_of_mobilenetv2_agree(runtime, dtype, least):
    made = optimized("mobilenetv2", runtime, dtype)
    found = agreement(made, network("mobilenetv2"), photographs(network("mobilenetv2"), JUDGED, SIZE))
    assert min(found.values()) >= least, found
    assert 0 < len(made.in_float32) <= 1 + 51 // 4  # the first layer always stays in int8


@pytest.mark.sweep
@pytest.mark.parametrize(("runtime", "dtype", "least"), DINOV2)
def test_levels_of_dinov2_agree(runtime, dtype, least):
    made = optimized("dinov2", runtime, dtype)
    found = agreement(made, network("dinov2"), photographs(network("dinov2"), JUDGED, SIZE))
    assert min(found.values()) >= least, found


@pytest.mark.sweep
@torch.no_grad()
@pytest.mark.parametrize(("runtime", "dtype", "least"), LITE0)
def test_lite0_keeps_its_first_guess_of_photographs(runtime, dtype, least):
    model = network("lite0")
    images = photographs(model, [name for name in (*CALIBRATION, *JUDGED) if name not in UNDECIDED[dtype]])
    found, expected = (logits(one(images)[-1]).argmax(1) for one in (optimized("lite0", runtime, dtype), model))
    assert torch.equal(found, expected)


class Small(nn.Module):
    """Three convolutions, the second one in groups, with ReLUs between them."""

    feature_info = ({"chs": 8, "reduction": 1, "name": "third"},)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu = nn.Conv2d(3, 8, 3, padding=2), nn.ReLU()
        self.second, self.relu2 = nn.Conv2d(8, 8, 1, groups=4), nn.ReLU()
        self.third = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.relu2(self.second(self.relu(self.first(x)))))


def small() -> featx.FeatureExtractWrapper:
    return featx.FeatureExtractWrapper(Small().eval())


def noise(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def int8_file(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("int8") / "m.onnx"
    featx.export(small(), path, dtype=torch.int8, example=noise(), min_agreement=0.99)
    return path


def test_the_first_layer_stays_in_float32_and_the_others_do_not(int8_file):
    graph = onnx.load(int8_file).graph
    written = {name: node for node in graph.node for name in node.output}
    layers = [node for node in graph.node if node.op_type == "Conv"]
    quantized = [node.input[1] in written and written[node.input[1]].op_type == "DequantizeLinear" for node in layers]
    assert quantized == [False, True, True]


def test_a_graph_with_a_fixed_batch_size_is_calibrated_on_batches_of_that_size(int8_file, tmp_path):
    """Ranges and means over a batch equal those over its images, so the weights are the same."""
    featx.export(small(), tmp_path / "m.onnx", dtype=torch.int8, example=noise(), dynamic="none", min_agreement=0.99)
    loaded = featx.load_exported(tmp_path / "m.onnx")
    assert min(agreement(loaded, small(), noise()).values()) >= 0.99
    with pytest.raises(InputError, match="batches of 4 images of 24x24 pixels, got 1 of 24x24"):
        loaded(noise(1))
    fixed, dynamic = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        for path in (tmp_path / "m.onnx", int8_file)
    )
    assert fixed.keys() == dynamic.keys()
    for name in fixed:
        np.testing.assert_allclose(
            fixed[name], dynamic[name], rtol=1e-5, atol=1e-6
        )  # means are summed in another order


@torch.no_grad()
def test_rounded_weights_move_no_mean(tmp_path):
    pytest.importorskip("onnxruntime")
    from featx.runtime.onnx.quantization_prep import smooth_and_round

    featx.export(small(), tmp_path / "m.onnx", example=noise())
    smooth_and_round(tmp_path / "m.onnx", [image.numpy() for image in noise().split(1)], 7)  # steps that show
    tensors = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy())
        for t in onnx.load(tmp_path / "m.onnx").graph.initializer
    }
    nodes = [node for node in onnx.load(tmp_path / "m.onnx").graph.node if node.op_type == "Conv"]
    weight, bias = (tensors[name] for name in nodes[1].input[1:])
    model = Small()
    given = model.relu(model.first(noise()))
    exact = model.second(given).mean((0, 2, 3))
    corrected = nn.functional.conv2d(given, weight, bias, groups=4).mean((0, 2, 3))
    rounded = nn.functional.conv2d(given, weight, model.second.bias, groups=4).mean((0, 2, 3))
    assert (weight - model.second.weight).abs().max() > 0.01
    assert (corrected - exact).abs().max() < 1e-5 < 1e-3 < (rounded - exact).abs().max()


def test_less_agreement_than_asked_for_is_refused_and_the_advice_works():
    pytest.importorskip("onnxruntime")
    asked = {"runtime": "onnxruntime", "example": noise(), "min_agreement": 1.0}
    with pytest.raises(
        ContractError, match=r"the map third has a cosine similarity of 0\.\d+ .* min_agreement=1\.0 was"
    ) as error:
        featx.optimize(small(), dtype=torch.int8, **asked)
    assert "choose dtype=torch.bfloat16 or torch.float32" in f"{error.value}"
    made = featx.optimize(small(), dtype=torch.int8, **{**asked, "min_agreement": 0.99})
    assert min(made.agreement.values()) >= 0.99
    featx.optimize(small(), dtype=torch.bfloat16, example=noise(), min_agreement=0.999)


def test_a_file_that_agrees_less_than_asked_for_is_not_written(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ContractError, match=r"min_agreement=1\.0 was asked for"):
        featx.export(small(), tmp_path / "m.onnx", dtype=torch.int8, example=noise(), min_agreement=1.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": torch.bfloat16, "min_agreement": 1.5}, r"min_agreement=1\.5: expected a cosine similarity above 0"),
        ({"dtype": torch.bfloat16, "min_agreement": True}, r"min_agreement=True: expected a cosine similarity"),
        ({"min_agreement": 0.99}, r"min_agreement=0\.99 is for a lower precision than float32: pass dtype="),
        ({"dtype": torch.float32, "min_agreement": 0.99}, r"is for a lower precision than float32"),
    ],
)
def test_a_min_agreement_that_nothing_can_be_measured_by_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        featx.optimize(small(), **arguments)


def test_a_graph_with_nothing_to_prepare_is_left_as_it_is(tmp_path):
    pytest.importorskip("onnxruntime")
    from featx.runtime.onnx.quantization_prep import smooth_and_round

    model = Small()
    for layer in (model.first, model.second, model.third):
        layer.bias = None
    extractor = featx.FeatureExtractWrapper(model.eval())
    featx.export(extractor, tmp_path / "m.onnx", example=noise())
    before = (tmp_path / "m.onnx").read_bytes()
    smooth_and_round(tmp_path / "m.onnx", [noise(1).numpy()], 127)
    assert (tmp_path / "m.onnx").read_bytes() == before
