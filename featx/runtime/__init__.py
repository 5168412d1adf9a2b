"""Faster extractors of the same maps: `optimize`."""

from .available import runtimes as runtimes
from .optimize import optimize as optimize
