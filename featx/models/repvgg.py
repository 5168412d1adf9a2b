"""RepVGG, https://arxiv.org/abs/2101.03697: blocks of three parallel branches that `reparameterize` fuses to one.

In the `g4` variants every second block of a stage has four groups; `d2se` ends each block's sum with
squeeze-and-excitation. Reference: timm.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..backbone import Backbone, StridedConfig
from ..errors import ArgumentError
from ..features import FeatureInfo, Levels
from ..preprocessing import DataConfig
from ..registry import Variant, register
from .layers.attention import SEModule, round_chs
from .layers.conv_norm import ConvNorm, narrow_normal
from .layers.drop_path import drop_path, rising_rates
from .layers.mobile import init_mobile
from .layers.pool import HEAD_POOL, pooled_chs, pooled_head
from .layers.steps import Step, plan_steps


@dataclass(frozen=True, slots=True)
class RepVGGConfig(StridedConfig):
    """The configuration of a RepVGG.

    Attributes:
        depths: blocks per stage.
        widths: channels per stage relative to 64, 128, 256 and 512.
        groups: of the convolutions of every second block, or of every block, per stage.
        attn: a function from channels to the channel attention after the sum.
    """

    depths: tuple[int, ...]
    widths: tuple[float, ...]
    groups: int | tuple[tuple[int, ...], ...] = 1
    attn: Callable[[int], nn.Module] = nn.Identity


def init_repvgg(model: nn.Module) -> None:
    """Initialize in place with normal weights; norm scales around 0.1 keep the sum of the branches small."""
    init_mobile(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.1, 0.1)
            nn.init.normal_(module.bias, 0.0, 0.1)
        elif isinstance(module, nn.Linear):
            narrow_normal(module)


class RepVGG(Backbone):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the stem, the stages."""

    last_linear = "head.fc"
    pool_layers = HEAD_POOL
    first_convs = ("stem.conv_kxk.conv", "stem.conv_1x1.conv")
    initialize = staticmethod(init_repvgg)

    def __init__(self, cfg: RepVGGConfig) -> None:
        super().__init__()
        self.config, self.in_chans = cfg, cfg.in_chans
        chs = round(64 * min(1.0, cfg.widths[0]))
        self.stem = RepVGGBlock(cfg.in_chans, chs, Step(2), attn=cfg.attn)
        info = [FeatureInfo(chs, 2, "stem")]
        plan = plan_steps((2, 2, 2, 2), stem=2, output_stride=cfg.output_stride)
        rates = rising_rates(cfg.drop_path_rate, cfg.depths)
        stages: list[nn.Module] = []
        for number, ((step, reduction), stage_rates) in enumerate(zip(plan, rates, strict=True)):
            wider = round_chs(64 * 2**number * cfg.widths[number])
            stages.append(stage(cfg, chs, wider, step, stage_groups(cfg, number), stage_rates))
            chs = wider
            info.append(FeatureInfo(chs, reduction, f"stages.{number}"))
        self.stages = nn.Sequential(*stages)
        self.head = pooled_head(chs, cfg.num_classes, cfg.global_pool, cfg.drop_rate)
        self.feature_info, self.num_features = Levels(info), chs
        self.head_hidden_size = pooled_chs(chs, cfg.global_pool)
        self.initialize(self)


class RepVGGBlock(nn.Module):
    """The sum of a 3x3 convolution, a 1x1 convolution and, if shapes allow it, the identity, each with a norm.

    (N, in_chs, H, W) to (N, chs, H / stride, W / stride). After reparameterization, a single 3x3 convolution.
    """

    identity: nn.BatchNorm2d | None
    reparam_conv: nn.Conv2d | None

    def __init__(
        self,
        in_chs: int,
        chs: int,
        step: Step,
        groups: int = 1,
        attn: Callable[[int], nn.Module] = nn.Identity,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        same = in_chs == chs and step.stride == 1 and step.entry == step.dilation
        self.identity = nn.BatchNorm2d(chs) if same else None
        self.conv_kxk = ConvNorm(in_chs, chs, 3, step, groups)
        self.conv_1x1 = ConvNorm(in_chs, chs, 1, step, groups)
        self.drop_path = drop_path(drop if same else 0.0)
        self.attn = attn(chs)
        self.act = nn.ReLU(inplace=True)
        self.reparam_conv = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.branches(x) if self.reparam_conv is None else self.reparam_conv(x)
        return self.act(self.attn(y))

    def branches(self, x: Tensor) -> Tensor:
        """The sum of the branches."""
        y = self.drop_path(self.conv_1x1(x).add_(self.conv_kxk(x)))
        return y if self.identity is None else self.identity(x).add_(y)

    def reparameterize(self) -> None:
        """Fuse the branches to `reparam_conv`, in place; ArgumentError in training mode."""
        require_eval(self)
        if self.reparam_conv is not None:
            return
        fused = deepcopy(self.conv_kxk.conv)
        fused.weight, fused.bias = (nn.Parameter(x, fused.weight.requires_grad) for x in self.fused_weights())
        self.reparam_conv = fused
        del self.conv_kxk, self.conv_1x1, self.identity, self.drop_path

    @torch.no_grad()
    def fused_weights(self) -> tuple[Tensor, Tensor]:
        """Kernel (chs, in_chs / groups, 3, 3) and bias (chs,) of the one convolution that equals the branches."""
        conv, conv_1x1 = self.conv_kxk.conv, self.conv_1x1.conv
        kernels = [(conv.weight, self.conv_kxk.bn), (F.pad(conv_1x1.weight, (1, 1, 1, 1)), self.conv_1x1.bn)]
        if self.identity is not None:
            kernels.append((nn.init.dirac_(torch.empty_like(conv.weight), conv.groups), self.identity))
        fused = [with_norm(kernel, bn) for kernel, bn in kernels]
        return torch.stack([kernel for kernel, _ in fused]).sum(0), torch.stack([bias for _, bias in fused]).sum(0)


def with_norm(kernel: Tensor, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias of one convolution that equals a convolution by `kernel` followed by `bn` in eval mode."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return fuse_conv_bn_weights(kernel, None, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)


def reparameterize(model: nn.Module) -> None:
    """Fuse the branches of every RepVGG block in place.

    Maps and logits are equal up to rounding. The blocks' parameters then have timm's names for fused blocks. Models
    that share blocks with `model` are fused, too.

    Args:
        model: a model or a feature extractor.

    Raises:
        ArgumentError: the model is in training mode, in which norms do not use running statistics. Nothing is changed.
    """
    blocks = [module for module in model.modules() if isinstance(module, RepVGGBlock)]
    require_eval(*blocks)
    for block in blocks:
        block.reparameterize()


def require_eval(*blocks: RepVGGBlock) -> None:
    if any(module.training for block in blocks for module in block.modules()):
        raise ArgumentError("a RepVGG in training mode cannot be reparameterized: call model.eval() first")


def stage_groups(cfg: RepVGGConfig, number: int) -> tuple[int, ...]:
    """Groups of each block in the stage."""
    if isinstance(cfg.groups, tuple):
        return cfg.groups[number]
    return tuple(cfg.groups if block % 2 else 1 for block in range(cfg.depths[number]))


def stage(
    cfg: RepVGGConfig, in_chs: int, chs: int, step: Step, groups: tuple[int, ...], rates: list[float]
) -> nn.Sequential:
    """One block per drop-path rate; the first has the stride and changes the channels."""
    first = RepVGGBlock(in_chs, chs, step, groups[0], cfg.attn, rates[0])
    others = zip(groups[1:], rates[1:], strict=True)
    return nn.Sequential(first, *(RepVGGBlock(chs, chs, step.after, group, cfg.attn, rate) for group, rate in others))


def squeeze_excite(chs: int) -> SEModule:
    """Squeeze-and-excitation with a sixteenth of the channels, not rounded."""
    return SEModule(chs, chs // 16)


def data(size: int = 224, crop: float = 0.875) -> DataConfig:
    return DataConfig((size, size), interpolation="bilinear", crop=crop)


A, B, D = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)
VARIANTS = [
    ("repvgg_a0", RepVGGConfig(A, (0.75, 0.75, 0.75, 2.5)), data()),
    ("repvgg_a1", RepVGGConfig(A, (1.0, 1.0, 1.0, 2.5)), data()),
    ("repvgg_a2", RepVGGConfig(A, (1.5, 1.5, 1.5, 2.75)), data()),
    ("repvgg_b0", RepVGGConfig(B, (1.0, 1.0, 1.0, 2.5)), data()),
    ("repvgg_b1", RepVGGConfig(B, (2.0, 2.0, 2.0, 4.0)), data()),
    ("repvgg_b1g4", RepVGGConfig(B, (2.0, 2.0, 2.0, 4.0), 4), data()),
    ("repvgg_b2", RepVGGConfig(B, (2.5, 2.5, 2.5, 5.0)), data()),
    ("repvgg_b2g4", RepVGGConfig(B, (2.5, 2.5, 2.5, 5.0), 4), data()),
    ("repvgg_b3", RepVGGConfig(B, (3.0, 3.0, 3.0, 5.0)), data()),
    ("repvgg_b3g4", RepVGGConfig(B, (3.0, 3.0, 3.0, 5.0), 4), data()),
    ("repvgg_d2se", RepVGGConfig(D, (2.5, 2.5, 2.5, 5.0), attn=squeeze_excite), data(320, 1.0)),
]

register({name: Variant(RepVGG, config, ("rvgg_in1k",), images) for name, config, images in VARIANTS})
