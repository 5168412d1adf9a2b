"""runtime="auto" of extractions: what is recorded, and that all rows of a folder come from one runtime."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import relative_difference
from support.extraction import ten_colors
from support.fake_ray import Asked
from support.two_level_net import net

import featx
from featx import ArgumentError, FeatureDataset, MissingPackageError, OutputError
from featx.bulk import find_items, inference, merge
from featx.bulk.config import Recipe, Resources
from featx.bulk.extraction import plan_job
from featx.bulk.meta import require_meta, write_meta
from featx.bulk.pipeline import Worker
from featx.bulk.ray_runner import OnRay
from featx.commands.extract import Runtime as Offered
from featx.runtime import Choice, auto, runtimes

INSTALLED = [name for name, lacking in runtimes().items() if lacking is None]
pytestmark = [
    pytest.mark.usefixtures("tolerant_of_torch"),
    pytest.mark.skipif(len(INSTALLED) < 3, reason="no ONNX Runtime, or no OpenVINO"),
]


@pytest.fixture
def images(tmp_path) -> Path:
    return ten_colors(tmp_path / "in")


@pytest.fixture
def fastest(monkeypatch, tmp_path):
    """Decides which runtime is the fastest on this machine from now on; the list has what was measured on."""
    asked: list[tuple[int, ...]] = []

    def decide(runtime: str) -> list[tuple[int, ...]]:
        def choose(made, images, refused):
            asked.append(tuple(images.shape))
            return Choice(runtime, dict.fromkeys(made, 1.0), refused)

        monkeypatch.setattr(auto, "choose", choose)
        monkeypatch.setenv("FEATX_CACHE", str(tmp_path / f"cache-{runtime}"))  # another machine has another cache
        return asked

    return decide


def run(images, out, runtime="auto", **options):
    options = {"size": 32, "batch_size": 4, "rows_per_shard": 3, "streams": 2, **options}
    return featx.extract(images, net(), out, runtime=runtime, **options)


def recorded(out: Path) -> str:
    return json.loads((out / "meta.json").read_text())["decided"]["runtime"]


def test_the_command_offers_every_runtime():
    assert {one.value for one in Offered} == {"plain", "auto", *runtimes()}


@pytest.mark.parametrize("runtime", INSTALLED)
def test_the_runtime_that_was_chosen_is_recorded_and_used(tmp_path, images, fastest, runtime, monkeypatch):
    measured, run_on, call = fastest(runtime), set(), inference.InferenceModel.__call__
    monkeypatch.setattr(
        inference.InferenceModel,
        "__call__",
        lambda self, pixels: run_on.add(self.extractor.runtime) or call(self, pixels),
    )
    run(images, tmp_path / "out")
    monkeypatch.undo()
    assert (recorded(tmp_path / "out"), run_on) == (runtime, {runtime})
    assert measured == [(4, 3, 32, 32)]
    run(images, tmp_path / "plain", "plain")
    for ours, plain in zip(FeatureDataset(tmp_path / "out"), FeatureDataset(tmp_path / "plain"), strict=True):
        for level, map_ in ours.maps.items():
            assert relative_difference(map_, plain.maps[level]) < 1e-4


def test_a_run_on_another_machine_resumes_with_the_runtime_of_the_folder(tmp_path, images, fastest):
    fastest("onnxruntime")
    run(images, tmp_path / "out", stopped=lambda: True)
    assert len([*(tmp_path / "out").glob("*.safetensors")]) == 1
    measured = fastest("openvino")
    before = len(measured)
    assert run(images, tmp_path / "out").left == 0
    assert recorded(tmp_path / "out") == "onnxruntime"
    assert len(measured) == before


def test_a_folder_grows_with_the_runtime_that_it_was_begun_with(tmp_path, images, fastest):
    few = sorted(images.iterdir())[:4]
    fastest("openvino")
    run(few, tmp_path / "out")
    fastest("eager")
    assert run(images.iterdir(), tmp_path / "out").written == 9  # and one that is no image
    assert recorded(tmp_path / "out") == "openvino"


def test_a_runtime_that_is_named_and_is_not_that_of_the_folder_is_refused(tmp_path, images, fastest):
    fastest("openvino")
    run(images, tmp_path / "out")
    with pytest.raises(OutputError, match=r'runtime: "openvino" there, "eager" now'):
        run(images, tmp_path / "out", "eager")


def test_a_runtime_of_the_folder_that_is_not_installed_here_is_named(tmp_path, images, fastest, monkeypatch):
    fastest("openvino")
    run(images, tmp_path / "out", stopped=lambda: True)
    monkeypatch.setattr("featx.runtime.available.find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(MissingPackageError, match=r"runtime='openvino' cannot be used: .* pip install"):
        run(images, tmp_path / "out")


def test_a_folder_of_a_runtime_that_is_gone_is_refused(tmp_path, images):
    run(images, tmp_path / "out", "plain")
    meta = require_meta(tmp_path / "out")
    earlier = replace(meta.plan, decided={**meta.plan.decided, "runtime": "onednn"})
    write_meta(tmp_path / "out", replace(meta, generations=(earlier,)))
    message = "out was made with runtime='onednn', which this version of featx does not have: name a new folder"
    with pytest.raises(OutputError, match=message):
        run(images, tmp_path / "out")


def test_jobs_that_begin_at_once_on_other_machines_use_one_runtime(tmp_path, images, fastest, monkeypatch):
    from featx.bulk import extraction

    planned, begun = extraction.plan_job, []

    def slowly(*words):
        job = planned(*words)
        if not begun:  # before this one describes the folder, another has
            begun.append(True)
            fastest("onnxruntime")
            run(images, tmp_path / "out", shard="1/2")
        return job

    monkeypatch.setattr(extraction, "plan_job", slowly)
    fastest("openvino")
    run(images, tmp_path / "out", shard="0/2")
    assert recorded(tmp_path / "out") == "onnxruntime"
    assert len(FeatureDataset(tmp_path / "out")) == 9  # and one that is no image


def test_workers_of_other_processes_receive_the_runtime(tmp_path, images, fastest):
    fastest("openvino")
    resources = Resources(4, streams=2).settled()
    job = plan_job(tmp_path / "out", find_items(images), net(), "net", Recipe(size=32, runtime="auto"), resources)
    fastest("eager")
    assert job.recipe.runtime == job.plan.decided["runtime"] == "openvino"
    assert Worker(replace(job, model=None))._model.runtime == "openvino"


def test_actors_on_gpus_are_refused_a_runtime_of_cpus(tmp_path, images, fastest, monkeypatch):
    fastest("openvino")
    monkeypatch.setattr("featx.bulk.ray_runner.require_ray", lambda: Asked({"CPU": 16, "GPU": 2}))
    message = "runtime='openvino' runs on CPUs, and the actors would use GPUs: name a new folder and runtime='eager'"
    with pytest.raises(ArgumentError, match=message):
        run(images, tmp_path / "out", runner=OnRay(device="cuda"))
    run(images, tmp_path / "new", "eager", runner=OnRay(device="cuda"))


def test_whole_images_take_what_runs_them_in_any_size(tmp_path, images, fastest, monkeypatch):
    fastest("onnxruntime")
    run(images, tmp_path / "any", keep_aspect=True)
    assert recorded(tmp_path / "any") == "onnxruntime"
    monkeypatch.setattr(inference, "accepts", lambda *_: False)
    run(images, tmp_path / "one", keep_aspect=True)
    assert recorded(tmp_path / "one") == "eager"


def test_folders_of_several_runtimes_are_not_merged(tmp_path, images, fastest):
    for runtime, half in (("eager", slice(0, 5)), ("openvino", slice(5, None))):
        fastest(runtime)
        run(sorted(images.iterdir())[half], tmp_path / runtime)
    with pytest.raises(OutputError, match="runtime"):
        merge([tmp_path / "eager", tmp_path / "openvino"], tmp_path / "both")


def test_several_batches_at_once_give_the_maps_of_one(tmp_path, images, fastest):
    torch.set_num_threads(3)
    for streams in (1, 3):
        run(images, tmp_path / f"{streams}", "openvino", streams=streams)
    one, other = (FeatureDataset(tmp_path / streams) for streams in ("1", "3"))
    for ours, theirs in zip(one, other, strict=True):
        assert relative_difference(ours.maps["a_0"], theirs.maps["a_0"]) < 1e-5
