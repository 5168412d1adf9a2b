"""Random values that several families start from."""

from collections.abc import Callable
from math import sqrt

from torch import nn


def init_by_fan_out(model: nn.Module, init_linear: Callable[[nn.Linear], object]) -> None:
    """Normal convolutions (fan out per group), linear layers as `init_linear` has them, zero biases, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, sqrt(2.0 / fan_out))
        elif isinstance(module, nn.Linear):
            init_linear(module)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def narrow_normal(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, 0.0, 0.01)


def uniform_by_fan_out(layer: nn.Linear) -> None:
    bound = 1.0 / sqrt(layer.out_features)
    nn.init.uniform_(layer.weight, -bound, bound)
