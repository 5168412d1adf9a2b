"""Tensors by name: what a model gives and takes, and what files of weights hold."""

from collections.abc import Mapping

from torch import Tensor

StateDict = dict[str, Tensor]
State = Mapping[str, Tensor]  # of what is only read
