"""Attention maps of a forward pass."""

from .capture import Attention as Attention
from .capture import capture_attention as capture_attention
