"""Which runtimes can be used on this machine, in which versions, and what the others lack."""

import platform
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path

import torch

# The packages that a runtime needs besides torch; a runtime's extra has its name, but for ONNX Runtime's.
PACKAGES = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}


def runtimes() -> dict[str, str | None]:
    """The runtimes of `optimize` by name: None if one can be used here, else what is missing and how to get it.

    Nothing is imported to find out.
    """
    return {"eager": None, **{name: lacks_packages(name) for name in PACKAGES}}


def lacks_packages(runtime: str, packages: Sequence[str] = ()) -> str | None:
    """What a runtime needs that is not installed, and how to install it; None if all is there.

    packages: those that are needed for this; by default all that building an extractor for the runtime takes.
    """
    absent = [package for package in packages or PACKAGES[runtime] if find_spec(package) is None]
    return f"it needs {' and '.join(absent)}: pip install 'featx[{EXTRAS[runtime]}]'" if absent else None


@cache
def version(package: str) -> str:
    """The version of a package that is installed; nothing if it does not say."""
    try:
        return version_of(package)
    except PackageNotFoundError:
        return ""


@cache
def processor() -> str:
    """The model of this machine's processor, and the instructions that PyTorch uses of it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    named = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return f"{next(named, platform.processor() or platform.machine())}, {torch.backends.cpu.get_cpu_capability()}"
