"""Faster extractors of the same maps: `optimize`."""

from .optimize import optimize as optimize
