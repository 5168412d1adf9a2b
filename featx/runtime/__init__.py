"""Faster extractors of the same maps, `optimize`, and files of them: `export`, `load_exported`."""

from .auto import Choice as Choice
from .available import runtimes as runtimes
from .cache import clear_cache as clear_cache
from .export import export as export
from .export import load_exported as load_exported
from .optimize import optimize as optimize
