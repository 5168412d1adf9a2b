"""Which runtimes can be used on this machine, and what the others lack."""

from collections.abc import Sequence
from importlib.util import find_spec

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
