"""`featx bench`: measurements, output and advice."""

import json

import pytest
import torch
from support.cli import run as run

import featx
from featx.commands.bench import advice
from featx.commands.benchmark import Row, Task, measure
from featx.runtime import runtimes

NAME = "test_efficientnet"
needs_onnx = pytest.mark.skipif(runtimes()["onnxruntime"] is not None, reason="no ONNX Runtime")

pytestmark = pytest.mark.usefixtures("tolerant_of_torch", "this_process")


@pytest.fixture
def this_process(monkeypatch):
    """The process of the tests stays as it is, and no model is run more often than it must be."""
    monkeypatch.setattr("featx.runtime.allocator.keep_freed_memory", lambda: "kept")
    monkeypatch.setattr("featx.commands.benchmark.TURNS", (1, 2))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def small(name=NAME, dtype=torch.float32, batch=2):
    return Task(name, batch, 32, torch.device("cpu"), dtype)


@needs_onnx
def test_every_runtime_is_measured_against_the_model_as_it_comes():
    told = []
    plain, eager, other = measure(small(), ["eager", "onnxruntime"], told.append)
    assert [row.runtime for row in (plain, eager, other)] == ["as it comes", "eager", "onnxruntime"]
    assert [row.chosen for row in (plain, eager, other)].count(True) == 1
    assert not plain.chosen
    assert plain.ratio == 1
    assert plain.difference is None
    for row in (eager, other):
        assert row.seconds > 0
        assert row.images_per_second == pytest.approx(2 / row.seconds)
        assert row.ratio == pytest.approx(plain.seconds / row.seconds)
        assert 0 <= row.difference < 1e-4
        assert row.cosine is None
        assert row.ready > 0
    assert told == [f"{NAME}, batch 2: {what} …" for what in ("making eager", "making onnxruntime", "measuring")]


def test_in_a_lower_precision_the_similarity_of_maps_is_reported_instead_of_their_difference():
    plain, half = measure(small(dtype=torch.bfloat16), ["eager"], lambda _: None)
    assert (plain.dtype, half.dtype) == ("float32", "bfloat16")
    assert half.difference is None
    assert 0.99 < half.cosine < 1


def test_a_model_that_a_runtime_refuses_is_reported_and_the_others_are_measured(monkeypatch):
    optimize = featx.optimize

    def refusing(model, *, runtime, **options):
        if runtime == "openvino":
            raise featx.ContractError("it cannot be captured")
        return optimize(model, runtime=runtime, **options)

    monkeypatch.setattr(featx, "optimize", refusing, raising=False)
    _, refused, eager = measure(small(), ["openvino", "eager"], lambda _: None)
    assert refused.refused == "it cannot be captured"
    assert refused.seconds is None
    assert eager.seconds is not None


def test_it_prints_a_table_and_ends_with_the_line_to_use(run):
    ran = run("bench", NAME, "--batch-size", "1,2", "--size", "32", "--runtime", "eager", "--threads", "1")
    assert ran.status == 0
    rows = [line.split("float32")[0].split(maxsplit=1) for line in ran.out.splitlines() if "float32" in line]
    ways = [(batch, way.strip()) for batch, way in rows]
    assert ways == [("1", "as it comes"), ("1", "eager"), ("2", "as it comes"), ("2", "eager")]
    assert "threads 1, load" in ran.out
    assert "memory kept" in ran.out
    assert ran.out.strip().splitlines()[-1].startswith(f"{NAME}: ")


def test_everything_measured_can_be_had_as_json(run, monkeypatch):
    monkeypatch.setattr("featx.runtime.runtimes", lambda: {"eager": None, "openvino": "it needs openvino"})
    ran = run("bench", NAME, "--batch-size", "1", "--size", "32", "--json")
    assert ran.status == 0
    told = json.loads(ran.out)
    assert [row["runtime"] for row in told["rows"]] == ["as it comes", "eager"]
    assert told["rows"][1]["ready"] > 0
    assert told["missing"] == {"openvino": "it needs openvino"}
    assert told["machine"]["torch"] == torch.__version__


def test_what_is_not_installed_is_named_with_how_to_get_it(run, monkeypatch):
    monkeypatch.setattr("featx.runtime.runtimes", lambda: {"eager": None, "openvino": "it needs openvino: pip install"})
    ran = run("bench", NAME, "--batch-size", "1", "--size", "32")
    assert "not measured: openvino: it needs openvino: pip install" in ran.out


def rows_of(ratios, chosen, dtype="float32"):
    """Rows of batches of 1, 2, …: ratios by way, and the way that is chosen for each batch."""
    return [
        Row("m", batch, way, dtype, ratio=ratio, chosen=chosen[batch - 1] == way)
        for way, both in ratios.items()
        for batch, ratio in enumerate(both, 1)
    ]


RATIOS = {"as it comes": [1, 1], "eager": [2.0, 1.0], "openvino": [1.5, 1.6]}


def test_the_advice_is_what_auto_takes():
    told = advice("m", rows_of(RATIOS, ["openvino", "openvino"]))
    assert told == "m: 1.55 times as fast with featx.optimize(model, runtime='openvino', example=images)"


def test_the_advice_is_auto_where_it_takes_another_runtime_for_other_batches():
    assert advice("m", rows_of(RATIOS, ["eager", "openvino"])) == (
        "m: 1.79 times as fast with featx.optimize(model, runtime='auto', example=images), which takes eager for "
        "batches of 1, openvino for batches of 2"
    )


def test_the_advice_names_the_dtype_where_it_is_lower():
    told = advice("m", rows_of({"as it comes": [1]}, [""]) + rows_of({"openvino": [3.0]}, ["openvino"], "bfloat16"))
    assert told.endswith("featx.optimize(model, runtime='openvino', dtype=torch.bfloat16, example=images)")


@pytest.mark.parametrize("chosen", [["eager", "eager"], ["", ""]])
def test_where_nothing_is_gained_or_can_be_used_the_model_is_used_as_it_comes(chosen):
    assert "use it as it comes" in advice("m", rows_of({"as it comes": [1, 1], "eager": [1.02, 1.04]}, chosen))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "1,x"], "--batch-size 1,x: expected numbers of images separated by commas"),
        (["--batch-size", "0"], "--batch-size 0: expected numbers of images"),
        (["--runtime", "eager,tensorrt"], "no tensorrt; choose among eager, onnxruntime"),
        (["--device", "abacus"], "--device abacus: "),
        (["--device", "meta"], "--device meta: choose cpu, or cuda where PyTorch sees a GPU"),
    ],
)
def test_mistakes_are_reported(run, words, message):
    ran = run("bench", NAME, *words)
    assert ran.status == 2
    assert message in ran.err


def test_a_name_that_no_model_has_is_reported(run):
    ran = run("bench", "resnet188")
    assert ran.status == 2
    assert "did you mean resnet18" in ran.err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_measures_on_a_gpu():
    plain, eager = measure(Task(NAME, 2, 64, torch.device("cuda"), torch.float16), ["eager"], lambda _: None)
    assert plain.mebibytes > 0
    assert eager.cosine > 0.99
