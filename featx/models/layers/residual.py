"""The two residual blocks of ResNet (https://arxiv.org/abs/1512.03385), which HRNet is made of too."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from .drop_path import drop_path
from .normed import ConvNorms, normed
from .steps import Step


@dataclass(frozen=True, slots=True)
class Residual:
    """What a family of residual blocks has in common.

    Attributes:
        groups: of the 3x3 convolution.
        group_width: channels of a group; 64 is the width of the plain ResNet (https://arxiv.org/abs/1611.05431).
        avg_down: the shortcut averages before its 1x1 convolution, which then has no stride
            (https://arxiv.org/abs/1812.01187).
        norm: makes a norm for a number of channels.
        stride_in_1x1: the stride of a Bottleneck is in its first 1x1 convolution, as in the original ResNets of Caffe.
        attn: makes the channel attention, applied before the shortcut is added, for a number of channels.
    """

    groups: int = 1
    group_width: int = 64
    avg_down: bool = False
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    attn: Callable[[int], nn.Module] = nn.Identity
    stride_in_1x1: bool = False


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: (N, in_chs, H, W) to (N, chs, H / stride, W / stride)."""

    expansion = 1

    def __init__(
        self, in_chs: int, chs: int, step: Step = Step(), style: Residual = Residual(), drop: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_chs, chs, step.stride, step.entry)
        self.bn1 = style.norm(chs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(chs, chs, 1, step.dilation)
        self.bn2 = style.norm(chs)
        self.se = style.attn(chs)
        self.drop_path = drop_path(drop)
        self.downsample = shortcut(in_chs, chs, step, style)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(normed(self.conv1, self.bn1, x))
        y = self.drop_path(self.se(normed(self.conv2, self.bn2, y)))
        y += self.downsample(x)
        return self.act2(y)

    def zero_init_last(self) -> None:
        """Start as the identity, in place (https://arxiv.org/abs/1706.02677)."""
        nn.init.zeros_(self.bn2.get_parameter("weight"))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1: (N, in_chs, H, W) to (N, 4 chs, H / stride, W / stride)."""

    expansion = 4

    def __init__(
        self, in_chs: int, chs: int, step: Step = Step(), style: Residual = Residual(), drop: float = 0.0
    ) -> None:
        super().__init__()
        width, out_chs = chs * style.group_width // 64 * style.groups, chs * self.expansion
        first, second = (step.stride, 1) if style.stride_in_1x1 else (1, step.stride)
        self.conv1 = nn.Conv2d(in_chs, width, 1, first, bias=False)
        self.bn1 = style.norm(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width, second, step.entry, style.groups)
        self.bn2 = style.norm(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, out_chs, 1, bias=False)
        self.bn3 = style.norm(out_chs)
        self.se = style.attn(out_chs)
        self.drop_path = drop_path(drop)
        self.downsample = shortcut(in_chs, out_chs, step, style)
        self.act3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(normed(self.conv1, self.bn1, x))
        y = self.act2(normed(self.conv2, self.bn2, y))
        y = self.drop_path(self.se(normed(self.conv3, self.bn3, y)))
        y += self.downsample(x)
        return self.act3(y)

    def zero_init_last(self) -> None:
        """Start as the identity, in place (https://arxiv.org/abs/1706.02677)."""
        nn.init.zeros_(self.bn3.get_parameter("weight"))


def conv3x3(in_chs: int, chs: int, stride: int, dilation: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_chs, chs, 3, stride, dilation, dilation, groups, bias=False)


def shortcut(in_chs: int, chs: int, step: Step, style: Residual) -> nn.Module:
    """The identity where shapes allow it, else a 1x1 convolution and norm, behind an average pool if `avg_down`."""
    if step.stride == 1 and in_chs == chs:
        return nn.Identity()
    if not style.avg_down:
        return ConvNorms(nn.Conv2d(in_chs, chs, 1, step.stride, bias=False), style.norm(chs))
    return ConvNorms(_average(step), nn.Conv2d(in_chs, chs, 1, bias=False), style.norm(chs))


def _average(step: Step) -> nn.Module:
    if step.stride > 1:
        return nn.AvgPool2d(2, step.stride, ceil_mode=True, count_include_pad=False)
    if step.dilation == 1:
        return nn.Identity()
    # where dilation replaced the stride, the mean is taken in place; the border counts one row and column of zeros
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1))


def init_conv_norm(model: nn.Module) -> None:
    """Kaiming-normal convolutions (fan out) under unit norms, in place (https://arxiv.org/abs/1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
