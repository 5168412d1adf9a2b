"""Measurements in new single-threaded processes, without effects of earlier measurements."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from statistics import median


def medians(codes: Mapping[str, str], repeats: int, *, bytecode: Path | None) -> dict[str, list[float]]:
    """Run each piece of code in new processes, interleaved, and return medians.

    Args:
        codes: Python source by name; its last printed line contains numbers.
        repeats: counted runs of each piece; one uncounted run comes first.
        bytecode: folder of Python's bytecode cache, which the uncounted run fills; None compiles all modules in
            every process, as in a new environment.

    Returns:
        By name, the median of each number.
    """
    printed: dict[str, list[list[float]]] = {name: [] for name in codes}
    for round_number in range(repeats + 1):
        for name, code in codes.items():
            numbers = _run(code, bytecode)
            if round_number:
                printed[name].append(numbers)
    return {name: [median(column) for column in zip(*runs, strict=True)] for name, runs in printed.items()}


def _run(code: str, bytecode: Path | None) -> list[float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(bytecode or os.devnull)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return [float(word) for word in process.stdout.splitlines()[-1].split()]


def machine() -> str:
    """Return a line that describes the machine, the versions and the date."""
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
