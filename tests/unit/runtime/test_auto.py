"""runtime="auto": the selected runtime, its measurements, and their cache."""

import pytest
import torch
from conftest import images, randomize, worst
from support.two_level_net import Net, net

import featx
from featx import FeatureExtractWrapper
from featx.runtime import Choice, auto, clear_cache, runtimes
from featx.runtime.optimized import OptimizedExtractor

X = images(6, 3, 64, 64)
INSTALLED = [name for name, lacking in runtimes().items() if lacking is None]
pytestmark = pytest.mark.usefixtures("tolerant_of_torch")
needs_both = pytest.mark.skipif(len(INSTALLED) < 3, reason="no ONNX Runtime, or no OpenVINO")


class Clock:
    """A clock by which a forward takes the seconds per image that a table states for its runtime."""

    def __init__(self, monkeypatch, **seconds: float) -> None:
        self.now, self.forwards = 0.0, []
        forward = OptimizedExtractor.forward

        def timed(extractor, x):
            self.now += seconds[extractor.runtime] * len(x)
            self.forwards.append((extractor.runtime, len(x)))
            return forward(extractor, x)

        monkeypatch.setattr(OptimizedExtractor, "forward", timed)
        for name in ("process_time", "perf_counter"):
            monkeypatch.setattr(auto, name, lambda: self.now)


@needs_both
@pytest.mark.parametrize("runtime", INSTALLED)
def test_the_fastest_is_chosen_and_its_figures_are_reported(monkeypatch, runtime):
    seconds = dict.fromkeys(INSTALLED, 0.02) | {runtime: 0.015}
    Clock(monkeypatch, **seconds)
    made = featx.optimize(net(), runtime="auto", example=X)
    assert made.runtime == made.choice.runtime == runtime
    assert made.choice.milliseconds == pytest.approx({name: 1e3 * taken for name, taken in seconds.items()})
    assert (made.choice.refused, made.choice.threads, made.choice.batch) == ({}, torch.get_num_threads(), 6)
    assert made.choice.size == (64, 64)
    assert worst(made, net(), X) < 1e-4


@needs_both
def test_the_measurement_is_short_whatever_a_forward_takes(monkeypatch):
    for each in (1e-4, 0.01, 0.1):
        clear_cache()
        with monkeypatch.context() as patch:
            clock = Clock(patch, eager=each, onnxruntime=each, openvino=each)
            compared = sum_of_comparisons(patch, clock)
            featx.optimize(net(), runtime="auto", example=X)
            assert clock.now - compared[0] <= 3


def sum_of_comparisons(patch, clock):
    """Seconds of forwards that ran before the measurement, in a list of one number."""
    spent, measured = [0.0], auto.choose
    patch.setattr(auto, "choose", lambda *words: spent.__setitem__(0, clock.now) or measured(*words))
    return spent


@needs_both
def test_what_is_far_slower_on_one_image_is_not_measured_on_batches(monkeypatch):
    clock = Clock(monkeypatch, eager=0.02, onnxruntime=0.01, openvino=0.011)
    compared = sum_of_comparisons(monkeypatch, clock)
    made = featx.optimize(net(), runtime="auto", example=X)
    assert compared[0] > 0
    assert made.choice.milliseconds["eager"] == pytest.approx(20)
    assert [size for runtime, size in clock.forwards if runtime == "eager"][-1] == 1


@needs_both
def test_the_choice_is_remembered_for_the_same_images_threads_and_runtimes(monkeypatch):
    clock = Clock(monkeypatch, eager=0.02, onnxruntime=0.015, openvino=0.018)
    built = featx.optimize(net(), runtime="auto", example=X)
    before = len(clock.forwards)
    found = featx.optimize(net(), runtime="auto", example=X)
    assert (found.choice, found.runtime) == (built.choice, "onnxruntime")
    assert len(clock.forwards) == before
    featx.optimize(net(), runtime="auto", example=X[:1])
    assert len(clock.forwards) > before
    before = len(clock.forwards)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert featx.optimize(net(), runtime="auto", example=X).choice.threads == 7
    assert len(clock.forwards) > before


@needs_both
def test_what_cannot_run_the_model_is_left_out_with_its_reason(monkeypatch):
    build = auto.built

    def failing(runtime, request):
        if runtime == "openvino":
            raise featx.ContractError("the map a differs by 1.0e+00 of its largest value from the model's")
        return build(runtime, request)

    monkeypatch.setattr(auto, "built", failing)
    made = featx.optimize(net(), runtime="auto", example=X)
    assert made.choice.refused == {"openvino": "the map a differs by 1.0e+00 of its largest value from the model's"}
    assert made.choice.milliseconds.keys() == {"eager", "onnxruntime"}


def test_what_is_not_installed_is_left_out_with_its_reason(monkeypatch):
    monkeypatch.setattr("featx.runtime.available.find_spec", lambda package: None)
    made = featx.optimize(net(), runtime="auto", example=X)
    assert made.choice == Choice(
        "eager",
        {},
        {
            "onnxruntime": "runtime='onnxruntime' cannot be used: it needs onnx and onnxruntime: pip "
            "install 'featx[onnx]'",
            "openvino": "runtime='openvino' cannot be used: it needs onnx and openvino: pip install 'featx[openvino]'",
        },
        torch.get_num_threads(),
        6,
        (64, 64),
    )


@needs_both
def test_a_dtype_leaves_out_what_does_not_compute_in_it():
    made = featx.optimize(net(), runtime="auto", example=X, dtype=torch.bfloat16)
    assert made(X)[0].dtype is torch.bfloat16
    assert "it computes in (torch.float32, torch.int8), not in torch.bfloat16" in made.choice.refused["onnxruntime"]
    assert made.choice.runtime in ("eager", "openvino")
    assert min(made.agreement.values()) > 0.99


def test_a_dtype_that_nothing_computes_in_is_refused():
    with pytest.raises(featx.ArgumentError, match=r"no runtime can be used: .*dtype=torch.int16: choose one of"):
        featx.optimize(net(), runtime="auto", dtype=torch.int16)


@needs_both
def test_the_choice_can_be_pinned(monkeypatch):
    Clock(monkeypatch, eager=0.02, onnxruntime=0.015, openvino=0.018)
    chosen = featx.optimize(net(), runtime="auto", example=X)
    pinned = featx.optimize(net(), runtime=chosen.runtime, example=X)
    assert pinned.choice is None
    assert all(map(torch.equal, pinned(X), chosen(X)))


def test_images_that_the_model_does_not_take_are_refused():
    with pytest.raises(featx.InputError, match="channels"):
        featx.optimize(net(), runtime="auto", example=images(1, 4, 64, 64))


def test_a_model_whose_own_maps_are_not_finite_is_refused():
    broken = Net()
    randomize(broken).a_0.weight.data.fill_(torch.nan)
    with pytest.raises(featx.ArgumentError, match="the model's own map a_0 holds values that are not finite"):
        featx.optimize(FeatureExtractWrapper(broken.eval()), runtime="auto", example=X)


@needs_both
def test_without_a_cache_a_graph_is_written_once_and_nothing_is_kept(monkeypatch, own_cache):
    from featx.runtime import graph_files

    write, written = graph_files.write, []
    monkeypatch.setattr(graph_files, "write", lambda *words: written.append(1) or write(*words))
    made = featx.optimize(net(), runtime="auto", example=X, cache=False)
    assert len(written) == 1
    assert not own_cache.exists()
    assert worst(made, net(), X) < 1e-4


@needs_both
def test_a_remembered_choice_that_is_damaged_is_made_again(monkeypatch, own_cache):
    Clock(monkeypatch, eager=0.02, onnxruntime=0.015, openvino=0.018)
    featx.optimize(net(), runtime="auto", example=X)
    for path in own_cache.rglob("facts.json"):
        path.write_text("{}")
    assert featx.optimize(net(), runtime="auto", example=X).choice.runtime == "onnxruntime"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_eager():
    made = featx.optimize(net().cuda(), runtime="auto", example=X.cuda())
    assert made.choice.runtime == "eager"
    assert "it runs on cpu, and the model is on ['cuda']" in made.choice.refused["openvino"]
