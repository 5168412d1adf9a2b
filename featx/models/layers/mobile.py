"""Blocks and stages of the mobile families: MobileNetV2 (https://arxiv.org/abs/1801.04381) and its descendants.

A family's stages are tables of rows. `build_stages` returns their modules and levels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

from torch import Tensor, nn

from ...backbone import Backbone, StridedConfig
from ...features import FeatureInfo, Levels
from .attention import SqueezeExcite, round_chs
from .conv_norm import init_by_fan_out, uniform_by_fan_out
from .drop_path import drop_path, require_rate
from .normed import activated, normed
from .padding import even_conv, same_conv
from .steps import Step, plan_steps

Activation = type[nn.Module]


@dataclass(frozen=True, slots=True)
class Row:
    """Blocks of one kind in a stage; only the first has the stride.

    Attributes:
        block: the class of the blocks.
        chs: output channels.
        kernel: side of the spatial convolution.
        stride: of the first block.
        expand: inner channels of a block relative to its input.
        repeats: number of blocks.
        se: whether blocks have the style's squeeze-and-excitation.
        act: activation; None for the style's.
        shortcut: whether blocks have a shortcut if shapes allow it.
    """

    block: type["MobileBlock"]
    chs: int
    kernel: int = 3
    stride: int = 1
    expand: float = 1.0
    repeats: int = 1
    se: bool = False
    act: Activation | None = None
    shortcut: bool = True


Stage = tuple[Row, ...]


def input_gate(in_chs: int, chs: int, act: Activation) -> SqueezeExcite:
    """Squeeze-and-excitation with a quarter of a block's input channels (EfficientNet)."""
    return SqueezeExcite(chs, round(in_chs / 4), nn.Sigmoid, act)


def inner_gate(_in_chs: int, chs: int, _act: Activation) -> SqueezeExcite:
    """Squeeze-and-excitation with a quarter of a block's inner channels and a hard sigmoid (MobileNetV3)."""
    return SqueezeExcite(chs, round_chs(chs / 4), nn.Hardsigmoid)


@dataclass(frozen=True, slots=True)
class MobileStyle:
    """The components that all blocks of a network share.

    Attributes:
        act: the activation of rows without their own.
        gate: a function from a block's input channels, inner channels and activation to squeeze-and-excitation.
        conv: a function from input and output channels, kernel, stride, dilation and groups to a convolution.
        norm: a function from channels to a norm.
    """

    act: Activation
    gate: Callable[[int, int, Activation], nn.Module] = input_gate
    conv: Callable[[int, int, int, int, int, int], nn.Conv2d] = even_conv
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d


tensorflow_norm = partial(nn.BatchNorm2d, eps=1e-3)


def as_tensorflow(style: MobileStyle) -> MobileStyle:
    """The style with the padding and norms of weights trained in TensorFlow."""
    return replace(style, conv=same_conv, norm=tensorflow_norm)


@dataclass(frozen=True, slots=True)
class MobileConfig(StridedConfig):
    """The configuration of families whose stages are tables of rows.

    Attributes:
        stages: the rows of each stage.
        stem_chs: channels of the convolution before the stages.
        head_chs: channels of the convolution after the stages.
        norm_eps: of the batch norms; None for the style's.
    """

    stages: tuple[Stage, ...]
    stem_chs: int
    head_chs: int
    style: MobileStyle
    norm_eps: float | None = None

    @property
    def layers(self) -> MobileStyle:
        """The style with those norms."""
        if self.norm_eps is None:
            return self.style
        return replace(self.style, norm=partial(nn.BatchNorm2d, eps=self.norm_eps))


class MobileBlock(nn.Module):
    """(N, in_chs, H, W) to (N, row.chs, H / stride, W / stride), with a shortcut where the shapes allow it."""

    def __init__(self, in_chs: int, row: Row, step: Step, _style: MobileStyle, drop: float = 0.0) -> None:
        super().__init__()
        self.has_shortcut = row.shortcut and step.stride == 1 and in_chs == row.chs
        self.drop_path = drop_path(drop)

    def transform(self, x: Tensor) -> Tensor:
        """The residual branch of the block."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.transform(x)) + x if self.has_shortcut else self.transform(x)


class ConvNormAct(MobileBlock):
    """A dense convolution, without squeeze-and-excitation."""

    def __init__(self, in_chs: int, row: Row, step: Step, style: MobileStyle, drop: float = 0.0) -> None:
        super().__init__(in_chs, row, step, style, drop)
        self.conv = style.conv(in_chs, row.chs, row.kernel, step.stride, step.entry, 1)
        self.bn1 = style.norm(row.chs)
        self.act1 = activation(row, style)

    def transform(self, x: Tensor) -> Tensor:
        return activated(self.conv, self.bn1, self.act1, x)


class DepthwiseSeparable(MobileBlock):
    """A depthwise and a 1x1 convolution (https://arxiv.org/abs/1704.04861)."""

    def __init__(self, in_chs: int, row: Row, step: Step, style: MobileStyle, drop: float = 0.0) -> None:
        super().__init__(in_chs, row, step, style, drop)
        self.conv_dw = style.conv(in_chs, in_chs, row.kernel, step.stride, step.entry, in_chs)
        self.bn1 = style.norm(in_chs)
        self.act1 = activation(row, style)
        self.se = squeeze_excite(in_chs, in_chs, row, style)
        self.conv_pw = style.conv(in_chs, row.chs, 1, 1, 1, 1)
        self.bn2 = style.norm(row.chs)

    def transform(self, x: Tensor) -> Tensor:
        x = activated(self.conv_dw, self.bn1, self.act1, x)
        return normed(self.conv_pw, self.bn2, self.se(x))


class InvertedResidual(MobileBlock):
    """1x1 expansion, depthwise convolution, 1x1 projection without activation."""

    def __init__(self, in_chs: int, row: Row, step: Step, style: MobileStyle, drop: float = 0.0) -> None:
        super().__init__(in_chs, row, step, style, drop)
        chs = round_chs(in_chs * row.expand)
        self.conv_pw = style.conv(in_chs, chs, 1, 1, 1, 1)
        self.bn1 = style.norm(chs)
        self.act1 = activation(row, style)
        self.conv_dw = style.conv(chs, chs, row.kernel, step.stride, step.entry, chs)
        self.bn2 = style.norm(chs)
        self.act2 = activation(row, style)
        self.se = squeeze_excite(in_chs, chs, row, style)
        self.conv_pwl = style.conv(chs, row.chs, 1, 1, 1, 1)
        self.bn3 = style.norm(row.chs)

    def transform(self, x: Tensor) -> Tensor:
        x = activated(self.conv_pw, self.bn1, self.act1, x)
        x = self.se(activated(self.conv_dw, self.bn2, self.act2, x))
        return normed(self.conv_pwl, self.bn3, x)


class FusedInvertedResidual(MobileBlock):
    """A dense spatial convolution that expands (https://arxiv.org/abs/2104.00298), then a 1x1 projection."""

    def __init__(self, in_chs: int, row: Row, step: Step, style: MobileStyle, drop: float = 0.0) -> None:
        super().__init__(in_chs, row, step, style, drop)
        chs = round_chs(in_chs * row.expand)
        self.conv_exp = style.conv(in_chs, chs, row.kernel, step.stride, step.entry, 1)
        self.bn1 = style.norm(chs)
        self.act1 = activation(row, style)
        self.se = squeeze_excite(in_chs, chs, row, style)
        self.conv_pwl = style.conv(chs, row.chs, 1, 1, 1, 1)
        self.bn2 = style.norm(row.chs)

    def transform(self, x: Tensor) -> Tensor:
        x = activated(self.conv_exp, self.bn1, self.act1, x)
        return normed(self.conv_pwl, self.bn2, self.se(x))


def activation(row: Row, style: MobileStyle) -> nn.Module:
    return (row.act or style.act)(inplace=True)


def squeeze_excite(in_chs: int, chs: int, row: Row, style: MobileStyle) -> nn.Module:
    return style.gate(in_chs, chs, row.act or style.act) if row.se else nn.Identity()


def widen(stages: Sequence[Stage], multiplier: float, lowest: float = 0.9) -> tuple[Stage, ...]:
    """Multiply all channels of the table. Rounding keeps at least the fraction `lowest`."""

    def wider(row: Row) -> Row:
        return replace(row, chs=round_chs(row.chs * multiplier, lowest=lowest))

    return tuple(tuple(wider(row) for row in stage) for stage in stages)


def deepen(stages: Sequence[Stage], multiplier: float) -> tuple[Stage, ...]:
    """Multiply the number of blocks of every stage, rounded up."""
    return tuple(_deeper(stage, multiplier) for stage in stages)


def _deeper(stage: Stage, multiplier: float) -> Stage:
    """Distribute the blocks to the rows in reverse order; the first row gets the rounding remainder."""
    before = sum(row.repeats for row in stage)
    after, deeper = ceil(before * multiplier), []
    for row in reversed(stage):
        repeats = max(1, round(row.repeats / before * after))
        before, after = before - row.repeats, after - repeats
        deeper.append(replace(row, repeats=repeats))
    return tuple(reversed(deeper))


def build_stages(
    stages: Sequence[Stage], in_chs: int, style: MobileStyle, *, output_stride: int, drop_path_rate: float
) -> tuple[nn.Sequential, list[FeatureInfo]]:
    """Build the stages after a stem of stride 2, to be registered as `blocks`, and one level per nominal reduction.

    A level is the last stage before the next stride. If the first stage has a stride, the stem's `act1` is a level,
    too. Block i of n has a stochastic depth rate of `drop_path_rate` * i / n.
    """
    strides = [stage[0].stride for stage in stages]
    plan = plan_steps(strides, stem=2, output_stride=output_stride)
    info = [FeatureInfo(in_chs, 2, "act1")] if strides[0] > 1 else []
    depth = sum(row.repeats for stage in stages for row in stage)
    rates = iter([require_rate(drop_path_rate) * block / depth for block in range(depth)])
    built: list[nn.Module] = []
    for number, (stage, (step, reduction)) in enumerate(zip(stages, plan, strict=True)):
        rows = [row for row in stage for _ in range(row.repeats)]
        blocks: list[nn.Module] = []
        for row in rows:
            blocks.append(row.block(in_chs, row, step, style, next(rates)))
            in_chs, step = row.chs, step.after
        built.append(nn.Sequential(*blocks))
        if number + 1 == len(stages) or strides[number + 1] > 1:
            info.append(FeatureInfo(in_chs, reduction, f"blocks.{number}"))
    return nn.Sequential(*built), info


def init_mobile(model: nn.Module) -> None:
    """Initialize in place as in TensorFlow: normal convolutions (fan out per group), uniform linear, zero biases."""
    init_by_fan_out(model, uniform_by_fan_out)


class MobileTrunk(Backbone):
    """Base class with the stem and the stages of a network; a family adds its head."""

    last_linear = "classifier"
    pool_layers = ("global_pool", "flatten")
    initialize = staticmethod(init_mobile)

    def __init__(self, cfg: MobileConfig) -> None:
        super().__init__()
        self.config, self.in_chans, style = cfg, cfg.in_chans, cfg.layers
        self.conv_stem = style.conv(cfg.in_chans, cfg.stem_chs, 3, 2, 1, 1)
        self.bn1 = style.norm(cfg.stem_chs)
        self.act1 = style.act(inplace=True)
        self.blocks, info = build_stages(
            cfg.stages, cfg.stem_chs, style, output_stride=cfg.output_stride, drop_path_rate=cfg.drop_path_rate
        )
        self.feature_info, self.num_features, self.head_hidden_size = Levels(info), info[-1].chs, cfg.head_chs
