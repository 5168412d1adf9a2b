"""featx extract and featx index: what they print, what they write, and the status they exit with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

import featx
import featx.cli
from featx.bulk import job

NAME = "mobilenetv3_small_050"
RANDOM = ("--model", NAME, "--random-weights", "0")
SMALL = (*RANDOM, "--size", "64")
SHARD = "maps-000000.safetensors"


@dataclass
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line within this process."""

    def run(*words: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["featx", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")  # so that mistakes in options are told in one line
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            featx.cli.main()
        return Ran(exit_.value.code or 0, *capsys.readouterr())

    return run


def start(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a process of its own."""
    command = [sys.executable, "-c", "from featx.cli import main; main()", *map(str, words)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, encoding="utf-8", timeout=120, check=False
    )


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "more").mkdir()
    Image.fromarray(data.astronaut()[::4, ::4]).save(folder / "astronaut.png")
    Image.fromarray(data.coffee()[::4, ::4]).save(folder / "more/кофе.jpg")
    return folder


@pytest.fixture
def mixed(tmp_path, photographs) -> Path:
    """Two photographs, three files that are none, one that nobody would take for one."""
    folder = tmp_path / "mixed"
    shutil.copytree(photographs, folder)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("a letter")
    (folder / "cut.jpg").write_bytes((folder / "more/кофе.jpg").read_bytes()[:1500])
    (folder / "notes.txt").write_text("not for us")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    torch.manual_seed(7)
    save_file(featx.create_model(NAME).state_dict(), path)
    return path


def index(folder: Path) -> dict[str, dict]:
    return {Path(row["id"]).name: row for row in pq.read_table(folder / "index.parquet").to_pylist()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".lock"))


def test_extract_of_good_images_exits_with_0_and_says_what_it_wrote(run, tmp_path, photographs):
    ran = run("extract", photographs, *SMALL, "--out", tmp_path / "out")
    assert ran.status == 0
    size = (tmp_path / "out" / SHARD).stat().st_size / 2**20
    expected = f"maps of 2 images, {size:.1f} MiB, in {tmp_path}/out\nweights: random, seed 0\n"
    assert ran.out == expected


def test_extract_with_bad_images_exits_with_1_and_names_each_with_its_reason(run, tmp_path, mixed):
    ran = run("extract", mixed, *SMALL, "--out", tmp_path / "out")
    assert ran.status == 1
    assert ran.out.startswith("maps of 2 images, ")
    assert "3 images could not be extracted:\n" in ran.out
    for name, reason in {"empty.png": "the file is empty", "text.jpg": "not an image", "cut.jpg": "truncated"}.items():
        (line,) = [line for line in ran.out.splitlines() if name in line]
        assert line.startswith(f"  {name}: ")
        assert reason in line


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


def test_a_mistake_as_a_process_is_one_message_and_status_2(tmp_path):
    lost = tmp_path / "lost[/b].png"  # what rich would take for markup
    ran = start("extract", lost, *SMALL, "--out", tmp_path / "out", COLUMNS="40")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"error: no such file or folder: {lost}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_that_is_no_text_can_be_named(run, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Path(path).touch()
    ran = run("extract", path, *SMALL, "--out", tmp_path / "out")
    assert ran.status == 1
    assert "  \\xff.png: the file is empty" in ran.out


def test_extract_writes_the_maps_of_the_model_it_names(run, tmp_path, photographs, checkpoint):
    image = photographs / "astronaut.png"
    run("extract", image, "--model", NAME, "--checkpoint", checkpoint, "--size", "64", "--out", tmp_path / "out")
    extractor = featx.create_model(NAME, features_only=True, checkpoint_path=checkpoint).eval()
    with torch.inference_mode():
        expected = extractor(featx.transform(extractor, size=64)(Image.open(image))[None])
    stored = load_file(tmp_path / "out" / SHARD)
    for level, map_ in zip(extractor.feature_info, expected, strict=True):
        assert torch.equal(stored[level.name], map_)


def test_random_weights_are_the_same_for_the_same_seed(run, tmp_path, photographs):
    for out in ("one", "two"):
        run("extract", photographs, *SMALL, "--out", tmp_path / out)
    assert (tmp_path / "one" / SHARD).read_bytes() == (tmp_path / "two" / SHARD).read_bytes()


def test_random_weights_are_others_for_another_seed(run, tmp_path, photographs):
    for seed in ("0", "1"):
        words = ("--model", NAME, "--random-weights", seed, "--size", "64")
        run("extract", photographs, *words, "--out", tmp_path / seed)
    one, other = (load_file(tmp_path / seed / SHARD)["act1"] for seed in ("0", "1"))
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("seed", ["-1", str(2**64), "x"])
def test_a_seed_that_is_none_is_an_error(run, tmp_path, photographs, seed):
    ran = run("extract", photographs, "--model", NAME, "--random-weights", seed, "--out", tmp_path / "out")
    assert ran.status == 2
    assert "--random-weights" in ran.err


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


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_maps_are_stored_in_the_type_asked_for(run, tmp_path, photographs, dtype):
    run("extract", photographs, *SMALL, "--dtype", dtype, "--out", tmp_path / "out")
    assert {map_.dtype for map_ in load_file(tmp_path / "out" / SHARD).values()} == {getattr(torch, dtype)}


def test_a_checkpoint_is_named_as_the_weights(run, tmp_path, photographs, checkpoint):
    words = ("--model", NAME, "--checkpoint", checkpoint, "--size", "64")
    ran = run("extract", photographs, *words, "--out", tmp_path / "out")
    assert ran.status == 0
    assert f"weights: {checkpoint}\n" in ran.out


def test_a_checkpoint_that_does_not_exist_is_an_error_that_names_it(run, tmp_path, photographs):
    lost = tmp_path / "lost.safetensors"
    ran = run("extract", photographs, "--model", NAME, "--checkpoint", lost, "--out", tmp_path / "out")
    assert ran.status == 2
    assert f"error: {lost} is not a file" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_an_error_that_names_it(run, tmp_path, photographs, checkpoint):
    words = ("--model", "mobilenetv3_small_075", "--checkpoint", checkpoint)
    ran = run("extract", photographs, *words, "--out", tmp_path / "out")
    assert ran.status == 2
    assert f"error: {checkpoint} does not fit" in ran.err


@pytest.mark.parametrize(
    "both",
    [
        ("--pretrained", "--checkpoint", "mine.pth"),
        ("--pretrained", "--random-weights", "0"),
        ("--checkpoint", "mine.pth", "--random-weights", "0"),
    ],
)
def test_weights_from_two_places_are_an_error(run, tmp_path, photographs, both):
    ran = run("extract", photographs, "--model", NAME, *both, "--out", tmp_path / "out")
    assert ran.status == 2
    assert ran.err == "error: --pretrained, --checkpoint and --random-weights exclude each other\n"


def test_weights_that_cannot_be_fetched_are_an_error_that_names_the_other_ways(run, tmp_path, photographs):
    ran = run("extract", photographs, "--model", "mobilenetv3_large_075", "--out", tmp_path / "out")
    assert ran.status == 2
    assert "error: mobilenetv3_large_075 has no published weights" in ran.err
    assert "(here: --checkpoint FILE or --random-weights SEED)" in ran.err


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


# going on, and ending


@pytest.fixture
def colours(tmp_path) -> Path:
    """Nine images of one colour each."""
    folder = tmp_path / "colours"
    folder.mkdir()
    for number in range(9):
        Image.new("RGB", (40, 40), (25 * number, 255 - 25 * number, 99)).save(folder / f"{number}.png")
    return folder


def signalled(monkeypatch, times: int, number: int = signal.SIGINT) -> None:
    """Has a signal come so many times while the first file is written."""
    write = job.write_shard

    def signalling(folder, shard):
        if shard.number == 0:
            for _ in range(times):
                os.kill(os.getpid(), number)
                time.sleep(0.2)  # in the main thread it is handled in between
        return write(folder, shard)

    monkeypatch.setattr(job, "write_shard", signalling)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_file_in_work_be_finished_and_says_how_to_go_on(
    run, tmp_path, colours, monkeypatch, number, status
):
    before = signal.getsignal(number)
    words = ("extract", colours, *SMALL, "--out", tmp_path / "out", "--rows-per-shard", "2", "--streams", "1")
    signalled(monkeypatch, 1, number)
    ran = run(*words)
    assert ran.status == status
    assert "finishing the file in work; once more to end at once" in ran.err
    left = 5 - len(list((tmp_path / "out").glob("maps-*")))
    assert 0 < left < 5
    assert f"stopped with {left} files left: run the same command again to go on" in ran.err
    monkeypatch.undo()
    again = run(*words)
    assert again.status == 0
    assert f", {5 - left} of 5 files were there\n" in again.out
    assert len(index(tmp_path / "out")) == 9
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_at_once_and_loses_nothing_that_was_written(run, tmp_path, colours, monkeypatch):
    words = ("extract", colours, *SMALL, "--out", tmp_path / "out", "--rows-per-shard", "2")
    signalled(monkeypatch, 2)
    ran = run(*words)
    assert ran.status == 130
    assert "ended at once: the file in work is lost, run the same command again to go on" in ran.err
    monkeypatch.undo()
    assert run(*words).status == 0
    assert len(index(tmp_path / "out")) == 9


def test_the_log_for_machines_is_a_line_per_file_and_one_of_the_sum(run, tmp_path, colours):
    (colours / "4.png").write_text("no image")
    ran = run("extract", colours, *SMALL, "--out", tmp_path / "out", "--rows-per-shard", "4", "--log", "json")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["event"] for line in lines] == ["shard"] * 3 + ["summary"]
    assert [line["written"] for line in lines] == [4, 3, 1, 8]
    assert lines[1]["failed"] == {"4.png": "not an image in any format that Pillow reads"}
    assert lines[-1].items() >= {"failed": 1, "files": 3, "made": 3, "left": 0, "weights": "random, seed 0"}.items()
    assert (ran.status, ran.err) == (1, "")


def test_a_folder_made_with_other_options_is_refused_with_the_difference(run, tmp_path, colours):
    run("extract", colours, *SMALL, "--out", tmp_path / "out")
    ran = run("extract", colours, *SMALL, "--out", tmp_path / "out", "--dtype", "bfloat16", "--pool", "mean")
    assert ran.status == 2
    assert 'dtype: "float32" there, "bfloat16" now' in ran.err


def test_the_index_is_made_anew_by_a_command(run, tmp_path, colours):
    run("extract", colours, *SMALL, "--out", tmp_path / "out")
    (tmp_path / "out/index.parquet").unlink()
    ran = run("index", tmp_path / "out")
    assert (ran.status, ran.out) == (0, f"{tmp_path}/out/index.parquet: 9 images\n")
    assert len(index(tmp_path / "out")) == 9


@pytest.mark.parametrize("given", ["auto", "3"])
def test_the_batch_size_is_measured_or_given_and_recorded(run, tmp_path, colours, given):
    assert run("extract", colours, *SMALL, "--out", tmp_path / "out", "--batch-size", given).status == 0
    recorded = json.loads((tmp_path / "out/meta.json").read_text())["recorded"]
    assert recorded["batch_size"] in ([1, 2, 4, 8, 16, 32, 64, 128, 256] if given == "auto" else [3])


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--batch-size", "many", "--batch-size many: expected a number of images, or auto"),
        ("--pool", "middle", "pooling='middle': choose one of ('none', 'mean', 'max', 'gem', 'cls')"),
        ("--pool", "mean,max", "pooling=('mean', 'max'): expected one for all levels, or one for each of 5"),
        ("--pool", "cls", "pooling 'cls' takes a transformer's class token, and this extractor returns none"),
        ("--shard", "4/4", "shard='4/4': expected i from 0 to n - 1"),
        ("--device", "moon", "device='moon': "),
        ("--max-errors", "-1", "--max-errors"),
    ],
)
def test_a_value_that_is_none_is_told_and_nothing_is_written(run, tmp_path, colours, option, value, problem):
    ran = run("extract", colours, *SMALL, "--out", tmp_path / "out", option, value)
    assert ran.status == 2
    assert problem in ran.err
    assert not (tmp_path / "out").exists()


def test_without_pyarrow_extract_names_what_to_install(run, tmp_path, colours, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ran = run("extract", colours, *SMALL, "--out", tmp_path / "out")
    assert ran.status == 2
    assert "pip install 'featx[extract]'" in ran.err
    assert not (tmp_path / "out").exists()


def test_many_failures_are_counted_and_the_first_are_named(run, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(30):
        (tmp_path / f"in/{number:02d}.png").touch()
    ran = run("extract", tmp_path / "in", *SMALL, "--out", tmp_path / "out")
    assert "30 images could not be extracted:" in ran.out
    assert ran.out.count("the file is empty") == 20
    assert f"  … and 10 more: {tmp_path}/out/index.parquet has all of them\n" in ran.out
