"""Availability of runtimes on this machine: installed packages, their versions, and the processor."""

import platform
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path

import torch

# The packages that each runtime needs in addition to torch, and the extra of featx that installs them.
PACKAGES = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}


def runtimes() -> dict[str, str | None]:
    """The runtimes of `optimize` by name: None if available, else the missing packages and the command to install them.

    No package is imported.
    """
    return {"eager": None, **{name: lacks_packages(name) for name in PACKAGES}}


def lacks_packages(runtime: str, packages: Sequence[str] = ()) -> str | None:
    """The missing packages of a runtime and the command to install them; None if all are installed.

    packages: the packages to look for; by default, all that building an extractor for the runtime requires.
    """
    absent = [package for package in packages or PACKAGES[runtime] if find_spec(package) is None]
    return f"it needs {' and '.join(absent)}: pip install 'featx[{EXTRAS[runtime]}]'" if absent else None


@cache
def version(package: str) -> str:
    """The version of an installed package, or "" if it has no metadata."""
    try:
        return version_of(package)
    except PackageNotFoundError:
        return ""


@cache
def processor() -> str:
    """The model name of this machine's processor, and the instruction set that PyTorch uses."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, {torch.backends.cpu.get_cpu_capability()}"
