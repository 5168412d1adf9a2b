"""Measurements in fresh processes of one thread, whose memory and time nothing else has touched."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from statistics import median


def medians(codes: Mapping[str, str], repeats: int, *, bytecode: Path | None) -> dict[str, list[float]]:
    """The median of every number that each piece of code prints in its last line, the pieces taking turns.

    bytecode: folder for Python's compiled modules, filled by a first turn that is not counted; None compiles all
        modules in every process, as in an environment that nobody has used before.
    """
    printed: dict[str, list[list[float]]] = {name: [] for name in codes}
    for turn in range(repeats + 1):
        for name, code in codes.items():
            numbers = _numbers(code, bytecode)
            if turn:
                printed[name].append(numbers)
    return {name: [median(column) for column in zip(*runs, strict=True)] for name, runs in printed.items()}


def _numbers(code: str, bytecode: Path | None) -> list[float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(bytecode or os.devnull)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def machine() -> str:
    """The machine, the versions and the date, in words."""
    import safetensors
    import timm
    import torch

    import featx

    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = models[0].partition(": ")[2] if models else platform.machine()
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
    versions |= {"safetensors": safetensors.__version__, "featx": featx.__version__}
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{processor}, {os.cpu_count()} cores, one thread used, load {os.getloadavg()[0]:.1f}; {words}; {date.today()}"
    )
