"""RegNet, https://arxiv.org/abs/2003.13678: four stages whose widths follow a quantized linear function of depth.

X has bottlenecks with grouped convolutions. Y adds squeeze-and-excitation after the 3x3 convolution, with a width
relative to the block's input channels. `_tv` variants round widths to groups as torchvision does. Reference: timm.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from math import log

from torch import Tensor, nn

from ..backbone import Backbone, StridedConfig
from ..features import FeatureInfo, Levels
from ..preprocessing import DataConfig
from ..registry import Variant, register
from .layers.attention import SEModule, round_chs
from .layers.conv_norm import ConvNorm, init_by_fan_out, narrow_normal
from .layers.drop_path import drop_path, rising_rates
from .layers.pool import HEAD_POOL, pooled_chs, pooled_head
from .layers.steps import Step, plan_steps


@dataclass(frozen=True, slots=True)
class RegNetConfig(StridedConfig):
    """The configuration of a RegNet, with the paper's parameters.

    Attributes:
        w0: block i has w0 + wa * i channels before quantization.
        wa: slope of the widths.
        wm: widths are quantized to w0 times powers of it.
        depth: total number of blocks.
        group_size: channels per group of the 3x3 convolutions.
        se_ratio: channels of the squeeze-and-excitation relative to the block's input; 0 for none.
        group_min_ratio: smallest fraction of a width that rounding to groups keeps, as in torchvision; 0 rounds as the
            authors do.
    """

    w0: int
    wa: float
    wm: float
    depth: int
    group_size: int
    se_ratio: float = 0.0
    group_min_ratio: float = 0.0
    stem_width: int = 32


def init_regnet(model: nn.Module) -> None:
    """Initialize in place: normal weights (fan out per group), zero biases, zero scales at the end of branches."""
    init_by_fan_out(model, narrow_normal)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.conv3.bn.weight)


class RegNet(Backbone):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the stem, each stage."""

    last_linear = "head.fc"
    pool_layers = HEAD_POOL
    initialize = staticmethod(init_regnet)

    def __init__(self, cfg: RegNetConfig) -> None:
        super().__init__()
        self.config, self.in_chans, chs = cfg, cfg.in_chans, cfg.stem_width
        self.stem = ConvNorm(cfg.in_chans, chs, 3, Step(2), act=nn.ReLU)
        info = [FeatureInfo(chs, 2, "stem")]
        widths = stage_widths(cfg)
        plan = plan_steps([2] * len(widths), stem=2, output_stride=cfg.output_stride)
        rates = rising_rates(cfg.drop_path_rate, tuple(widths.values()))
        for number, (width, (step, reduction)) in enumerate(zip(widths, plan, strict=True), start=1):
            self.add_module(f"s{number}", stage(cfg, chs, width, step, rates[number - 1]))
            chs = to_groups(width, cfg)
            info.append(FeatureInfo(chs, reduction, f"s{number}"))
        self.head = pooled_head(chs, cfg.num_classes, cfg.global_pool, cfg.drop_rate)
        self.feature_info, self.num_features = Levels(info), chs
        self.head_hidden_size = pooled_chs(chs, cfg.global_pool)
        self.initialize(self)


class Bottleneck(nn.Module):
    """A grouped 3x3 convolution between two 1x1: (N, in_chs, H, W) to (N, chs, H / stride, W / stride)."""

    def __init__(self, cfg: RegNetConfig, in_chs: int, chs: int, step: Step, drop: float) -> None:
        super().__init__()
        waist = round(in_chs * cfg.se_ratio)
        self.conv1 = ConvNorm(in_chs, chs, act=nn.ReLU)
        self.conv2 = ConvNorm(chs, chs, 3, step, chs // min(cfg.group_size, chs), nn.ReLU)
        self.se = SEModule(chs, waist) if waist else nn.Identity()
        self.conv3 = ConvNorm(chs, chs)
        keeps_shape = step.stride == 1 and in_chs == chs
        self.downsample = nn.Identity() if keeps_shape else ConvNorm(in_chs, chs, step=Step(step.stride))
        self.drop_path = drop_path(drop)
        self.act3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop_path(self.conv3(self.se(self.conv2(self.conv1(x)))))
        return self.act3(y + self.downsample(x))


def stage(cfg: RegNetConfig, in_chs: int, width: int, step: Step, rates: list[float]) -> nn.Sequential:
    """One block per drop-path rate, from `b1`; the first has the stride and changes the channels."""
    blocks, chs = nn.Sequential(), to_groups(width, cfg)
    for number, rate in enumerate(rates, start=1):
        blocks.add_module(f"b{number}", Bottleneck(cfg, in_chs, chs, step, rate))
        in_chs, step = chs, step.after
    return blocks


def stage_widths(cfg: RegNetConfig) -> Counter[int]:
    """Number of blocks by width, ascending. Widths are quantized to w0 times powers of `wm` and to multiples of 8."""
    powers = (round(log(1 + cfg.wa * block / cfg.w0) / log(cfg.wm)) for block in range(cfg.depth))
    return Counter(round(cfg.w0 * cfg.wm**power / 8) * 8 for power in powers)


def to_groups(width: int, cfg: RegNetConfig) -> int:
    """The width rounded to a multiple of the channels of a group; the authors round ties to even."""
    group = min(cfg.group_size, width)
    if cfg.group_min_ratio:
        return round_chs(width, group, cfg.group_min_ratio)
    return round(width / group) * group


def y(w0: int, wa: float, wm: float, depth: int, group_size: int) -> RegNetConfig:
    return RegNetConfig(w0, wa, wm, depth, group_size, se_ratio=0.25)


def tv(cfg: RegNetConfig) -> RegNetConfig:
    return replace(cfg, group_min_ratio=0.9)


X004, Y008, Y080 = RegNetConfig(24, 24.48, 2.54, 22, 16), y(56, 38.84, 2.4, 14, 16), y(192, 76.82, 2.19, 17, 56)
PYCLS, TV2, LATER, LARGE = DataConfig(), DataConfig(crop=0.965), DataConfig(crop=0.95), DataConfig((384, 384), crop=1.0)
SW = "sw_in12k_ft_in1k sw_in12k pycls_in1k"
SEER, SWAG = "seer_ft_in1k seer", "swag_ft_in1k swag_lc_in1k"
# DataConfig fields of weights that differ from those of their variant's default weights, by tag.
TAGS = {
    "pycls_in1k": asdict(PYCLS),
    **dict.fromkeys(("tv2_in1k", "swag_lc_in1k", "seer"), asdict(TV2)),
    **dict.fromkeys(("swag_ft_in1k", "seer_ft_in1k"), asdict(LARGE)),
}
VARIANTS = [
    ("regnetx_002", RegNetConfig(24, 36.44, 2.49, 13, 8), "pycls_in1k", PYCLS),
    ("regnetx_004", X004, "pycls_in1k", PYCLS),
    ("regnetx_004_tv", tv(X004), "tv2_in1k", TV2),
    ("regnetx_006", RegNetConfig(48, 36.97, 2.24, 16, 24), "pycls_in1k", PYCLS),
    ("regnetx_008", RegNetConfig(56, 35.73, 2.28, 16, 16), "tv2_in1k pycls_in1k", TV2),
    ("regnetx_016", RegNetConfig(80, 34.01, 2.25, 18, 24), "tv2_in1k pycls_in1k", TV2),
    ("regnetx_032", RegNetConfig(88, 26.31, 2.25, 25, 48), "tv2_in1k pycls_in1k", TV2),
    ("regnetx_040", RegNetConfig(96, 38.65, 2.43, 23, 40), "pycls_in1k", PYCLS),
    ("regnetx_064", RegNetConfig(184, 60.83, 2.07, 17, 56), "pycls_in1k", PYCLS),
    ("regnetx_080", RegNetConfig(80, 49.56, 2.88, 23, 120), "tv2_in1k pycls_in1k", TV2),
    ("regnetx_120", RegNetConfig(168, 73.36, 2.37, 19, 112), "pycls_in1k", PYCLS),
    ("regnetx_160", RegNetConfig(216, 55.59, 2.1, 22, 128), "tv2_in1k pycls_in1k", TV2),
    ("regnetx_320", RegNetConfig(320, 69.86, 2.0, 23, 168), "tv2_in1k pycls_in1k", TV2),
    ("regnety_002", y(24, 36.44, 2.49, 13, 8), "pycls_in1k", PYCLS),
    ("regnety_004", y(48, 27.89, 2.09, 16, 8), "tv2_in1k pycls_in1k", TV2),
    ("regnety_006", y(48, 32.54, 2.32, 15, 16), "pycls_in1k", PYCLS),
    ("regnety_008", Y008, "pycls_in1k", PYCLS),
    ("regnety_008_tv", tv(Y008), "tv2_in1k", TV2),
    ("regnety_016", y(48, 20.71, 2.65, 27, 24), "tv2_in1k pycls_in1k", TV2),
    ("regnety_032", y(80, 42.63, 2.66, 21, 24), "ra_in1k pycls_in1k tv2_in1k", LATER),
    ("regnety_040", y(96, 31.41, 2.24, 22, 64), "ra3_in1k pycls_in1k", LATER),
    ("regnety_064", y(112, 33.22, 2.27, 25, 72), "ra3_in1k pycls_in1k", LATER),
    ("regnety_080", Y080, "ra3_in1k pycls_in1k", LATER),
    ("regnety_080_tv", tv(Y080), "tv2_in1k", TV2),
    ("regnety_120", y(168, 73.36, 2.37, 19, 112), SW, LATER),
    ("regnety_160", y(200, 106.23, 2.48, 18, 112), f"{SW} deit_in1k lion_in12k_ft_in1k {SWAG} tv2_in1k", LATER),
    ("regnety_320", y(232, 115.89, 2.53, 20, 232), f"tv2_in1k pycls_in1k {SEER} {SWAG}", TV2),
    ("regnety_640", y(352, 147.48, 2.4, 20, 328), SEER, LARGE),
    ("regnety_1280", y(456, 160.83, 2.52, 27, 264), f"{SWAG} {SEER}", LARGE),
    ("regnety_2560", y(640, 230.83, 2.53, 27, 373), "seer_ft_in1k", LARGE),
]

register({name: Variant(RegNet, config, tuple(tags.split()), images, TAGS) for name, config, tags, images in VARIANTS})
