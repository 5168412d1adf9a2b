"""ResNeSt, https://arxiv.org/abs/2004.08955: a ResNet-D with split attention in place of 3x3 convolutions.

In a stage with stride, an average pool before or after the split attention has the stride. Reference: timm.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor, nn

from ..preprocessing import DataConfig
from ..registry import Variant, register
from .layers.attention import round_chs
from .layers.normed import normed
from .layers.padding import SameAvgPool2d
from .layers.residual import Bottleneck, Residual, conv3x3
from .layers.steps import Step
from .resnet import ResNet, ResNetConfig


@dataclass(frozen=True, slots=True)
class Splits(Residual):
    """The configuration of a ResNeSt. radix: splits per group; pool_first: whether the pool precedes the splits."""

    radix: int = 2
    pool_first: bool = False
    avg_down: bool = True


class SplitBottleneck(Bottleneck):
    """A bottleneck with split attention in place of its 3x3 convolution, norm and activation."""

    def __init__(self, in_chs: int, chs: int, step: Step = Step(), style: Splits = Splits(), drop: float = 0.0) -> None:
        super().__init__(in_chs, chs, step, style, drop)
        pool = self.pool(step.stride) if step.stride > 1 else nn.Identity()
        self.conv2 = SplitAttention(self.conv1.out_channels, step, style, pool)
        self.bn2, self.act2 = nn.Identity(), nn.Identity()

    @staticmethod
    def pool(stride: int) -> nn.Module:
        """The pool that has the stride."""
        return nn.AvgPool2d(3, stride, 1)


class SamePoolSplitBottleneck(SplitBottleneck):
    """The block with its pool padded as in TensorFlow."""

    @staticmethod
    def pool(stride: int) -> nn.Module:
        return SameAvgPool2d(3, stride)


class SplitAttention(nn.Module):
    """Split attention, a weighted sum of the splits of a 3x3 convolution: (N, chs, H, W) to (N, chs, H / s, W / s)."""

    def __init__(self, chs: int, step: Step, style: Splits, pool: nn.Module) -> None:
        super().__init__()
        self.groups, self.radix = style.groups, style.radix
        waist = max(32, round_chs(chs * style.radix / 4))
        self.pool_before, self.pool_after = (pool, nn.Identity()) if style.pool_first else (nn.Identity(), pool)
        self.conv = conv3x3(chs, chs * style.radix, 1, step.entry, style.groups * style.radix)
        self.bn0 = style.norm(chs * style.radix)
        self.act0 = nn.ReLU(inplace=True)
        self.fc1 = nn.Conv2d(chs, waist, 1, groups=style.groups)
        self.bn1 = style.norm(waist)
        self.act1 = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(waist, chs * style.radix, 1, groups=style.groups)

    def forward(self, x: Tensor) -> Tensor:
        # chunks keep the memory format, also for a single image; views with an axis for the splits may not
        chunks = self.act0(normed(self.conv, self.bn0, self.pool_before(x))).chunk(self.radix, 1)
        parts = [chunks[split] for split in range(self.radix)]
        scores = added(parts).mean((2, 3), keepdim=True)
        scores = self.fc2(self.act1(self.bn1(self.fc1(scores))))  # (N, groups * radix * chs / groups, 1, 1)
        scores = scores.unflatten(1, (self.groups, self.radix, -1)).transpose(1, 2).flatten(2, 3)
        gates = scores.softmax(1) if self.radix > 1 else scores.sigmoid()  # (N, radix, chs, 1, 1)
        return self.pool_after(added(part * gates.select(1, split) for split, part in enumerate(parts)))


def added(maps: Iterable[Tensor]) -> Tensor:
    """The sum of maps of the same shape."""
    return reduce(add, maps)


def splits(depths: tuple[int, ...], style: Splits = Splits(), stem: int = 32) -> ResNetConfig:
    """stem: channels of its first two convolutions; the third has twice as many."""
    return ResNetConfig(depths, SplitBottleneck, style, (stem, stem, 2 * stem))


def data(size: int = 224, crop: float = 0.875, interpolation: str = "bilinear") -> DataConfig:
    return DataConfig((size, size), interpolation=interpolation, crop=crop)


R50 = (3, 4, 6, 3)
VARIANTS = [
    ("resnest14d", splits((1, 1, 1, 1)), "gluon_in1k", data()),
    ("resnest26d", splits((2, 2, 2, 2)), "gluon_in1k", data()),
    ("resnest50d", splits(R50), "in1k", data()),
    ("resnest50d_1s4x24d", splits(R50, Splits(4, 24, radix=1, pool_first=True)), "in1k", data(interpolation="bicubic")),
    ("resnest50d_4s2x40d", splits(R50, Splits(2, 40, radix=4, pool_first=True)), "in1k", data(interpolation="bicubic")),
    ("resnest101e", splits((3, 4, 23, 3), stem=64), "in1k", data(256)),
    ("resnest200e", splits((3, 24, 36, 3), stem=64), "in1k", data(320, 0.909, "bicubic")),
    ("resnest269e", splits((3, 30, 48, 8), stem=64), "in1k", data(416, 0.928, "bicubic")),
]

register({name: Variant(ResNet, config, (tag,), images) for name, config, tag, images in VARIANTS})
