"""The script that times training steps: every way makes a step of the model that it names, and memory is counted."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parent.parent / "benchmarks"
NAME = "mobilenetv3_small_050"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import training

    yield training
    for name in ("training", "interleaved_timing", "subprocess_runs", "extractors", "other_libraries"):
        sys.modules.pop(name)


WAYS = [("timm", "plain"), ("featx", "plain"), ("featx recompute", "plain"), ("featx freeze", "plain")]
WAYS += [("featx", "channels_last"), ("featx", "bf16")]


@pytest.mark.parametrize(("way", "group"), WAYS)
def test_a_step_changes_what_is_trained_and_leaves_no_gradient(bench, way, group):
    made = bench.build(way, group, NAME, 2, 64)
    before = {name: value.detach().clone() for name, value in made.model.named_parameters()}
    made.run(made.model, made.x)
    assert all(parameter.grad is None for parameter in made.model.parameters())
    changed = {name for name, value in made.model.named_parameters() if not torch.equal(value, before[name])}
    frozen = {name for name, value in made.model.named_parameters() if not value.requires_grad}
    assert changed
    assert not changed & frozen
    assert bool(frozen) == ("freeze" in way)


def test_recomputing_and_freezing_take_less_memory(bench):
    plain, recomputed, frozen = (
        made.memory(made.model, made.x)
        for made in (bench.build(way, "plain", NAME, 4, 96) for way in ("featx", "featx recompute", "featx freeze"))
    )
    assert recomputed < plain
    assert frozen < plain


def test_the_peak_counts_tensors_that_are_held_at_the_same_time(bench):
    def step(_model: nn.Module, _x: torch.Tensor) -> None:
        first = torch.ones(2**20)  # 4 MiB
        second = first + 1
        del first
        third = second + 1
        del second, third

    assert bench.peak_of_tensors(step, nn.Identity(), torch.ones(1)) == pytest.approx(8, abs=0.1)


def test_compiled_steps_are_measured_when_they_are_asked_for(bench, monkeypatch):
    monkeypatch.setattr("sys.argv", ["training.py"])
    assert "compile" not in bench.chosen_groups()
    monkeypatch.setattr("sys.argv", ["training.py", "--compile"])
    assert "compile" in bench.chosen_groups()
    monkeypatch.setattr("sys.argv", ["training.py", "--plain"])
    assert bench.chosen_groups() == {"plain": {"featx": "plain"}}
