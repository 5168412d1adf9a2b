"""Shards of a Ray cluster equal those of one process, also when workers die."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import random_extractor
from PIL import Image
from support.extraction import contents
from support.fake_ray import Asked
from typer.testing import CliRunner

from featx import (
    ArgumentError,
    FeatureDataset,
    FeatureExtractWrapper,
    ImageError,
    MissingPackageError,
    OutputError,
    extract,
)
from featx.bulk import OnRay, Recipe, Resources, find_items
from featx.bulk.extraction import plan_job
from featx.bulk.meta import Meta, write_meta
from featx.bulk.pipeline import Job
from featx.bulk.ray_runner import ShardActor, _connected
from featx.cli import app

IMAGES, ROWS = 40, 2
MODEL = "mobilenetv3_small_050"
OPTIONS = ["--model", MODEL, "--random-weights", "0", "--size", "64", "--rows-per-shard", f"{ROWS}"]


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return random_extractor(MODEL, out_indices=[1, 4])


@pytest.fixture
def images(tmp_path) -> Path:
    """Images of one color each, so that every map tells whose it is; the fifth is none."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(IMAGES):
        Image.new("RGB", (90, 70), (6 * number, 255 - 6 * number, 99)).save(folder / f"{number:02}.png")
    (folder / "04.png").write_text("no image")
    return folder


def run(images: Path, extractor: FeatureExtractWrapper, out: Path, **options):
    return extract(images, extractor, out, **{"size": 64, "batch_size": 2, "rows_per_shard": ROWS, **options})


# where actors go


def placed(nodes: list[dict[str, float]], **options) -> tuple[int, int]:
    runner = OnRay(**options)
    return runner._place(nodes, runner._device(nodes))


@pytest.mark.parametrize(
    ("nodes", "options", "cpus", "actors"),
    [
        ([{"CPU": 2}], {}, 2, 1),
        ([{"CPU": 16}, {"CPU": 8}, {"CPU": 0}, {}], {}, 4, 6),
        ([{"CPU": 16}, {"CPU": 2}], {}, 2, 9),
        ([{"CPU": 16}], {"cpus": 3}, 3, 5),
        ([{"CPU": 16}, {"CPU": 2}], {"cpus": 8}, 8, 2),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 64}], {"device": "cuda"}, 8, 2),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 64}], {}, 8, 2),
        ([{"CPU": 16, "GPU": 8}], {"device": "cuda", "cpus": 4}, 4, 4),
    ],
)
def test_actors_fill_the_nodes_that_can_hold_one(nodes, options, cpus, actors):
    assert placed(nodes, **options) == (cpus, actors)


@pytest.mark.parametrize(
    ("nodes", "options", "wanted"),
    [
        ([{"CPU": 4}], {"cpus": 8}, "8 CPUs"),
        ([{"CPU": 4}], {"device": "cuda"}, "1 CPUs and a GPU"),
        ([{"CPU": 0}], {}, "1 CPUs"),
    ],
)
def test_a_cluster_that_can_hold_no_actor_is_refused(nodes, options, wanted):
    with pytest.raises(ArgumentError, match=f"no node of the Ray cluster has {wanted}, which an actor needs"):
        placed(nodes, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device='tpu': choose 'cpu', 'cuda' for a GPU that Ray gives each actor, or 'auto'"),
        ({"cpus": 0}, "cpus=0: expected a positive number"),
        ({"actors": -1}, "actors=-1: expected a positive number"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        OnRay(**options)


@pytest.mark.parametrize(
    ("device", "gpus", "cpus", "fitting"), [("cuda", 1, 8, 2), ("cpu", None, 4, 12)], ids=["cuda", "cpu"]
)
def test_every_actor_is_given_a_gpu_of_its_own_if_it_needs_one(
    tmp_path, images, extractor, monkeypatch, device, gpus, cpus, fitting
):
    cluster = Asked({"CPU": 16, "GPU": 2}, {"CPU": 32})
    monkeypatch.setattr("featx.bulk.ray_runner.require_ray", lambda: cluster)
    run(images, extractor, tmp_path / "out", runner=OnRay(device=device))
    assert cluster.actor is ShardActor
    assert (cluster.asked["num_gpus"], cluster.asked["num_cpus"]) == (gpus, cpus)
    assert cluster.asked["compute"] == {"min_size": 1, "max_size": IMAGES // ROWS, "initial_size": fitting}
    assert cluster.asked["fn_constructor_args"] == ([cluster.job], device, cpus, os.getcwd())
    assert cluster.job.resources.device == "cpu"  # of this machine, which needs no GPU


def test_a_cluster_that_cannot_be_reached_is_named():
    def refuse(*_, **__) -> None:
        raise ConnectionError("timed out")

    absent = SimpleNamespace(is_initialized=lambda: False, init=refuse)
    message = "address='far:6379': there is no Ray cluster to connect to: timed out"
    with pytest.raises(ArgumentError, match=message), _connected(absent, "far:6379"):
        raise AssertionError("unreachable")


def test_a_cluster_that_does_not_start_is_an_error_that_says_what_to_do():
    def fail(*_, **__) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    failing = SimpleNamespace(is_initialized=lambda: False, init=fail)
    message = r"Ray cannot start a cluster on this machine: The current node timed out .* or extract without Ray"
    with pytest.raises(OutputError, match=message), _connected(failing, None):
        raise AssertionError("unreachable")


def test_what_is_missing_without_ray_is_reported(tmp_path, images, extractor, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"extracting on a Ray cluster needs Ray: pip install 'featx\[ray\]'"):
        run(images, extractor, tmp_path / "out", runner=OnRay())


# one actor, without a cluster


def job_of(images: Path, extractor: FeatureExtractWrapper, out: Path) -> Job:
    resources = Resources(2, workers=3, streams=4).settled()
    job = plan_job(out, find_items(images), extractor, "tiny", Recipe(size=64), resources, ROWS)
    out.mkdir()
    write_meta(out, Meta((job.plan,), job.plan.items))
    return job


def actor(job: Job, monkeypatch: pytest.MonkeyPatch, folder: str = "/nowhere") -> ShardActor:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda held: held))
    monkeypatch.setattr(
        "featx.runtime.allocator.keep_freed_memory", lambda: None
    )  # of the tests' process it is not ours
    return ShardActor([job], "cpu", 1, folder)


def outcome(actor: ShardActor, number: int):
    (content,) = actor({"shard": [number]})["outcome"]
    return pickle.loads(content)


def test_an_actor_writes_a_shard_and_reports_it(tmp_path, images, extractor, monkeypatch):
    threads = torch.get_num_threads()
    try:
        own = actor(job_of(images, extractor, tmp_path / "out"), monkeypatch)
        report = outcome(own, 2)
    finally:
        torch.set_num_threads(threads)
    assert (report.shard, report.written, [one.id for one in report.failed]) == (2, 1, ["04.png"])
    assert FeatureDataset(tmp_path / "out").ids == ["05.png"]
    assert own._worker is not None
    assert (own._worker.job.resources.workers, own._worker.job.resources.streams) == (1, 1)


@pytest.mark.parametrize("unseen", ["folder", "images"])
def test_a_node_that_does_not_see_what_it_needs_says_so(tmp_path, images, extractor, monkeypatch, unseen):
    job = job_of(images, extractor, tmp_path / "out")
    (images if unseen == "images" else tmp_path / "out").rename(tmp_path / "elsewhere")
    error = outcome(actor(job, monkeypatch), 0)
    assert isinstance(error, OutputError)
    place = f"{images}/" if unseen == "images" else str(tmp_path / "out/meta.json")
    assert f"does not see {place}: expected places that all nodes of the cluster share" in str(error)


def test_an_error_of_writing_comes_back_as_it_is(tmp_path, images, extractor, monkeypatch):
    job = job_of(images, extractor, tmp_path / "out")
    (tmp_path / "out/maps-000001.safetensors").mkdir()
    error = outcome(actor(job, monkeypatch), 1)
    assert isinstance(error, OutputError)
    assert "cannot write" in str(error)


# the command's options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--address", "auto"], "--address auto is for a Ray cluster: add --runner ray"),
        (
            ["--runner", "ray", "--device", "cuda", "--batch-size", "auto"],
            "--batch-size auto measures here, not on the cluster's GPUs: name a number of images",
        ),
        (["--cpus", "2"], "--cpus 2 is for a Ray cluster: add --runner ray"),
        (["--runner", "ray", "--workers", "2"], "--workers 2 is for --runner local: on Ray, an actor uses all of its"),
        (["--runner", "ray", "--streams", "2"], "choose --cpus N"),
    ],
)
def test_options_of_another_runner_are_refused(tmp_path, images, options, message):
    done = CliRunner().invoke(app, ["extract", str(images), "--out", str(tmp_path / "out"), *OPTIONS, *options])
    assert isinstance(done.exception, ArgumentError)
    assert message in str(done.exception)


# a cluster; Ray's own warnings are not ours

QUIET = [
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning", "UserWarning")),
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("ResourceWarning", "pytest.PytestWarning")),
]


def on_ray(test):
    for mark in [*QUIET, pytest.mark.sweep]:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    for attempt in range(4):
        try:
            ray.init("local", num_cpus=2, object_store_memory=600 * 2**20, include_dashboard=False, log_to_driver=False)
            break
        except Exception as error:  # Ray's own class of it; it gives a busy machine no more than 30 seconds
            if "timed out during startup" not in str(error) or attempt == 3:
                raise
            ray.shutdown()
    yield
    ray.shutdown()


def actors_below(process: int) -> list[int]:
    """Processes of actors that extract, among those that this one started."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if b"ShardActor" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue

    def is_below(one: int) -> bool:
        while one and one != process:
            one = parents.get(one, 0)
        return bool(one)

    return [one for one in found if one != process and is_below(one)]


@on_ray
@pytest.mark.parametrize("actors", [1, 2])
def test_a_cluster_gives_the_same_files_as_one_process(tmp_path, images, extractor, cluster, actors):
    local = run(images, extractor, tmp_path / "local")
    told = []
    there = run(
        images, extractor, tmp_path / "ray", runner=OnRay(cpus=1, actors=actors), progress=told.append, device="cpu"
    )
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert (there.written, there.failed, there.made, there.left) == (local.written, local.failed, IMAGES // ROWS, 0)
    assert sorted(one.shard.shard for one in told if one.shard) == list(range(IMAGES // ROWS))
    assert [one.written + one.failed for one in told][-1] == IMAGES
    assert len(FeatureDataset(tmp_path / "ray")) == IMAGES - 1


@on_ray
def test_a_folder_grows_on_a_cluster(tmp_path, images, extractor, cluster):
    run(images, extractor, tmp_path / "out")
    before = contents(tmp_path / "out")
    (images / "00.png").unlink()
    for number in range(IMAGES, IMAGES + 7):
        Image.new("RGB", (90, 70), (3 * number, 9, 255 - 3 * number)).save(images / f"{number:02}.png")
    done = run(images, extractor, tmp_path / "out", runner=OnRay(cpus=1, actors=2))
    assert (done.made, done.written, done.removed) == (4, IMAGES - 2 + 7, 1)
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in before if name.startswith("maps")}.items() <= before.items()
    dataset = FeatureDataset(tmp_path / "out")
    assert dataset.ids == [f"{number:02}.png" for number in range(1, IMAGES + 7) if number != 4]
    run(images, extractor, tmp_path / "whole")
    for features in FeatureDataset(tmp_path / "whole"):
        assert torch.equal(dataset.by_id(features.id).maps["blocks.5"], features.maps["blocks.5"])


@on_ray
def test_a_run_that_was_stopped_resumes_on_a_cluster_and_back(tmp_path, images, extractor, cluster):
    run(images, extractor, tmp_path / "local")
    stops = iter([False, False, True])
    first = run(images, extractor, tmp_path / "out", stopped=lambda: next(stops, True))
    second = run(images, extractor, tmp_path / "out", runner=OnRay(cpus=1), stopped=lambda: True)
    assert (first.made, second.made, second.left) == (3, 1, IMAGES // ROWS - 4)
    assert len(list((tmp_path / "out").glob("maps*"))) >= 4  # others may have been done when it was stopped
    run(images, extractor, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "local")
    nothing = run(images, extractor, tmp_path / "out", runner=OnRay(cpus=1))
    assert (nothing.made, nothing.left) == (0, 0)


@on_ray
def test_actors_that_are_killed_lose_and_double_nothing(tmp_path, images, extractor, cluster):
    run(images, extractor, tmp_path / "local")
    killed = []

    def kill(done) -> None:
        if done.shard is not None and len(killed) < 3:
            for process in actors_below(os.getpid()):
                os.kill(process, signal.SIGKILL)
                killed.append((process, done.written + done.failed))

    summary = run(images, extractor, tmp_path / "out", runner=OnRay(cpus=2), progress=kill)
    assert len({process for process, _ in killed}) >= 2
    assert all(count < IMAGES for _, count in killed)
    assert (summary.written, summary.made, summary.left) == (IMAGES - 1, IMAGES // ROWS, 0)
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


@on_ray
def test_errors_of_actors_and_of_the_run_end_it_as_they_do_without_a_cluster(tmp_path, images, extractor, cluster):
    with pytest.raises(ArgumentError, match="no node of the Ray cluster has 99 CPUs"):
        run(images, extractor, tmp_path / "out", runner=OnRay(cpus=99))
    with pytest.raises(ImageError, match="1 images failed, more than the 0 allowed"):
        run(images, extractor, tmp_path / "out", runner=OnRay(cpus=1), max_errors=0)
    last = tmp_path / "out/maps-000019.safetensors"
    last.unlink(missing_ok=True)  # an actor may have come as far
    last.mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*maps-000019.safetensors: "):
        run(images, extractor, tmp_path / "out", runner=OnRay(cpus=1))


@on_ray
def test_a_driver_that_is_killed_resumes_when_run_again(tmp_path, images):
    command = [sys.executable, "-m", "featx", "extract", str(images), *OPTIONS, "--log", "json"]
    ray = [*command, "--runner", "ray", "--cpus", "1", "--out", str(tmp_path / "out")]
    subprocess.run([*command, "--out", str(tmp_path / "local")], check=False, capture_output=True, timeout=120)
    driver = subprocess.Popen(ray, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert driver.stdout is not None
    with driver.stdout:
        assert json.loads(driver.stdout.readline())["event"] == "shard"
        driver.kill()
        driver.wait()
    there = contents(tmp_path / "out")
    assert 0 < len(there) < IMAGES // ROWS
    again = subprocess.run(ray, check=False, capture_output=True, timeout=240)
    assert again.returncode == 1  # one image failed
    summary = json.loads(again.stdout.splitlines()[-1])
    assert (summary["written"], summary["failed"], summary["left"]) == (IMAGES - 1, 1, 0)
    assert summary["made"] <= IMAGES // ROWS - len(there)
    assert contents(tmp_path / "out") == contents(tmp_path / "local")
    assert len(again.stderr.splitlines()) <= 3  # Ray's own remarks stay away
