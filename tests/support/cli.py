"""What tests of the command line share: a run of it within this process, photographs, a checkpoint."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data

import featx
import featx.cli

NAME = "mobilenetv3_small_050"
RANDOM = ("--model", NAME, "--random-weights", "0")
SMALL = (*RANDOM, "--size", "64")


@dataclass
class Ran:
    status: int
    out: str
    err: str


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *first: str) -> Callable[..., Ran]:
    """A function of the words of a command line, behind the first ones."""

    def run(*words: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["featx", *first, *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")  # so that mistakes in options are told in one line
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            featx.cli.main()
        return Ran(exit_.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def run(monkeypatch, capsys):
    return runner(monkeypatch, capsys)


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


def index(folder: Path) -> dict[str, dict]:
    """Its rows by the name of their image."""
    return {Path(row["id"]).name: row for row in pq.read_table(folder / "index.parquet").to_pylist()}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    torch.manual_seed(7)
    save_file(featx.create_model(NAME).state_dict(), path)
    return path
