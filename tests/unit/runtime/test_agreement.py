"""optimize and export compare maps: for two batch sizes, and for two more image sizes if they are supported."""

import multiprocessing
import pickle

import pytest
import torch
from conftest import images, random_extractor
from support.export_cases import small
from torch import nn

import featx
from featx.runtime import runtimes
from featx.runtime.agreement import accepts, check_maps
from featx.runtime.backends.onnxruntime import OnnxRuntimeEngine
from featx.runtime.backends.openvino import OpenVinoEngine, computes_bfloat16

RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(why is not None, reason=f"{why}")) for name, why in runtimes().items()
]
X = images(2, 3, 32, 32)


@pytest.fixture(scope="module")
def built():
    """The small network on a runtime, built once."""
    kept = {}

    def build(runtime):
        if runtime not in kept:
            kept[runtime] = featx.optimize(small(), runtime=runtime, example=X)
        return kept[runtime]

    return build


@torch.no_grad()
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_image_that_is_not_finite_gives_maps_that_are_not(runtime, value, built):
    x = X.clone()
    x[1, 0, 5, 5] = value
    for got, clean in zip(built(runtime)(x), built(runtime)(X), strict=True):
        assert not got[1].isfinite().all()
        torch.testing.assert_close(got[0], clean[0])


@torch.no_grad()
@pytest.mark.parametrize("runtime", [one for one in RUNTIMES if one.values != ("eager",)])
def test_autocast_changes_nothing_that_was_built_for_a_dtype(runtime, built):
    expected = built(runtime)(X)
    with torch.autocast("cpu", torch.bfloat16):
        got = built(runtime)(X)
    assert all(map(torch.equal, got, expected))


@torch.no_grad()
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_spawned_process_gets_the_same_maps(runtime, built):
    expected = built(runtime)(X)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pickle.loads(pool.apply(maps_of, (pickle.dumps(built(runtime)), X)))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def maps_of(pickled, x):
    torch.set_num_threads(1)
    with torch.no_grad():
        return pickle.dumps(pickle.loads(pickled)(x))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_model_whose_weights_are_not_finite_is_refused(runtime):
    model = small()
    model.a[0].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(featx.ArgumentError, match=r"own map a\.0 holds values that are not finite"):
        featx.optimize(model, runtime=runtime)


class Wrong(nn.Module):
    """Changes an engine's outputs for some images."""

    def __init__(self, when, change):
        super().__init__()
        self.when, self.change = when, change

    def patch(self, monkeypatch, kind=OnnxRuntimeEngine):
        run = kind.__call__

        def call(engine, x):
            maps = run(engine, x)
            return [self.change(map_) for map_ in maps] if self.when(x) else maps

        monkeypatch.setattr(kind, "__call__", call)


def refuse(_):
    raise RuntimeError("only support none or relu\nand a second line")


@pytest.mark.parametrize(
    "when",
    [lambda x: True, lambda x: len(x) == 2, lambda x: x.shape[2] % 2 == 1, lambda x: x.shape[2] > x.shape[3]],
    ids=["always", "two images", "odd sides", "tall"],
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda map_: map_ + map_.abs().max() / 50, "differs by .* for [12] of"),
        (lambda map_: map_[..., :-1], "maps of other shapes"),
        (refuse, r"cannot run the model for . of \d+x\d+ pixels \(only support none or relu\): choose"),
    ],
    ids=["values", "shapes", "error"],
)
def test_what_computes_something_else_is_not_returned(when, change, message, monkeypatch):
    Wrong(when, change).patch(monkeypatch)
    with pytest.raises(featx.ContractError, match=message):
        featx.optimize(small(), runtime="onnxruntime")


@pytest.mark.skipif(runtimes()["openvino"] is not None or not computes_bfloat16(), reason="no bfloat16")
def test_a_lower_precision_that_is_worse_at_another_size_is_not_returned(monkeypatch):
    Wrong(lambda x: x.shape[2] % 2 == 1, lambda map_: map_.flip(1)).patch(monkeypatch, OpenVinoEngine)
    with pytest.raises(featx.ContractError, match="has a cosine similarity of"):
        featx.optimize(small(), runtime="openvino", dtype=torch.bfloat16)


def test_what_was_built_for_one_batch_and_size_runs_on_that():
    model = random_extractor("resnet18", out_indices=[1])
    made = featx.optimize(model, runtime="eager", example=X)
    assert check_maps(made, model, X, X[:1], torch.float32) is None


def test_a_model_may_have_an_attribute_of_the_name_description():
    model = small()
    model._inner.description = "two convolutions"
    made = featx.optimize(model, runtime="eager", example=X)
    assert made._inner.description == model._inner.description
    assert accepts(made, (1, 3, 64, 64))


@torch.no_grad()
@pytest.mark.sweep
@pytest.mark.parametrize("name", ["timm/resnet33ts", "timm/seresnet33ts", "timm/eca_resnet33ts"])
def test_activations_other_than_relu_follow_sums(name):
    model = random_extractor(name)
    made = featx.optimize(model, runtime="onnxruntime", example=images(1, 3, 64, 64))
    for got, expected in zip(made(images(3, 3, 64, 64)), model(images(3, 3, 64, 64)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
