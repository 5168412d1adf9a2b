"""Segmenter: images in, a class per pixel out."""

from dataclasses import fields
from types import SimpleNamespace

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from ..features import Levels
from ..preprocessing import DataConfig
from ..report import LoadReport
from ..wrappers.extractor import maps_in, source_of
from .dense import DenseHead
from .loss import segmentation_loss


class Segmenter(nn.Module):
    """A source of maps and a head on them.

    backbone: an extractor, or whatever else has `feature_info` and turns images into one map per level.
    head: built from the backbone's `feature_info`. aux: a second head, which only the loss of training sees.
    label_names: of the classes, where the weights came with them; `load_report`: what loading them did.
    align_corners: how logits are resized to the image; CVNets aligns the corners, transformers and torchvision do not.

    Raises ArgumentError if a head was built for other levels than the backbone's.
    """

    label_names: tuple[str, ...] = ()
    load_report: LoadReport | None = None

    def __init__(
        self, backbone: nn.Module, head: DenseHead, aux: DenseHead | None = None, *, align_corners: bool = False
    ) -> None:
        super().__init__()
        for part in (head, aux):
            if part is not None and part.feature_info != backbone.feature_info:
                raise ArgumentError(
                    f"{type(part).__name__} was built for other levels than the backbone returns; build it from "
                    f"backbone.feature_info:\n{backbone.feature_info}"
                )
        self.backbone, self.head, self.aux = backbone, head, aux
        self.align_corners = align_corners

    @property
    def feature_info(self) -> Levels:
        """The levels that the heads are given."""
        return self.head.feature_info

    @property
    def in_chans(self) -> int | None:
        """Channels of the images, None if the backbone does not say."""
        return getattr(self.backbone, "in_chans", None)

    @property
    def data_config(self) -> DataConfig | None:
        """Preprocessing that the weights expect, None if the backbone does not say; see `featx.transform_whole`."""
        return getattr(self.backbone, "data_config", None)

    @property
    def config(self) -> SimpleNamespace:
        """What else than weights the logits depend on, as far as loading weights of other programs asks."""
        own = getattr(source_of(self.backbone), "config", None)
        stated = {} if own is None else {field.name: getattr(own, field.name) for field in fields(own)}
        return SimpleNamespace(**stated, align_corners=self.align_corners)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (N, in_chans, H, W) to logits (N, num_classes, H, W); with labels (N, H, W) to the loss, a scalar.

        The loss is that of `segmentation_loss`; it counts the auxiliary head in training. Through `forward`, it works
        with wrappers that only see calls, such as DistributedDataParallel.
        """
        maps = maps_in(self.backbone(images))
        logits = self._resized(self.head(maps), images)
        if labels is None:
            return logits
        aux = self._resized(self.aux(maps), images) if self.aux is not None and self.training else None
        return segmentation_loss(logits, labels, aux=aux)

    def forward_coarse(self, images: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) to logits (N, num_classes, h, w) at the size of the map that the head takes."""
        return self.head(maps_in(self.backbone(images)))

    def _resized(self, logits: Tensor, images: Tensor) -> Tensor:
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=self.align_corners)
