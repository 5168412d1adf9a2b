"""What tests of the command line share: a run of it within this process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import featx.cli


@dataclass
class Ran:
    status: int
    out: str
    err: str


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """A function of the words of a command line."""

    def run(*words: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["featx", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")  # so that mistakes in options are told in one line
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            featx.cli.main()
        return Ran(exit_.value.code or 0, *capsys.readouterr())

    return run
