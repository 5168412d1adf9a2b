"""A convolution, its batch norm and an activation."""

from torch import Tensor, nn

from .normed import activated
from .steps import Step

OVERWRITING = (nn.ReLU, nn.SiLU, nn.Hardswish)  # activations that can


class ConvNorm(nn.Module):
    """(N, in_chs, H, W) to (N, chs, H / stride, W / stride), padded so that nothing but the stride changes the size."""

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
