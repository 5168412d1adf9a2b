"""SSD, https://arxiv.org/abs/1512.02325: torchvision's detector around a source of maps and the head of CVNets.

torchvision resizes and normalises images, makes, matches and decodes anchors, has the loss, and suppresses overlaps.
Head and loss equal CVNets'; boxes are clipped to the image before overlaps are suppressed, which CVNets does not do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssd
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.ops import box_iou

from ..errors import ArgumentError, InputError
from ..features import Levels, as_levels
from ..image_checks import check_images
from ..load_report import LoadReport
from ..preprocessing import DataConfig
from ..wrappers.extractor import maps_in
from .ssd_head import SSDConfig, SSDHead

Images = Tensor | Sequence[Tensor]
Target = Mapping[str, Tensor]


class SSD(ssd.SSD):
    """Images to the boxes of objects; with targets to losses.

    `model(images)` gives a dictionary per image, best first: `boxes` (n, 4) as x1, y1, x2, y2 in pixels of the image as
    it was given, `scores` (n,) and `labels` (n,) from 1 to num_classes - 1; 0 is the background. `model(images,
    targets)` gives {"bbox_regression": …, "classification": …}, two scalars to be added and minimised.

    images: a batch (N, in_chans, H, W) or a list of (in_chans, H, W), of values in [0, 1]. They are resized and
        normalised here, unlike those of other models.
        In training, a batch needs two of them at least.
    targets: per image a dictionary with `boxes` (n, 4), floating, as above, and `labels` (n,), int64. Without objects,
        n is 0.
    backbone: an extractor, or whatever else gives maps at the strides that `cfg` starts from.

    Raises ArgumentError where SSDHead does, and if mean and std are not known, and InputError for images and targets
    that are not as said here, and in training without targets.
    """

    head: SSDHead
    feature_info: Levels
    load_report: LoadReport | None = None

    def __init__(self, backbone: nn.Module, num_classes: int, cfg: SSDConfig = SSDConfig()) -> None:
        levels = as_levels(backbone.feature_info, type(backbone).__name__)
        head = SSDHead(levels, num_classes, cfg)
        mean, std = _normalisation(backbone, cfg)
        ratios: list[Any] = [list(ratios) for ratios in cfg.aspect_ratios]  # torchvision takes fractions, too
        scales = np.linspace(*cfg.scales, len(cfg.strides) + 1).tolist()
        super().__init__(
            backbone,
            DefaultBoxGenerator(ratios, scales=scales),
            (cfg.size[1], cfg.size[0]),  # torchvision has the width first
            num_classes,
            image_mean=mean,
            image_std=std,
            head=head,
            score_thresh=cfg.score_thresh,
            nms_thresh=cfg.nms_thresh,
            detections_per_img=cfg.detections,
            iou_thresh=cfg.match_iou,
            topk_candidates=cfg.candidates,
        )
        self.num_classes, self.feature_info = num_classes, levels

    @property
    def in_chans(self) -> int | None:
        """Channels of the images, None if the backbone does not say."""
        return getattr(self.backbone, "in_chans", None)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] (theirs returns what TorchScript makes of it)
        self, images: Images, targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See the class. Both do the same in training and in eval mode, but for the layers that differ between them."""
        for image in images:
            check_images(image.unsqueeze(0), self.in_chans)
        if targets is None and self.training:
            raise InputError("training needs targets: call model(images, targets), or model.eval() to detect objects")
        if targets is not None:
            require_targets(targets, len(images), self.num_classes)
        sizes: Any = [tuple(image.shape[-2:]) for image in images]
        batch, resized = self.transform(list(images), targets)
        every = self.head.every_map(maps_in(self.backbone(batch.tensors)))
        predicted, anchors = self.head.predict(every), self.anchor_generator(batch, every)
        if resized is None:
            found = self.postprocess_detections(predicted, anchors, batch.image_sizes)
            return self.transform.postprocess(found, batch.image_sizes, sizes)
        matches = [self._matched(target["boxes"], boxes) for target, boxes in zip(resized, anchors, strict=True)]
        return self.compute_loss(resized, predicted, anchors, matches)

    def _matched(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """For each anchor, the number of the object it learns, negative if none."""
        if not len(boxes):
            return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        return self.proposal_matcher(box_iou(boxes, anchors))


def require_targets(targets: Sequence[Target], images: int, num_classes: int) -> None:
    """Raise InputError listing everything that keeps these from being the targets of so many images."""
    if len(targets) != images:
        raise InputError(f"{len(targets)} targets for {images} images: expected one each")
    problems = [f"target {number} {problem}" for number, t in enumerate(targets) for problem in _wrong(t, num_classes)]
    if problems:
        raise InputError("targets cannot be learnt from:\n" + "\n".join(f"  {problem}" for problem in problems))


def _wrong(target: Target, num_classes: int) -> list[str]:
    if missing := {"boxes", "labels"} - target.keys():
        return [f"lacks {sorted(missing)}"]
    boxes, labels, problems = target["boxes"], target["labels"], []
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        return [f"has boxes of shape {tuple(boxes.shape)} and type {boxes.dtype}; expected floating (n, 4)"]
    if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
        return [f"has labels of shape {tuple(labels.shape)} and type {labels.dtype}; expected int64 ({len(boxes)},)"]
    empty = boxes[(boxes[:, 2:] <= boxes[:, :2]).any(1) | ~boxes.isfinite().all(1)]
    if len(empty):
        problems.append(f"has boxes without an area, {empty[:3].tolist()}; expected x1 < x2 and y1 < y2")
    strange = labels[(labels < 1) | (labels >= num_classes)]
    if len(strange):
        problems.append(f"has labels {strange.unique()[:5].tolist()}; expected 1 to {num_classes - 1}, as 0 is nothing")
    return problems


def _normalisation(backbone: nn.Module, cfg: SSDConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of the images."""
    data = getattr(backbone, "data_config", None) or DataConfig(mean=(), std=())
    if data.channel_order != "rgb":
        raise ArgumentError("the backbone takes channels in the order BGR, and a detector gives it RGB: take another")
    mean, std = cfg.mean or data.mean, cfg.std or data.std
    chans = getattr(backbone, "in_chans", None) or len(mean)
    if not mean or not std or {len(mean), len(std)} != {chans}:
        raise ArgumentError(
            f"images of {chans} channels are to be normalised by mean={mean} and std={std}: give SSDConfig one of each "
            "per channel"
        )
    return list(mean), list(std)
