"""`featx extract`: exit status, resumption, and refusals."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from support.cli import SMALL, index
from support.cli import run as run

from featx.bulk import pipeline


@pytest.fixture
def colors(tmp_path) -> Path:
    """Nine images of one color each."""
    folder = tmp_path / "colors"
    folder.mkdir()
    for number in range(9):
        Image.new("RGB", (40, 40), (25 * number, 255 - 25 * number, 99)).save(folder / f"{number}.png")
    return folder


def signalled(monkeypatch, times: int, number: int = signal.SIGINT) -> None:
    """Has a signal come so many times while the first file is written."""
    write = pipeline.write_shard

    def signalling(folder, shard):
        if shard.number == 0:
            for _ in range(times):
                os.kill(os.getpid(), number)
                time.sleep(0.2)  # in the main thread it is handled in between
        return write(folder, shard)

    monkeypatch.setattr(pipeline, "write_shard", signalling)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_file_in_work_be_finished_and_says_how_to_go_on(
    run, tmp_path, colors, monkeypatch, number, status
):
    before = signal.getsignal(number)
    words = ("extract", colors, *SMALL, "--out", tmp_path / "out", "--rows-per-shard", "2", "--streams", "1")
    signalled(monkeypatch, 1, number)
    ran = run(*words)
    assert ran.status == status
    assert "finishing the current file; repeat to stop immediately" in ran.err
    left = 5 - len(list((tmp_path / "out").glob("maps-*")))
    assert 0 < left < 5
    assert f"stopped with {left} files left: run the same command again to resume" in ran.err
    monkeypatch.undo()
    again = run(*words)
    assert again.status == 0
    assert f", {5 - left} of 5 files were there\n" in again.out
    assert len(index(tmp_path / "out")) == 9
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_at_once_and_loses_nothing_that_was_written(run, tmp_path, colors, monkeypatch):
    words = ("extract", colors, *SMALL, "--out", tmp_path / "out", "--rows-per-shard", "2")
    signalled(monkeypatch, 2)
    ran = run(*words)
    assert ran.status == 130
    assert "stopped immediately: the current file is lost, run the same command again to resume" in ran.err
    monkeypatch.undo()
    assert run(*words).status == 0
    assert len(index(tmp_path / "out")) == 9


def test_the_log_for_machines_is_a_line_per_file_and_one_of_the_sum(run, tmp_path, colors):
    (colors / "4.png").write_text("no image")
    ran = run("extract", colors, *SMALL, "--out", tmp_path / "out", "--rows-per-shard", "4", "--log", "json")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["event"] for line in lines] == ["shard"] * 3 + ["summary"]
    assert [line["written"] for line in lines] == [4, 3, 1, 8]
    assert lines[1]["failed"] == {"4.png": "not an image in any format that Pillow reads"}
    assert (
        lines[-1].items()
        >= {"failed": 1, "files": 3, "made": 3, "left": 0, "weights": "random, seed 0", "device": "cpu"}.items()
    )
    assert (ran.status, ran.err) == (1, "")


def test_a_run_that_extracts_nothing_exits_as_one_that_could_do_nothing(run, tmp_path, colors):
    for path in colors.iterdir():
        path.write_text("no image")
    ran = run("extract", colors, *SMALL, "--out", tmp_path / "out")
    assert ran.status == 2
    assert "9 images could not be extracted (--retry-failed tries again):" in ran.out


def test_a_folder_made_with_other_options_is_refused_with_the_difference(run, tmp_path, colors):
    run("extract", colors, *SMALL, "--out", tmp_path / "out")
    ran = run("extract", colors, *SMALL, "--out", tmp_path / "out", "--dtype", "bfloat16", "--pooling", "mean")
    assert ran.status == 2
    assert 'dtype: "float32" there, "bfloat16" now' in ran.err


def test_the_index_is_made_anew_by_a_command(run, tmp_path, colors):
    run("extract", colors, *SMALL, "--out", tmp_path / "out")
    (tmp_path / "out/index.parquet").unlink()
    ran = run("index", tmp_path / "out")
    assert (ran.status, ran.out) == (0, f"{tmp_path}/out/index.parquet: 9 images\n")
    assert len(index(tmp_path / "out")) == 9


@pytest.mark.parametrize("given", ["auto", "3"])
def test_the_batch_size_is_measured_or_given_and_recorded(run, tmp_path, colors, given):
    assert run("extract", colors, *SMALL, "--out", tmp_path / "out", "--batch-size", given).status == 0
    recorded = json.loads((tmp_path / "out/meta.json").read_text())["recorded"]
    assert recorded["batch_size"] in ([1, 2, 4, 8, 16, 32, 64, 128, 256] if given == "auto" else [3])


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--batch-size", "many", "--batch-size many: expected a number of images, or auto"),
        ("--pooling", "middle", "pooling='middle': choose one of ('none', 'mean', 'max', 'gem', 'cls', 'pre_logits')"),
        ("--pooling", "mean,max", "pooling=('mean', 'max'): expected one for all levels, or one for each of 5"),
        (
            "--pooling",
            "cls",
            "pooling 'cls' takes a transformer's class token as its last norm gives it to the classifier",
        ),
        ("--shard", "4/4", "shard='4/4': expected i from 0 to n - 1"),
        ("--device", "moon", "device='moon': "),
        ("--max-errors", "-1", "--max-errors"),
    ],
)
def test_a_value_that_is_none_is_reported_and_nothing_is_written(run, tmp_path, colors, option, value, problem):
    ran = run("extract", colors, *SMALL, "--out", tmp_path / "out", option, value)
    assert ran.status == 2
    assert problem in ran.err
    assert not (tmp_path / "out").exists()


def test_without_pyarrow_extract_names_what_to_install(run, tmp_path, colors, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ran = run("extract", colors, *SMALL, "--out", tmp_path / "out")
    assert ran.status == 2
    assert "pip install 'featx[extract]'" in ran.err
    assert not (tmp_path / "out").exists()
