"""Convolution with batch norm and activation, and initialization of such layers."""

from collections.abc import Callable
from math import sqrt

from torch import Tensor, nn

from .normed import activated
from .steps import Step

OVERWRITING = (nn.ReLU, nn.SiLU, nn.Hardswish)  # activations that can


class ConvNorm(nn.Module):
    """Convolution, norm, activation, with padding: (N, in_chs, H, W) to (N, chs, H / stride, W / stride)."""

    def __init__(
        self,
        in_chs: int,
        chs: int,
        kernel: int = 1,
        step: Step = Step(),
        groups: int = 1,
        act: type[nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        padding = step.entry * (kernel // 2)
        self.conv = nn.Conv2d(in_chs, chs, kernel, step.stride, padding, step.entry, groups, bias=False)
        self.bn = nn.BatchNorm2d(chs)
        self.act = act(inplace=True) if act in OVERWRITING else act()  # nothing else reads what the norm returns

    def forward(self, x: Tensor) -> Tensor:
        return activated(self.conv, self.bn, self.act, x)


def init_by_fan_out(model: nn.Module, init_linear: Callable[[nn.Linear], object]) -> None:
    """Initialize in place: normal convolutions (fan out per group), linear layers by `init_linear`, zero biases."""
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
