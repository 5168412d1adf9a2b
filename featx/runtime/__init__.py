"""Faster extractors of the same maps (`optimize`), and extractors as ONNX files (`export`, `load_exported`)."""

from .auto import Choice as Choice
from .available import runtimes as runtimes
from .cache import clear_cache as clear_cache
from .onnx_export import export as export
from .onnx_export import load_exported as load_exported
from .optimization import optimize as optimize
