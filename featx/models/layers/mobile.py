"""Blocks and stages of the mobile families: MobileNetV2 (https://arxiv.org/abs/1801.04381) and its descendants.

A family's stages are tables of rows; `build_stages` turns them into modules and says which levels they give.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt

from torch import Tensor, nn

from ...features import FeatureInfo
from .attention import SqueezeExcite
from .rounding import round_chs
from .steps import Step, plan_steps


@dataclass(frozen=True, slots=True)
class Row:
    """Blocks of one kind in a stage; only the first takes the stride.

    expand: channels inside a block over those that enter it. se: channels of the squeeze-and-excitation's waist over
    those inside the block; 0 leaves it out.
    """

    block: type["MobileBlock"]
    chs: int
    kernel: int = 3
    stride: int = 1
    expand: float = 1.0
    se: float = 0.0
    act: type[nn.Module] = nn.Hardswish
    repeats: int = 1


Stage = tuple[Row, ...]


class MobileBlock(nn.Module):
    """(N, in_chs, H, W) to (N, row.chs, H / stride, W / stride), with a shortcut where the shapes allow it."""

    def __init__(self, in_chs: int, row: Row, step: Step) -> None:
        super().__init__()
        self.has_shortcut = step.stride == 1 and in_chs == row.chs

    def transform(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.transform(x) + x if self.has_shortcut else self.transform(x)


class ConvNormAct(MobileBlock):
    """A dense convolution, never with a shortcut."""

    def __init__(self, in_chs: int, row: Row, step: Step) -> None:
        super().__init__(in_chs, row, step)
        self.has_shortcut = False
        self.conv = nn.Conv2d(in_chs, row.chs, row.kernel, step.stride, row.kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(row.chs)
        self.act1 = row.act(inplace=True)

    def transform(self, x: Tensor) -> Tensor:
        return self.act1(self.bn1(self.conv(x)))


class DepthwiseSeparable(MobileBlock):
    """A depthwise and a 1x1 convolution (https://arxiv.org/abs/1704.04861)."""

    def __init__(self, in_chs: int, row: Row, step: Step) -> None:
        super().__init__(in_chs, row, step)
        self.conv_dw = depthwise(in_chs, row.kernel, step)
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.act1 = row.act(inplace=True)
        self.se = squeeze_excite(in_chs, row.se)
        self.conv_pw = nn.Conv2d(in_chs, row.chs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(row.chs)

    def transform(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pw(self.se(self.act1(self.bn1(self.conv_dw(x))))))


class InvertedResidual(MobileBlock):
    """Expand by 1x1, convolve depthwise, project by 1x1 without activation."""

    def __init__(self, in_chs: int, row: Row, step: Step) -> None:
        super().__init__(in_chs, row, step)
        chs = round_chs(in_chs * row.expand)
        self.conv_pw = nn.Conv2d(in_chs, chs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(chs)
        self.act1 = row.act(inplace=True)
        self.conv_dw = depthwise(chs, row.kernel, step)
        self.bn2 = nn.BatchNorm2d(chs)
        self.act2 = row.act(inplace=True)
        self.se = squeeze_excite(chs, row.se)
        self.conv_pwl = nn.Conv2d(chs, row.chs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(row.chs)

    def transform(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv_pw(x)))
        x = self.se(self.act2(self.bn2(self.conv_dw(x))))
        return self.bn3(self.conv_pwl(x))


def depthwise(chs: int, kernel: int, step: Step) -> nn.Conv2d:
    return nn.Conv2d(chs, chs, kernel, step.stride, step.entry * (kernel // 2), step.entry, chs, bias=False)


def squeeze_excite(chs: int, ratio: float) -> nn.Module:
    return SqueezeExcite(chs, round_chs(chs * ratio), nn.Hardsigmoid) if ratio else nn.Identity()


def widen(stages: Sequence[Stage], multiplier: float) -> tuple[Stage, ...]:
    """The table with every stage's channels times `multiplier`, rounded."""
    return tuple(tuple(replace(row, chs=round_chs(row.chs * multiplier)) for row in stage) for stage in stages)


def deepen(stages: Sequence[Stage], multiplier: float) -> tuple[Stage, ...]:
    """The table with every row's repeats times `multiplier`, rounded up; each stage is one row."""
    return tuple(tuple(replace(row, repeats=ceil(row.repeats * multiplier)) for row in stage) for stage in stages)


def build_stages(stages: Sequence[Stage], in_chs: int, output_stride: int) -> tuple[nn.Sequential, list[FeatureInfo]]:
    """The stages behind a stem of stride 2, to be registered as `blocks`, and one level per nominal reduction.

    A level is the last stage before the next stride. Where the first stage strides, the stem's `act1` is a level too.
    """
    strides = [stage[0].stride for stage in stages]
    plan = plan_steps(strides, stem=2, output_stride=output_stride)
    info = [FeatureInfo(in_chs, 2, "act1")] if strides[0] > 1 else []
    built: list[nn.Module] = []
    for number, (stage, (step, reduction)) in enumerate(zip(stages, plan, strict=True)):
        rows = [row for row in stage for _ in range(row.repeats)]
        blocks: list[nn.Module] = []
        for row in rows:
            blocks.append(row.block(in_chs, row, step))
            in_chs, step = row.chs, step.after
        built.append(nn.Sequential(*blocks))
        if number + 1 == len(stages) or strides[number + 1] > 1:
            info.append(FeatureInfo(in_chs, reduction, f"blocks.{number}"))
    return nn.Sequential(*built), info


def init_mobile(model: nn.Module) -> None:
    """Normal convolutions (fan out per group), uniform linear layers, zero biases, in place (TensorFlow's recipe)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, sqrt(2.0 / fan_out))
        elif isinstance(module, nn.Linear):
            bound = 1.0 / sqrt(module.out_features)
            nn.init.uniform_(module.weight, -bound, bound)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
