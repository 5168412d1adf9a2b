"""featx extract and featx index: what they print, what they write, and the status they exit with."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.cli import NAME, RANDOM, SMALL, index
from support.cli import mixed as mixed
from support.cli import photographs as photographs
from support.cli import run as run
from support.extraction import names

import featx

SHARD = "maps-000000.safetensors"


def start(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a process of its own."""
    command = [sys.executable, "-c", "from featx.cli import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)


def test_extract_of_good_images_exits_with_0_and_says_what_it_wrote(run, tmp_path, photographs):
    ran = run("extract", photographs, *SMALL, "--out", tmp_path / "out")
    assert ran.status == 0
    size = (tmp_path / "out" / SHARD).stat().st_size / 2**20
    expected = f"maps of 2 images, {size:.1f} MiB, in {tmp_path}/out\nweights: random, seed 0; computed on cpu\n"
    assert ran.out == expected


def test_extract_with_bad_images_exits_with_1_and_names_each_with_its_reason(run, tmp_path, mixed):
    ran = run("extract", mixed, *SMALL, "--out", tmp_path / "out")
    assert ran.status == 1
    assert ran.out.startswith("maps of 2 images, ")
    assert "3 images could not be extracted (--retry-failed tries again):\n" in ran.out
    for name, reason in {"empty.png": "the file is empty", "text.jpg": "not an image", "cut.jpg": "truncated"}.items():
        (line,) = [line for line in ran.out.splitlines() if name in line]
        assert line.startswith(f"  {name}: ")
        assert reason in line


@pytest.mark.sweep
def test_extract_as_a_process_writes_whole_files_and_an_index(tmp_path, mixed):
    ran = start("extract", mixed, *SMALL, "--out", tmp_path / "out")
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert names(tmp_path / "out") == ["index.parquet", SHARD, "meta.json"]
    assert {name: row["status"] for name, row in index(tmp_path / "out").items()} == {
        "astronaut.png": "ok",
        "кофе.jpg": "ok",
        "empty.png": "failed",
        "text.jpg": "failed",
        "cut.jpg": "failed",
    }
    assert {len(maps) for maps in load_file(tmp_path / "out" / SHARD).values()} == {2}


def test_a_mistake_is_one_message_and_status_2(run, tmp_path):
    lost = tmp_path / "lost[/b].png"  # what rich would take for markup
    ran = run("extract", lost, *SMALL, "--out", tmp_path / "out")
    assert (ran.status, ran.out, ran.err) == (2, "", f"error: no such file or folder: {lost}\n")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_that_is_not_text_can_be_named(run, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Path(path).touch()
    ran = run("extract", path, *SMALL, "--out", tmp_path / "out")
    assert ran.status == 2
    assert "  \\xff.png: the file is empty" in ran.out


@pytest.mark.parametrize(
    ("asked", "levels"), [("-1", ["blocks.5"]), ("3,1", ["blocks.3", "blocks.0"]), ("0, 2", ["act1", "blocks.1"])]
)
def test_out_indices_choose_levels_in_their_order(run, tmp_path, photographs, asked, levels):
    assert run("extract", photographs, *SMALL, "--out-indices", asked, "--out", tmp_path / "out").status == 0
    meta = json.loads((tmp_path / "out/meta.json").read_text())
    assert [level["name"] for level in meta["decided"]["levels"]] == levels
    assert load_file(tmp_path / "out" / SHARD).keys() == set(levels)


@pytest.mark.parametrize("asked", ["a,b", "1,", "", "1.5", "1 2"])
def test_out_indices_that_are_no_ints_are_an_error(run, tmp_path, photographs, asked):
    ran = run("extract", photographs, *SMALL, "--out-indices", asked, "--out", tmp_path / "out")
    assert ran.status == 2
    assert f"error: --out-indices {asked}: expected ints separated by commas, such as 1,2,3" in ran.err


@pytest.mark.parametrize(("asked", "problem"), [("9", "there is no level 9"), ("1,1", "asks for a level twice")])
def test_out_indices_that_choose_no_levels_are_an_error(run, tmp_path, photographs, asked, problem):
    ran = run("extract", photographs, *SMALL, "--out-indices", asked, "--out", tmp_path / "out")
    assert ran.status == 2
    assert problem in ran.err
    assert not (tmp_path / "out").exists()


def test_the_description_says_model_weights_and_version(run, tmp_path, photographs):
    run("extract", photographs, *SMALL, "--dtype", "float16", "--out", tmp_path / "out")
    meta = json.loads((tmp_path / "out/meta.json").read_text())
    assert (meta["decided"]["model"], meta["decided"]["dtype"]) == (NAME, "float16")
    assert meta["recorded"]["weights"] == "random, seed 0"
    assert meta["recorded"]["versions"]["featx"] == featx.__version__
    assert meta["recorded"]["command"].startswith("featx extract ")


def test_maps_are_stored_in_the_type_asked_for(run, tmp_path, photographs):
    run("extract", photographs, *SMALL, "--dtype", "bfloat16", "--out", tmp_path / "out")
    assert {map_.dtype for map_ in load_file(tmp_path / "out" / SHARD).values()} == {torch.bfloat16}


def test_extract_with_a_misspelt_model_suggests_the_closest(run, tmp_path, photographs):
    ran = run("extract", photographs, "--model", "resnett18", "--random-weights", "0", "--out", tmp_path / "out")
    assert ran.status == 2
    assert "error: no model is named 'resnett18'; did you mean resnet18" in ran.err


def test_extract_to_a_folder_that_holds_anything_is_an_error(run, tmp_path, photographs):
    (tmp_path / "mine.txt").write_text("mine")
    ran = run("extract", photographs, *SMALL, "--out", tmp_path)
    assert ran.status == 2
    assert f"error: {tmp_path} is not empty (mine.txt): name a new folder" in ran.err
    assert names(tmp_path) == ["mine.txt"]


def test_extract_to_where_nothing_can_be_written_is_an_error(run, tmp_path, photographs):
    (tmp_path / "file").touch()
    ran = run("extract", photographs, *SMALL, "--out", tmp_path / "file/out")
    assert ran.status == 2
    assert f"error: cannot write to {tmp_path}/file/out" in ran.err


def test_extract_of_images_that_do_not_exist_names_them_before_any_weights_are_loaded(run, tmp_path):
    ran = run("extract", tmp_path / "lost", "--model", NAME, "--out", tmp_path / "out")
    assert (ran.status, ran.err) == (2, f"error: no such file or folder: {tmp_path}/lost\n")


def test_extract_of_a_folder_without_images_is_an_error(run, tmp_path):
    ran = run("extract", tmp_path, *SMALL, "--out", tmp_path / "out")
    assert ran.status == 2
    assert f"error: no image files in {tmp_path}; " in ran.err


def test_images_too_small_for_the_model_are_an_error(run, tmp_path, photographs):
    ran = run("extract", photographs, *RANDOM, "--size", "16", "--out", tmp_path / "out")
    assert ran.status == 2
    assert "error: images of 16x16 pixels are smaller than one cell" in ran.err


@pytest.mark.parametrize(("option", "value"), [("--size", "0"), ("--batch-size", "0"), ("--dtype", "int8")])
def test_a_value_that_an_option_cannot_have_is_an_error_that_names_it(run, tmp_path, photographs, option, value):
    ran = run("extract", photographs, *RANDOM, option, value, "--out", tmp_path / "out")
    assert ran.status == 2
    assert option in ran.err


def test_names_that_look_like_markup_are_printed_as_they_are(run, tmp_path, photographs):
    shutil.copytree(photographs, tmp_path / "in[red]")
    (tmp_path / "in[red]/a[b].jpg").touch()
    ran = run("extract", tmp_path / "in[red]", *SMALL, "--out", tmp_path / "out[/]")
    assert f" in {tmp_path}/out[/]\n" in ran.out
    assert "  a[b].jpg: the file is empty" in ran.out


def test_many_failures_are_counted_and_the_first_are_named(run, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(30):
        (tmp_path / f"in/{number:02d}.png").touch()
    ran = run("extract", tmp_path / "in", *SMALL, "--out", tmp_path / "out")
    assert "30 images could not be extracted (--retry-failed tries again):" in ran.out
    assert ran.out.count("the file is empty") == 20
    assert f"  … and 10 more: {tmp_path}/out/index.parquet has all of them\n" in ran.out
