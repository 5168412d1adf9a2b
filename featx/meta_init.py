"""Build models on the meta device: parameters with shapes and without values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Random initializers. On meta tensors, PyTorch would import its compiler for them, which takes seconds.
RANDOM = {Tensor.normal_, Tensor.uniform_, nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_}


@contextmanager
def init_empty_weights() -> Iterator[None]:
    """Within the context, new tensors are on the meta device: they use no memory and draw no random numbers."""
    with torch.device("meta"), _SkipRandomInit():
        yield


class _SkipRandomInit(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
