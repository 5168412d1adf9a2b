"""Scripts of docs/ as modules."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def script(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
