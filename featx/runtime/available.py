"""Which runtimes can be used on this machine, and what the others lack."""

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import torch

# oneDNN's, as PyTorch's own compiler calls them.
KERNELS = ("_convolution_pointwise", "_convolution_pointwise_", "_linear_pointwise", "_reorder_convolution_weight")
# The packages that a runtime needs besides torch; a runtime's extra has its name, but for ONNX Runtime's.
WRITING = ("onnx", "onnxscript")
PACKAGES = {"onnxruntime": (*WRITING, "onnxruntime"), "openvino": (*WRITING, "openvino")}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}


def runtimes() -> dict[str, str | None]:
    """The runtimes of `optimize` by name: None if one can be used here, else what is missing and how to get it.

    Nothing is imported or compiled to find out.
    """
    return {
        "eager": None,
        "onednn": _lacks_onednn(),
        "compile": lacks_compiler(),
        "aot": lacks_compiler(),
        **{name: lacks_packages(name) for name in PACKAGES},
    }


def lacks_packages(runtime: str, packages: Sequence[str] = ()) -> str | None:
    """What a runtime needs that is not installed, and how to install it; None if all is there.

    packages: those that are needed for this; by default all that building an extractor for the runtime takes.
    """
    absent = [package for package in packages or PACKAGES[runtime] if find_spec(package) is None]
    return f"it needs {' and '.join(absent)}: pip install 'featx[{EXTRAS[runtime]}]'" if absent else None


def lacks_compiler() -> str | None:
    """What PyTorch's compiler needs and this machine lacks; None if it is there."""
    wanted = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(wanted):
        return None
    return f"it needs a C++ compiler, and there is no {wanted}: install one, or name yours in the environment's CXX"


def _lacks_onednn() -> str | None:
    there = all(hasattr(torch.ops.mkldnn, name) for name in KERNELS)
    if there and torch.backends.mkldnn.is_available():
        return None
    return "this build of PyTorch lacks oneDNN's kernels (torch.backends.mkldnn): install one that has them"
