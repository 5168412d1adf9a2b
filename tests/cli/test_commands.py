"""The commands: what they print, what they write, and the status they exit with."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from support.cli import NAME, SMALL
from support.cli import checkpoint as checkpoint
from support.cli import mixed as mixed
from support.cli import photographs as photographs
from support.cli import run as run

import featx
import featx.cli
import featx_command
from featx.commands.options import out
from featx.registry import lookup

# list and info


def test_list_shows_every_model(run):
    ran = run("list")
    assert ran.status == 0
    assert [line.split()[0] for line in ran.out.splitlines()] == featx.list_models()


def test_list_in_a_pipe_is_a_line_per_model_however_many_tags_it_has(run):
    ran = run("list", "vit_base_patch16_clip_224")
    tags = lookup("vit_base_patch16_clip_224").weights
    assert len(ran.out) > 200  # the width of the terminal
    assert ran.out == f"vit_base_patch16_clip_224 {' '.join(tags)}\n"


def test_list_on_a_terminal_is_a_table(run, monkeypatch):
    monkeypatch.setattr(out, "_force_terminal", True)
    monkeypatch.setattr(out, "no_color", True)
    lines = run("list", "mobilenetv3_small_*").out.splitlines()
    assert lines[0].split() == ["model", "published", "weights"]
    assert [line.split()[0] for line in lines[1:]] == [f"mobilenetv3_small_{width}" for width in ("050", "075", "100")]


def test_list_shows_the_tags_of_published_weights_and_says_where_there_are_none(run):
    lines = [line.split() for line in run("list", "mobilenetv3_large_*").out.splitlines()]
    assert lines[0] == ["mobilenetv3_large_075", "none"]
    assert lines[1][:2] == ["mobilenetv3_large_100", "ra_in1k"]


def test_list_of_a_pattern_that_matches_nothing_is_an_error(run):
    ran = run("list", "nothing*")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == "error: no model matches 'nothing*'; 'featx list' shows all names\n"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("list", "reznet50"), "no model matches 'reznet50'; did you mean resnet50 or "),
        (("list", "reznet50*"), "no model matches 'reznet50*'; did you mean resnet50 or "),
        (("list", "timm/reznet50"), "no model matches 'timm/reznet50'; did you mean timm/resnet50 or "),
        (("info", "reznet50"), "no model is named 'reznet50'; did you mean resnet50 or "),
        (("verify", "reznet50"), "no model is named 'reznet50'; did you mean resnet50 or "),
        (("info", "./models/resnet18"), "for a folder, ask for 'local-dir:./models/resnet18'"),
        (("info", "facebook/dinov2-base"), "ask for transformers/facebook/dinov2-base"),
        (("show", "nowhere/", "--model", NAME, "--out", "a.png"), "no such file or folder: nowhere"),
        (("show", "x" * 300, "--model", NAME, "--out", "a.png"), "no such file or folder: xxx"),
        (("show", ".", "--model", NAME, "--out", "a.png"), "no image files in ."),
    ],
)
def test_a_mistake_is_one_message_that_helps_and_status_2(run, tmp_path, monkeypatch, words, problem):
    monkeypatch.chdir(tmp_path)
    ran = run(*words)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert problem in ran.err


def test_info_shows_the_levels_of_a_model(run):
    rows = [line.split() for line in run("info", NAME).out.splitlines()]
    assert [row[:5] for row in rows if row and row[0].isdigit()] == [
        ["0", "act1", "16", "2", "112×112"],
        ["1", "blocks.0", "8", "4", "56×56"],
        ["2", "blocks.1", "16", "8", "28×28"],
        ["3", "blocks.3", "24", "16", "14×14"],
        ["4", "blocks.5", "288", "32", "7×7"],
    ]


def test_info_counts_the_parameters_that_an_extractor_of_a_level_holds(run):
    stem = 16 * 3 * 3 * 3 + 2 * 16  # a convolution and its norm
    rows = [line.split() for line in run("info", NAME).out.splitlines()]
    assert next(row for row in rows if row[:1] == ["0"])[5] == f"{stem}"


def test_info_counts_the_parameters_of_the_classifier(run):
    count = sum(parameter.numel() for parameter in featx.create_model(NAME).parameters())
    assert f"whole classifier: {count:,} parameters" in run("info", NAME).out


def test_info_shows_maps_of_another_size_beside_the_default(run):
    rows = [line.split() for line in run("info", NAME, "--size", "96").out.splitlines()]
    assert next(row for row in rows if row[:1] == ["4"])[4:6] == ["7×7", "3×3"]


def test_info_of_a_misspelt_model_suggests_the_closest(run):
    ran = run("info", "mobilenetv3_smal_050")
    assert ran.status == 2
    assert "error: no model is named 'mobilenetv3_smal_050'; did you mean mobilenetv3_small_050" in ran.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("list", "--\x1b[31mred"), r"No such option: --\x1b[31mred"),
        (("\x1b]0;title\x07",), r"No such command '\x1b]0;title\x07'"),
        (("info", NAME, "\x1b[2J"), r"Got unexpected extra argument"),
        (("extract", ".", *SMALL, "--out", "o", "--log", "\x1b[31mred"), r"\x1b[31mred"),
        (("list", "\x1b[31m*"), r"no model matches '\x1b[31m*'"),
    ],
)
def test_foreign_words_in_mistakes_are_shown_and_not_obeyed(run, words, problem):
    ran = run(*words)
    assert (ran.status, ran.out) == (2, "")
    assert "\x1b" not in ran.err
    assert "\x07" not in ran.err
    assert problem in ran.err
    assert "error: " in ran.err


def test_a_missing_option_is_reported_with_the_usage(run):
    ran = run("info")
    assert ran.status == 2
    assert ran.err.splitlines()[0].startswith("Usage: ")
    assert ran.err.splitlines()[-1].lower().startswith("error: missing argument 'name'")


def test_without_words_the_help_is_shown(run):
    ran = run()
    assert ran.status == 2
    assert "Commands" in ran.out
    assert "error" not in ran.err


def test_an_interruption_is_no_traceback(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(featx, "list_models", interrupted)
    ran = run("list")
    assert (ran.status, ran.out) == (130, "")
    assert ran.err.strip() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("ignored", [False, True], ids=["foreground", "ignored"])
def test_an_interruption_while_the_library_is_imported_is_no_traceback(tmp_path, ignored):
    """The library is one that takes its time, and tells when it begins."""
    (tmp_path / "featx").mkdir()
    (tmp_path / "featx/__init__.py").write_text("import time; print('importing', flush=True); time.sleep(3)")
    (tmp_path / "featx/cli.py").write_text("def main(): print('ran')")
    handler = "SIG_IGN" if ignored else "default_int_handler"  # whatever the shell of the tests does with interrupts
    paths = os.pathsep.join([str(tmp_path), str(Path(featx_command.__file__).parent)])
    code = f"import signal; signal.signal(signal.SIGINT, signal.{handler}); from featx_command import main; main()"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == ((0, "ran\n", "") if ignored else (130, "", ""))


def test_a_reader_that_stops_early_gets_no_traceback():
    command = [sys.executable, "-m", "featx", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_shells_can_complete_commands():
    asked = {**os.environ, "_FEATX_COMPLETE": "complete_bash", "COMP_WORDS": "featx we", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['featx']; from featx.cli import main; main()"
    ran = subprocess.run([sys.executable, "-c", code], env=asked, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["weights"]


def test_version_is_that_of_the_package(run):
    assert run("--version").out == f"featx {featx.__version__}\n"


def test_help_names_every_command(run):
    commands = typer.main.get_command(featx.cli.app).commands
    assert {"extract", "weights", "bench"} < set(commands)
    rows = [line.strip("│ ").split() for line in run("--help").out.splitlines()]
    assert set(commands) <= {row[0] for row in rows if len(row) > 1}


# show


def test_show_draws_the_photograph_and_its_maps(run, tmp_path, photographs):
    picture = tmp_path / "maps.png"
    ran = run("show", photographs / "astronaut.png", *SMALL, "--out", picture)
    assert (ran.status, ran.out) == (
        0,
        f"{picture}: 5 maps of {photographs}/astronaut.png by {NAME}, weights: random, seed 0\n",
    )
    with Image.open(picture) as drawn:
        drawn.load()
        assert drawn.format == "PNG"
        # three columns of four inches, two rows a little higher than that for a square photograph, 110 dots an inch
        assert drawn.width == 3 * 4 * 110
        assert 2 * 4 * 110 < drawn.height < 2 * 5 * 110
        assert len(np.unique(np.asarray(drawn.convert("L")))) > 100  # and it is not blank


@pytest.mark.parametrize("asked", ["-1", "1,2,3", "4,0"])
def test_show_draws_as_many_maps_as_were_asked_for(run, tmp_path, photographs, asked):
    ran = run("show", photographs / "astronaut.png", *SMALL, "--out-indices", asked, "--out", tmp_path / "maps.png")
    assert ran.status == 0
    assert f"maps.png: {len(asked.split(','))} maps of " in ran.out
    with Image.open(tmp_path / "maps.png") as drawn:
        drawn.verify()


def test_show_in_a_format_that_does_not_exist_is_an_error(run, tmp_path, photographs):
    ran = run("show", photographs / "astronaut.png", *SMALL, "--out", tmp_path / "maps.xyz")
    assert ran.status == 2
    assert f"error: {tmp_path}/maps.xyz: name a picture that ends with one of " in ran.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "reason"), [("cut.jpg", "{}: image file is truncated"), ("lost.jpg", "no such file or folder: {}")]
)
def test_show_of_what_is_not_an_image_is_an_error_that_names_it(run, mixed, name, reason):
    ran = run("show", mixed / name, *SMALL, "--out", mixed / "maps.png")
    assert ran.status == 2
    assert ran.err.startswith(f"error: {reason.format(mixed / name)}")


def test_show_names_weights_whose_path_looks_like_a_formula(run, tmp_path, photographs, checkpoint):
    costly = tmp_path / r"$\costly$.safetensors"
    shutil.copy(checkpoint, costly)
    words = ("--model", NAME, "--checkpoint-path", costly, "--size", "64", "--out", tmp_path / "maps.png")
    ran = run("show", photographs / "astronaut.png", *words)
    assert ran.status == 0
    assert f"weights: {costly}\n" in ran.out
