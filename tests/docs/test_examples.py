"""The examples that train run as the README says."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "measure"), [("segment", "IoU"), ("detect", "AP50")])
def test_an_example_trains_and_draws_what_it_learnt(tmp_path, name, measure):
    command = [sys.executable, EXAMPLES / f"{name}.py", "--seconds", "0.5"]
    printed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert f"before: {measure} " in printed
    assert "after " in printed
    assert (tmp_path / "demo" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
