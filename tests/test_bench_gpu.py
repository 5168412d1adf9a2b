"""The script for a GPU runs on the CPU, all of it that needs no CUDA, and sees maps that are wrong."""

import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu

    yield gpu
    for name in ("gpu", "interleaved_timing", "subprocess_runs"):
        sys.modules.pop(name)


def run(gpu, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["gpu.py", *words])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    return ended.value.code


def rows(printed: str, title: str) -> list[list[str]]:
    """Cells of the rows of the table behind a title, by row."""
    tables = [part for part in printed.split(f"\n{title}")[1].split("\n\n") if part.strip().startswith("|")]
    lines = tables[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_part_prints_its_table(gpu, monkeypatch, capsys):
    assert run(gpu, monkeypatch, "--device", "cpu", "test_efficientnet") == 0
    printed = capsys.readouterr().out
    assert "no GPU: a trial" in printed
    ((name, levels, difference),) = rows(printed, "Maps")
    assert (name, levels) == ("test_efficientnet", "5")
    assert float(difference) <= gpu.TOLERANCE
    ((name, batch, *ratios),) = rows(printed, "Forwards")
    assert (name, batch, len(ratios)) == ("test_efficientnet", "2", 11)  # the milliseconds first
    assert all(float(ratio) > 0 for ratio in ratios)
    assert [row[0] for row in rows(printed, "Extraction")] == ["timm, DataLoader", "featx.extract"]
    assert all(float(ratio) > 0 for ratio in rows(printed, "Compiled forwards")[0][2:5])


def test_maps_that_differ_are_an_error(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "TOLERANCE", 0.0)  # float32 is never exactly float64
    assert not gpu.check_maps(gpu.replace(gpu.ON_CPU, checked=("test_efficientnet",)), float("inf"))
    assert "test_efficientnet" in capsys.readouterr().out


def test_values_that_are_not_finite_differ_by_infinity(gpu):
    assert gpu.relative_error(torch.tensor([float("nan"), 1.0]), torch.ones(2)) == float("inf")


def test_models_beyond_the_time_are_named(gpu, capsys):
    assert list(gpu.until(("one", "two"), float("inf"))) == ["one", "two"]
    assert list(gpu.until(("one", "two"), 0.0)) == []
    assert "Skipped, because the time limit was reached: one, two." in capsys.readouterr().out


def test_without_a_gpu_nothing_is_run(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    gpu.main()
    assert capsys.readouterr().out == "Not run: PyTorch saw no GPU.\n"
