"""Faster extractors of the same maps, `optimize`, and files of them: `export`, `load_exported`."""

from .available import runtimes as runtimes
from .export import export as export
from .export import load_exported as load_exported
from .optimize import optimize as optimize
