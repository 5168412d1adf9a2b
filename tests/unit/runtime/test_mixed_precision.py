"""Layers that stay in float32 in a lower precision: their number, their selection, and their effect."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from math import nan

import onnx
import pytest
import torch
from conftest import images, random_extractor
from torch import Tensor, nn

import featx
from featx.errors import ContractError
from featx.runtime import runtimes
from featx.runtime.agreement import agreement
from featx.runtime.description import from_json, to_json
from featx.runtime.mixed_precision import kept_layers, target_similarity
from featx.runtime.onnx.file import read_onnx
from featx.runtime.optimized import eager
from featx.runtime.passes.lowering import layers_in_order
from featx.runtime.passes.prepare import prepare

LOSSY = "mobilenetv2_035"  # whose random weights lose in bfloat16 what its first layers can save
FIRST = ["conv_stem", "blocks.0.0.conv_dw", "blocks.0.0.conv_pw", "blocks.1.0.conv_pw", "blocks.1.0.conv_dw"]
LAYERS = tuple(f"layer{number}" for number in range(32))


def bfloat16(name: str, runtime: str = "eager", **arguments):
    if runtimes()[runtime] is not None:
        pytest.skip(f"{runtime}: {runtimes()[runtime]}")
    if runtime == "openvino":
        computes = pytest.importorskip("featx.runtime.backends.openvino").computes_bfloat16
        if not computes():
            pytest.skip("no bfloat16")
    arguments = {"example": images(2, 3, 64, 64), "cache": False, **arguments}
    return featx.optimize(random_extractor(name), dtype=torch.bfloat16, runtime=runtime, **arguments)


@cache
def lossy(runtime: str = "eager"):
    return bfloat16(LOSSY, runtime)


def mixed(name: str, count: int):
    """The extractor in bfloat16 with its first layers in float32, and all its layers."""
    extractor, seen = prepare(random_extractor(name), images(1, 3, 64, 64))
    layers = layers_in_order(extractor, seen)
    return eager(extractor, torch.bfloat16, torch.contiguous_format, layers[:count]), layers


def least(made, name: str) -> float:
    return min(agreement(made, random_extractor(name), images(2, 3, 64, 64, seed=1)).values())


@pytest.mark.parametrize(
    ("reached", "count", "trials"),
    [
        ([0.999], 0, 1),
        ([0.99, 0.999], 2, 2),
        ([0.99, 0.98, 0.9991], 4, 3),
        ([0.99, 0.98, 0.99, 0.999], 8, 4),
        ([0.9, 0.95, 0.98, 0.981], 4, 4),  # which comes close to the best
        ([0.9, 0.8, 0.8, 0.8], 0, 4),
        ([nan, 0.98, nan, 0.9], 2, 4),  # maps overflow
        ([nan] * 4, 0, 4),
    ],
)
def test_the_smallest_number_of_layers_that_reaches_the_similarity_stays(reached, count, trials):
    tried = []

    def similarity(kept):
        tried.append(kept)
        return reached[len(tried) - 1]

    assert kept_layers(lambda: LAYERS, similarity, 0.999) == LAYERS[:count]
    assert tried == [LAYERS[:number] for number in (0, 2, 4, 8)[:trials]]


def test_layers_are_ranked_only_where_some_have_to_stay():
    assert kept_layers(lambda: pytest.fail("ranked"), lambda kept: 0.999, 0.999) == ()


@pytest.mark.parametrize("number", [0, 1, 3])
def test_all_layers_of_small_networks_are_lowered(number):
    assert kept_layers(lambda: LAYERS[:number], lambda kept: 0.5, 0.999) == ()


def test_the_similarity_wanted_is_at_least_what_the_user_asks_for():
    assert target_similarity(torch.bfloat16, None) == 0.999
    assert target_similarity(torch.bfloat16, 0.9) == 0.999
    assert target_similarity(torch.int8, 0.995) == 0.995
    assert target_similarity(torch.float32, None) == 0.0


def test_layers_come_in_the_order_of_execution():
    _, layers = mixed(LOSSY, 0)
    assert [*layers[:5]] == FIRST
    assert len(layers) == 51


def test_first_layers_stay_in_float32_where_bfloat16_loses_too_much():
    made = lossy()
    everything_lowered, layers = mixed(LOSSY, 0)
    assert made.in_float32 == layers[: len(made.in_float32)] != ()
    assert least(everything_lowered, LOSSY) < 0.995 < 0.996 < least(made, LOSSY)
    dtypes = {path: made.get_submodule(path).weight.dtype for path in layers}
    in_float32 = [path for path, dtype in dtypes.items() if dtype is torch.float32]
    assert tuple(in_float32) == made.in_float32


def test_nothing_stays_in_float32_where_it_is_not_needed():
    made = bfloat16("test_efficientnet")
    assert made.in_float32 == ()
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
    assert not any(module._forward_pre_hooks for module in made.modules())


def test_nothing_is_measured_where_precision_is_not_lowered(monkeypatch):
    monkeypatch.setattr("featx.runtime.builds.kept_layers", lambda *_: pytest.fail("measured"))
    assert featx.optimize(random_extractor("test_efficientnet"), cache=False).in_float32 == ()
    half = random_extractor("test_efficientnet").bfloat16()
    assert featx.optimize(half, example=images(2, 3, 64, 64).bfloat16(), cache=False).in_float32 == ()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_images_of_any_dtype_give_maps_in_the_lower_precision(dtype):
    made = lossy()
    expected, maps = made(images(2, 3, 64, 64)), made(images(2, 3, 64, 64).to(dtype))
    assert {map_.dtype for map_ in maps} == {torch.bfloat16}
    if dtype is torch.float32:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, expected, strict=True))


@torch.no_grad()
def test_the_images_are_not_rounded_before_a_first_layer_in_float32():
    made, seen = copy.deepcopy(lossy()), []
    made.get_submodule("conv_stem").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = images(2, 3, 64, 64)
    made(x)
    assert torch.equal(seen[0], x)


@pytest.mark.parametrize(
    "name", ["ecaresnet26t", "convnext_atto", "vit_tiny_patch16_224", "hrnet_w18_small", "mobilevit_xxs"]
)
def test_any_family_takes_layers_in_float32(name):
    size = random_extractor(name)._inner.fixed_size or (64, 64)
    extractor, seen = prepare(random_extractor(name), images(1, 3, *size))
    kept = layers_in_order(extractor, seen)[:6]
    made = eager(extractor, torch.bfloat16, torch.contiguous_format, kept)
    found = agreement(made, random_extractor(name), images(2, 3, *size))
    assert min(found.values()) > 0.999
    assert {made.get_submodule(path).weight.dtype for path in kept} == {torch.float32}


def test_tokens_and_maps_have_one_dtype():
    model = random_extractor("vit_tiny_patch16_224", output="tokens")
    extractor, seen = prepare(model, images(1, 3, 224, 224))
    made = eager(extractor, torch.bfloat16, torch.contiguous_format, layers_in_order(extractor, seen)[:3])
    with torch.no_grad():
        assert {tensor.dtype for pair in made(images(1, 3, 224, 224)) for tensor in pair} == {torch.bfloat16}


def test_only_layers_in_float32_and_those_that_read_them_convert_their_inputs():
    made = lossy()
    converting = [name for name, module in made.named_modules() if module._forward_pre_hooks]
    assert converting[: len(made.in_float32)] == [*made.in_float32]
    assert 0 < len(converting) - len(made.in_float32) <= 3
    everything = mixed(LOSSY, len(made.in_float32))[0]
    assert sum(bool(module._forward_pre_hooks) for module in everything.modules()) == 51
    assert min(agreement(everything, made, images(2, 3, 64, 64)).values()) > 0.9999


def test_keys_of_the_state_dict_stay():
    assert lossy().state_dict().keys() == featx.optimize(random_extractor(LOSSY)).state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_mixed_extractor_can_be_copied_and_pickled(copied):
    made, x = lossy(), images(2, 3, 64, 64)
    twin = copied(made)
    assert twin.in_float32 == made.in_float32
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(twin(x), made(x), strict=True))


@torch.no_grad()
def test_a_mixed_extractor_that_is_converted_computes_in_that_dtype():
    made, x = copy.deepcopy(lossy()).float(), images(2, 3, 64, 64)
    assert {map_.dtype for map_ in made(x)} == {torch.float32}


@torch.no_grad()
def test_pytorchs_compiler_takes_a_mixed_extractor():
    made, x = mixed("test_efficientnet", 3)[0], images(2, 3, 64, 64)
    compiled = torch.compile(made, fullgraph=True, backend="eager")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(compiled(x), made(x), strict=True))


@pytest.mark.parametrize("runtime", ["eager", "openvino"])
def test_threads_get_the_maps_of_their_images(runtime):
    made = lossy(runtime)
    batches = [images(2, 3, 64, 64, seed=seed) for seed in range(8)]
    with torch.no_grad():
        expected = [made(batch) for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(torch.no_grad()(made), batches))
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_less_agreement_than_asked_for_is_refused():
    with pytest.raises(ContractError, match=r"has a cosine similarity of 0\.99\d+ .* min_agreement=0\.9999 was asked"):
        bfloat16(LOSSY, min_agreement=0.9999)
    assert min(bfloat16("test_efficientnet", min_agreement=0.9999).agreement.values()) >= 0.9999


@pytest.mark.parametrize("name", [LOSSY, "tf_mobilenetv3_small_minimal_100"])  # the second one pads on one side
def test_openvino_computes_exactly_in_the_layers_that_stay(name, tmp_path):
    bfloat16(name, "openvino")  # skips
    from featx.runtime.backends.engine import EngineExtractor
    from featx.runtime.backends.openvino import OpenVinoEngine

    model, x = random_extractor(name, out_indices=[0]), images(1, 3, 64, 64)
    featx.export(model, tmp_path / "m.onnx", example=x)
    said = replace(read_onnx(tmp_path / "m.onnx"), computes="bfloat16", dtype=torch.bfloat16)
    loss = {}
    for kept in ((), layers_in_order(*prepare(model, x))):
        exact = replace(said, in_float32=kept, dtype=torch.float32)
        made = EngineExtractor(OpenVinoEngine(tmp_path / "m.onnx", exact), exact)
        loss[len(kept)] = 1 - min(agreement(made, model, x).values())
    assert max(loss) > 0
    assert loss[max(loss)] < 1e-9 < 1e-6 < loss[0]


def test_openvino_keeps_layers_by_its_own_maps(tmp_path):
    kept = bfloat16(LOSSY, "openvino", cache=tmp_path)
    again = bfloat16(LOSSY, "openvino", cache=tmp_path)  # from the file in the cache
    assert kept.in_float32 == again.in_float32 == mixed(LOSSY, 0)[1][: len(kept.in_float32)] != ()
    assert least(kept, LOSSY) > least(mixed(LOSSY, 0)[0], LOSSY)
    with torch.no_grad():
        assert {map_.dtype for map_ in kept(images(2, 3, 64, 64))} == {torch.bfloat16}


class Convolutions(nn.Module):
    """A chain of convolutions."""

    def __init__(self, count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Conv2d(3 if n == 0 else 8, 8, 3, padding=1) for n in range(count)))
        self.feature_info = ({"chs": 8, "reduction": 1, "name": f"layers.{count - 1}"},)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_networks_of_few_layers_get_an_int8_file(count, tmp_path):
    pytest.importorskip("onnxruntime")
    model, x = featx.FeatureExtractWrapper(Convolutions(count).eval()), images(4, 3, 24, 24)
    featx.export(model, tmp_path / "m.onnx", dtype=torch.int8, example=x)
    loaded = featx.load_exported(tmp_path / "m.onnx")
    assert loaded.in_float32 == ("layers.0",)
    assert min(agreement(loaded, model, x).values()) > 0.999
    nodes = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert nodes.count("Conv") == count
    assert ("DequantizeLinear" in nodes) == (count > 1)


@pytest.mark.parametrize("dynamic", ["auto", "none"])
def test_the_layers_that_int8_loses_most_in_stay_in_float32(dynamic, tmp_path):
    """One channel between two layers is 300 times as large as the others, whose scale it determines."""
    pytest.importorskip("onnxruntime")
    from featx.runtime.onnx.quantize import quantize

    network, x = Convolutions(18), images(4, 3, 24, 24)
    with torch.no_grad():
        for layer in network.layers:
            layer.bias.zero_()  # which the maps would consist of otherwise
            layer.weight *= 3**0.5  # so that maps stay as large as the images
        network.layers[15].weight[0] *= 300
        network.layers[16].weight[:, 0] /= 300
    model = featx.FeatureExtractWrapper(network.eval())
    featx.export(model, tmp_path / "m.onnx", example=x, dynamic=dynamic)
    kept = quantize(tmp_path / "m.onnx", tmp_path / "int8.onnx", x, 0.99)
    assert kept == ("layers.0", "layers.15", "layers.16")


def test_a_description_keeps_the_layers_in_float32(tmp_path):
    pytest.importorskip("onnxruntime")
    featx.export(random_extractor("test_efficientnet"), tmp_path / "m.onnx")
    said = read_onnx(tmp_path / "m.onnx")
    assert said.in_float32 == ()
    kept = replace(said, in_float32=("conv_stem", "blocks.0.0.conv"))
    assert from_json(to_json(kept).encode(), tmp_path) == kept
