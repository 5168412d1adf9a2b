"""The SSD head (https://arxiv.org/abs/1512.02325) of CVNets: separable convolutions on six maps."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, OutIndicesError
from ..features import Levels
from ..models.layers.conv_norm import ConvNorm
from ..models.layers.steps import Step
from .dense import require_classes, require_maps

GLOBAL = -1  # stands for the stride of a map with a single cell
COORDINATES = 4


@dataclass(frozen=True, slots=True)
class SSDConfig:
    """The configuration of an SSD. The defaults are those of CVNets' models on COCO.

    Attributes:
        size: (height, width) in pixels that images are resized to.
        strides: strides of the maps in pixels, finest first. Those beyond the backbone's 32 double; the last may be -1,
            the global average of the previous map.
        chs: channels of each map inside the head.
        aspect_ratios: of the anchors on each map, in addition to two squares.
        scales: smallest and largest anchor, relative to the image.
        score_thresh: lowest score of a detection.
        nms_thresh: IoU threshold of non-maximum suppression.
        candidates: detections per class that enter non-maximum suppression.
        detections: largest number of detections per image.
        match_iou: lowest IoU of an anchor with the object assigned to it.
        mean: per channel, of images in [0, 1]; None for the backbone's.
        std: per channel, of images in [0, 1]; None for the backbone's.
    """

    size: tuple[int, int] = (320, 320)
    strides: tuple[int, ...] = (16, 32, 64, 128, 256, GLOBAL)
    chs: tuple[int, ...] = (512, 256, 256, 128, 128, 64)
    aspect_ratios: tuple[tuple[float, ...], ...] = ((2, 3), (2, 3), (2, 3), (2, 3), (2, 3), (2,))
    scales: tuple[float, float] = (0.1, 1.05)
    score_thresh: float = 0.01
    nms_thresh: float = 0.5
    candidates: int = 400
    detections: int = 200
    match_iou: float = 0.5
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def backbone_strides(self) -> tuple[int, ...]:
        """Strides of the maps that come from the backbone."""
        return tuple(stride for stride in self.strides if 0 < stride <= 32)

    @property
    def extra_strides(self) -> tuple[int, ...]:
        """Strides of the maps that the head computes from the backbone's deepest map."""
        return self.strides[len(self.backbone_strides) :]

    @property
    def anchors(self) -> tuple[int, ...]:
        """Anchors per cell of each map."""
        return tuple(2 + 2 * len(ratios) for ratios in self.aspect_ratios)

    def check(self) -> None:
        """ArgumentError if the configuration is invalid."""
        if not len(self.strides) == len(self.chs) == len(self.aspect_ratios) or not self.backbone_strides:
            raise ArgumentError(
                f"strides={self.strides}, chs={self.chs} and aspect_ratios={self.aspect_ratios}: expected one of each "
                "per map, and a stride of the backbone first"
            )
        first = self.backbone_strides[-1]
        doubled = [first * 2 ** (number + 1) for number in range(len(self.extra_strides))]
        allowed = [tuple(doubled), (*doubled[:-1], GLOBAL)]
        if list(self.backbone_strides) != sorted({*self.backbone_strides}) or self.extra_strides not in allowed:
            raise ArgumentError(
                f"strides={self.strides}: expected them to ascend and to double after {first}; the last may be -1"
            )


class SSDHead(nn.Module):
    """The SSD head: maps of the backbone to predictions for all anchors, finest map first, cell by cell.

    Args:
        feature_info: the levels of the backbone's maps.
        num_classes: number of classes including the background.
        cfg: the configuration.

    Raises:
        ArgumentError: the configuration is invalid, or the levels do not have its strides.
        InputError: when called with maps that do not match the levels.
    """

    def __init__(self, feature_info: Levels, num_classes: int, cfg: SSDConfig = SSDConfig()) -> None:
        super().__init__()
        cfg.check()
        require_classes(num_classes, fewest=2)
        if tuple(feature_info.reduction()) != cfg.backbone_strides:
            raise ArgumentError(
                f"this head starts from maps of strides {cfg.backbone_strides}, but the source gives\n{feature_info}"
            )
        self.feature_info, self.num_classes = feature_info, num_classes
        extra_chs = cfg.chs[len(feature_info) :]
        input_chs = (feature_info[-1].chs, *extra_chs)
        self.extra = nn.ModuleList(
            global_average(in_chs, chs)
            if stride == GLOBAL
            else Separable(in_chs, ConvNorm(in_chs, chs, act=nn.ReLU), 2)
            for in_chs, chs, stride in zip(input_chs, extra_chs, cfg.extra_strides, strict=False)
        )
        self.projections = nn.ModuleList(
            ConvNorm(in_chs, chs, act=nn.ReLU) if in_chs != chs else nn.Identity()
            for in_chs, chs in zip((*feature_info.channels(), *extra_chs), cfg.chs, strict=True)
        )
        self.predictions = nn.ModuleList(
            prediction(chs, count * (COORDINATES + num_classes), stride)
            for chs, count, stride in zip(cfg.chs, cfg.anchors, cfg.strides, strict=True)
        )
        self.apply(initialize)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """`bbox_regression` (N, anchors, 4) and `cls_logits` (N, anchors, num_classes), with torchvision's names."""
        return self.predict(self.every_map(maps))

    def every_map(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The given maps and the extra maps computed from the deepest one, each (N, chs, h, w)."""
        require_maps(maps, self.feature_info, type(self).__name__)
        every = list(maps)
        for layer in self.extra:
            every.append(layer(every[-1]))
        return every

    def predict(self, every: Sequence[Tensor]) -> dict[str, Tensor]:
        """The predictions that `forward` returns, from the maps of `every_map`."""
        rows = []
        for x, project, predict in zip(every, self.projections, self.predictions, strict=True):
            y = predict(project(x)).permute(0, 2, 3, 1)  # (N, h, w, anchors per cell * (4 + num_classes))
            rows.append(y.reshape(len(y), -1, COORDINATES + self.num_classes))
        boxes, logits = torch.cat(rows, dim=1).split((COORDINATES, self.num_classes), dim=-1)
        return {"bbox_regression": boxes, "cls_logits": logits}


class Separable(nn.Module):
    """A depthwise convolution without activation, then a pointwise one: (N, chs, H, W) to (N, …, H / stride, …)."""

    def __init__(self, chs: int, pointwise: nn.Module, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvNorm(chs, chs, 3, Step(stride), groups=chs)
        self.pointwise = pointwise

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


def global_average(in_chs: int, chs: int) -> nn.Sequential:
    """Global average pooling and a 1x1 convolution: (N, in_chs, h, w) to (N, chs, 1, 1)."""
    pool, conv = nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_chs, chs, 1, bias=False)
    return nn.Sequential(OrderedDict(pool=pool, conv=conv, act=nn.ReLU()))


def prediction(in_chs: int, chs: int, stride: int) -> nn.Module:
    """The layer that predicts boxes and logits: (N, in_chs, h, w) to (N, chs, h, w)."""
    pointwise = nn.Conv2d(in_chs, chs, 1)
    return pointwise if stride == GLOBAL else Separable(in_chs, pointwise)


def initialize(module: nn.Module) -> None:
    """Initialize a convolution in place: Xavier uniform weights, zero bias."""
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def level_at(levels: Levels, stride: int) -> int:
    """Position of the deepest level with that stride. OutIndicesError if there is none."""
    positions = [position for position, level in enumerate(levels) if level.reduction == stride]
    if not positions:
        raise OutIndicesError(
            f"the head starts from a map of stride {stride}, which this backbone lacks; choose another backbone, put a "
            f"neck between, or other strides in SSDConfig:\n{levels}"
        )
    return positions[-1]
