"""ConvNeXt, https://arxiv.org/abs/2201.03545, and ConvNeXt V2, https://arxiv.org/abs/2301.00808.

Blocks are a 7x7 depthwise convolution and an MLP over channels. V2 has global response norm inside the MLP, V1 layer
scale after it. Sizes of maps are rounded down: pixels that do not fill a cell are dropped. Reference: timm.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, CellLinear, StridedConfig, classifier
from ..errors import ArgumentError
from ..features import FeatureInfo, Levels
from ..preprocessing import CLIP, CLIP_MEAN, CLIP_STD, DataConfig
from ..registry import Variant, register
from .layers.drop_path import drop_path, rising_rates
from .layers.norm import GlobalResponseNorm, LayerNorm2d
from .layers.padding import SameConv2d
from .layers.pool import DOUBLING, HEAD_POOL, POOLS, Head, flatten, global_pool, pooled_chs
from .layers.steps import Step, plan_steps

Mix = Callable[[int, int], nn.Module]


class ChannelLinear(nn.Linear):
    """A linear layer over the channels of a map: (N, in_features, H, W) to (N, out_features, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class ConvNeXtConfig(StridedConfig):
    """The configuration of a ConvNeXt.

    Attributes:
        depths: blocks per stage.
        chs: channels per stage.
        mix: a function from (in, out) channels to a layer of the MLPs.
        grn: global response norm instead of layer scale.
        stem_chs: channels between the stem's overlapping convolutions; 0 for a stem of one 4x4 convolution.
        act: activation of the MLPs.
        norm_first: norm before the global pool.
        hidden_chs: channels of a layer before the logits; 0 for none.
        norm_eps: of all norms.
        head_norm_eps: of the last norm; None for `norm_eps`.
        patch: class of the strided convolutions; SameConv2d pads partly covered patches, which rounds sizes up.
    """

    depths: tuple[int, int, int, int]
    chs: tuple[int, int, int, int]
    mix: Mix = ChannelLinear
    grn: bool = False
    stem_chs: int = 0
    act: Callable[[], nn.Module] = nn.GELU
    norm_first: bool = False
    hidden_chs: int = 0
    norm_eps: float = 1e-6
    head_norm_eps: float | None = None
    patch: type[nn.Conv2d] = nn.Conv2d


def init_convnext(model: nn.Module) -> None:
    """Truncated normal weights, zero biases, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ConvNeXt(Backbone):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the stages."""

    last_linear = "head.fc"
    pool_layers = HEAD_POOL
    initialize = staticmethod(init_convnext)

    @staticmethod
    def size_rule(side: int, reduction: int) -> int:
        """Cells of a map along a side of `side` pixels, rounded down."""
        return side // reduction

    def __init__(self, cfg: ConvNeXtConfig) -> None:
        super().__init__()
        self.config, self.in_chans = cfg, cfg.in_chans
        self.stem = stem(cfg)
        if issubclass(cfg.patch, SameConv2d):
            self.size_rule = Backbone.size_rule
        elif cfg.stem_chs:
            self.size_rule = overlapping_size_rule
        plan = plan_steps((1, 2, 2, 2), stem=4, output_stride=cfg.output_stride)
        rates = rising_rates(cfg.drop_path_rate, cfg.depths)
        in_chs = (cfg.chs[0], *cfg.chs)
        self.stages = nn.Sequential(
            *(Stage(cfg, in_chs[i], cfg.chs[i], step, rates[i]) for i, (step, _) in enumerate(plan))
        )
        info = [FeatureInfo(cfg.chs[i], reduction, f"stages.{i}") for i, (_, reduction) in enumerate(plan)]
        chs = self.num_features = cfg.chs[-1]
        self.norm_pre = last_norm(cfg) if cfg.norm_first else nn.Identity()
        self.head = head(cfg)
        self.last_feature, self.head_hidden_size = "norm_pre", cfg.hidden_chs or pooled_chs(chs, cfg.global_pool)
        self.feature_info = Levels(info)
        self.initialize(self)


def overlapping_size_rule(side: int, reduction: int) -> int:
    """Cells along a side of `side` pixels: the stem rounds up, the stages round down."""
    return -(-side // 4) // (reduction // 4)


class Stage(nn.Module):
    """A norm and a strided 2x2 convolution if the shape changes, then one block per drop-path rate.

    (N, in_chs, H, W) to (N, chs, H / stride, W / stride).
    """

    def __init__(self, cfg: ConvNeXtConfig, in_chs: int, chs: int, step: Step, rates: list[float]) -> None:
        super().__init__()
        self.downsample = downsample(cfg, in_chs, chs, step)
        self.blocks = nn.Sequential(*(Block(cfg, chs, step.dilation, rate) for rate in rates))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Block(nn.Module):
    """A residual block of depthwise convolution, norm and MLP: (N, chs, H, W) to the same shape."""

    def __init__(self, cfg: ConvNeXtConfig, chs: int, dilation: int, drop: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(chs, chs, 7, 1, 3 * dilation, dilation, chs)
        self.norm = LayerNorm2d(chs, cfg.norm_eps)
        self.mlp = mlp(cfg, chs)
        self.gamma = None if cfg.grn else nn.Parameter(torch.full((chs,), 1e-6))
        self.drop_path = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(x)))
        if self.gamma is not None:
            y = y * self.gamma.to(y.dtype).view(-1, 1, 1)
        return self.drop_path(y) + x


def stem(cfg: ConvNeXtConfig) -> nn.Sequential:
    """(N, in_chans, H, W) to (N, chs, H / 4, W / 4)."""
    chs = cfg.chs[0]
    if cfg.stem_chs:
        convs = [nn.Conv2d(cfg.in_chans, cfg.stem_chs, 3, 2, 1), nn.Conv2d(cfg.stem_chs, chs, 3, 2, 1)]
    else:
        convs = [cfg.patch(cfg.in_chans, chs, 4, 4)]
    return nn.Sequential(*convs, LayerNorm2d(chs, cfg.norm_eps))


def downsample(cfg: ConvNeXtConfig, in_chs: int, chs: int, step: Step) -> nn.Module:
    """The identity if neither stride nor dilation changes. A convolution without stride keeps the size."""
    if step == Step():
        return nn.Identity()
    conv = cfg.patch if step.stride > 1 else SameConv2d
    return nn.Sequential(LayerNorm2d(in_chs, cfg.norm_eps), conv(in_chs, chs, 2, step.stride, 0, step.entry))


def mlp(cfg: ConvNeXtConfig, chs: int) -> nn.Sequential:
    """Widen four times, activate, narrow: (N, chs, H, W) to the same shape."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(fc1=cfg.mix(chs, 4 * chs), act=cfg.act())
    if cfg.grn:
        layers["grn"] = GlobalResponseNorm(4 * chs)
    layers["fc2"] = cfg.mix(4 * chs, chs)
    return nn.Sequential(layers)


def last_norm(cfg: ConvNeXtConfig) -> LayerNorm2d:
    return LayerNorm2d(cfg.chs[-1], cfg.norm_eps if cfg.head_norm_eps is None else cfg.head_norm_eps)


def head(cfg: ConvNeXtConfig) -> Head:
    """(N, chs, H, W) to logits (N, num_classes). The norm follows the pool, unless the model has it before the pool."""
    chs, pool = pooled_chs(cfg.chs[-1], cfg.global_pool), cfg.global_pool
    if chs != cfg.chs[-1] and not cfg.norm_first:
        kinds = [kind for kind in POOLS if kind not in DOUBLING]
        raise ArgumentError(f"global_pool={pool!r}: the norm behind the pool has the map's channels, choose of {kinds}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(global_pool=global_pool(pool))
    if not cfg.norm_first:
        layers["norm"] = last_norm(cfg)
    layers["flatten"] = flatten(pool)
    if cfg.hidden_chs:
        layers["pre_logits"] = nn.Sequential(OrderedDict(fc=CellLinear(chs, cfg.hidden_chs), act=nn.GELU()))
    layers["drop"] = nn.Dropout(cfg.drop_rate)
    layers["fc"] = classifier(cfg.hidden_chs or chs, cfg.num_classes, pool)
    return Head(layers)


def data(size: int = 224, crop: float = 0.875) -> DataConfig:
    return DataConfig((size, size), crop=crop)


def clip(size: int) -> DataConfig:
    return DataConfig((size, size), CLIP_MEAN, CLIP_STD, crop=1.0)


pointwise = partial(nn.Conv2d, kernel_size=1)


def small(third: int, chs: int, stem_chs: int = 0, *, grn: bool = False) -> ConvNeXtConfig:
    """A small variant with `chs` channels in the first stage and MLPs of 1x1 convolutions."""
    return ConvNeXtConfig((2, 2, third, 2), doubling(chs), pointwise, grn, stem_chs)


def doubling(chs: int) -> tuple[int, int, int, int]:
    return chs, 2 * chs, 4 * chs, 8 * chs


def uncropped(side: int, crop_mode: str = "center") -> dict[str, Any]:
    """DataConfig fields of weights for square images of `side` pixels without cropping."""
    return {"size": (side, side), "crop": 1.0, "crop_mode": crop_mode}


TINY, DEEP, DEEPEST = (3, 3, 9, 3), (3, 3, 27, 3), (3, 4, 30, 3)
FB = "fb_in22k_ft_in1k fb_in22k_ft_in1k_384 fb_in22k fb_in1k"
IN12K = "in12k_ft_in1k in12k_ft_in1k_384 in12k"
CLIP_BASE = (
    "clip_laion2b clip_laion2b_augreg clip_laion2b_augreg_ft_in1k clip_laion2b_augreg_ft_in12k "
    "clip_laion2b_augreg_ft_in12k_in1k clip_laion2b_augreg_ft_in12k_in1k_384 clip_laiona clip_laiona_320 "
    "clip_laiona_augreg_320 clip_laiona_augreg_ft_in1k_384"
)
CLIP_LARGE = (
    "clip_laion2b_soup_ft_in12k_in1k_320 clip_laion2b_soup_ft_in12k_in1k_384 clip_laion2b_soup_ft_in12k_320 "
    "clip_laion2b_soup_ft_in12k_384 clip_laion2b_augreg clip_laion2b_augreg_ft_in1k clip_laion2b_augreg_ft_in1k_384 "
    "clip_laion2b_augreg_ft_in12k_384 clip_laion2b_ft_320 clip_laion2b_ft_soup_320"
)
CLIP_XXLARGE = "clip_laion2b_soup_ft_in1k clip_laion2b_soup_ft_in12k clip_laion2b_soup clip_laion2b_rewind"
SELF = "dinov3_lvd1689m"
FCMAE1 = "fcmae_ft_in1k fcmae"
FCMAE22 = "fcmae_ft_in22k_in1k fcmae_ft_in22k_in1k_384 fcmae_ft_in1k fcmae"
# DataConfig fields of weights that differ from those of their variant's default weights, by tag.
TAGS = {
    **{tag: {"crop": 0.875} for tag in ("fb_in22k_ft_in1k", "fb_in22k", "fb_in1k")},
    **dict.fromkeys(("r384_in12k", "r384_ad_in12k", "r384_in12k_ft_in1k"), uncropped(384)),
    **dict.fromkeys(("in12k_ft_in1k_384", "fb_in22k_ft_in1k_384", "fcmae_ft_in22k_in1k_384"), uncropped(384, "squash")),
    **dict.fromkeys(CLIP_BASE.split(), CLIP | uncropped(256)),
    **dict.fromkeys(("clip_laiona_320", "clip_laiona_augreg_320"), CLIP | uncropped(320)),
    **dict.fromkeys((tag for tag in CLIP_LARGE.split() if tag.endswith("_384")), CLIP | uncropped(384, "squash")),
    "clip_laion2b_augreg_ft_in12k_in1k_384": CLIP | uncropped(384, "squash"),
    "clip_laiona_augreg_ft_in1k_384": CLIP | uncropped(384),
    "dinov3_lvd1689m": uncropped(224),
    "eupe_lvd1689m": uncropped(256),
    "convnextv2_huge.fcmae_ft_in22k_in1k_512": uncropped(512, "squash"),
    **dict.fromkeys(("convnextv2_huge.fcmae_ft_in1k", "convnextv2_huge.fcmae"), asdict(data())),
}
VARIANTS = [
    ("convnext_atto", small(6, 40), "d2_in1k", data()),
    ("convnext_atto_ols", small(6, 40, 24), "a2_in1k", data()),
    ("convnext_femto", small(6, 48), "d1_in1k", data()),
    ("convnext_femto_ols", small(6, 48, 24), "d1_in1k", data()),
    ("convnext_pico", small(6, 64), "d1_in1k", data()),
    ("convnext_pico_ols", small(6, 64, 32), "d1_in1k", data(crop=0.95)),
    (
        "convnext_nano",
        small(8, 80),
        "in12k_ft_in1k in12k d1h_in1k r384_in12k r384_ad_in12k r384_in12k_ft_in1k",
        data(crop=0.95),
    ),
    ("convnext_nano_ols", small(8, 80, 80), "d1h_in1k", data(crop=0.95)),
    (
        "convnext_tiny_hnf",
        ConvNeXtConfig(TINY, doubling(96), pointwise, norm_first=True),
        "a2h_in1k",
        data(crop=0.95),
    ),
    ("convnext_tiny", ConvNeXtConfig(TINY, doubling(96)), f"{IN12K} {FB} {SELF} eupe_lvd1689m", data(crop=0.95)),
    ("convnext_small", ConvNeXtConfig(DEEP, doubling(96)), f"{IN12K} {FB} {SELF} eupe_lvd1689m", data(crop=0.95)),
    ("convnext_base", ConvNeXtConfig(DEEP, doubling(128)), f"{FB} {CLIP_BASE} {SELF} eupe_lvd1689m", data()),
    ("convnext_large", ConvNeXtConfig(DEEP, doubling(192)), f"{FB} {SELF}", data()),
    ("convnext_large_mlp", ConvNeXtConfig(DEEP, doubling(192), hidden_chs=1536), CLIP_LARGE, clip(320)),
    (
        "convnext_xlarge",
        ConvNeXtConfig(DEEP, doubling(256)),
        "fb_in22k_ft_in1k fb_in22k_ft_in1k_384 fb_in22k",
        data(),
    ),
    ("convnext_xxlarge", ConvNeXtConfig(DEEPEST, doubling(384), norm_eps=1e-5), CLIP_XXLARGE, clip(256)),
    ("convnextv2_atto", small(6, 40, grn=True), FCMAE1, data()),
    ("convnextv2_femto", small(6, 48, grn=True), FCMAE1, data()),
    ("convnextv2_pico", small(6, 64, grn=True), FCMAE1, data()),
    ("convnextv2_nano", small(8, 80, grn=True), FCMAE22, data()),
    ("convnextv2_tiny", ConvNeXtConfig(TINY, doubling(96), grn=True), FCMAE22, data()),
    ("convnextv2_small", ConvNeXtConfig(DEEP, doubling(96), grn=True), "", data()),
    ("convnextv2_base", ConvNeXtConfig(DEEP, doubling(128), grn=True), FCMAE22, data()),
    ("convnextv2_large", ConvNeXtConfig(DEEP, doubling(192), grn=True), FCMAE22, data()),
    (
        "convnextv2_huge",
        ConvNeXtConfig(DEEP, doubling(352), grn=True),
        "fcmae_ft_in22k_in1k_384 fcmae_ft_in22k_in1k_512 fcmae_ft_in1k fcmae",
        DataConfig((384, 384), crop=1.0, crop_mode="squash"),
    ),
]

register(
    {name: Variant(ConvNeXt, config, tuple(tags.split()), images, TAGS) for name, config, tags, images in VARIANTS}
)
