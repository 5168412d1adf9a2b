"""Segmenter: a network that classifies every pixel, and the loss of semantic segmentation."""

from dataclasses import fields
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError, InputError
from ..features import Levels
from ..load_report import LoadReport
from ..preprocessing import DataConfig
from ..wrappers.extractor import maps_in, source_of
from .dense import DenseHead

IGNORED = 255  # the label of pixels without a class, as in Pascal VOC
AUX_WEIGHT = 0.4  # of the auxiliary loss, as in PSPNet (https://arxiv.org/abs/1612.01105)


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    aux: Tensor | None = None,
    aux_weight: float = AUX_WEIGHT,
    ignore_index: int = IGNORED,
) -> Tensor:
    """Cross entropy averaged over the pixels whose label is not `ignore_index`: a scalar. 0 if all are ignored.

    Args:
        logits: (N, classes, H, W).
        labels: integers (N, H, W) from 0 to classes - 1, or `ignore_index`.
        aux: auxiliary logits of the same shape.
        aux_weight: weight of the auxiliary loss.
        ignore_index: the label of pixels to ignore.

    Raises:
        InputError: the labels have another shape or dtype, a label is not a class, or there is a single class.
    """
    _require_labels(logits, labels, ignore_index)
    loss = _cross_entropy(logits, labels.long(), ignore_index)
    if aux is None:
        return loss
    if aux.shape != logits.shape:
        raise InputError(f"aux has shape {tuple(aux.shape)}, the logits have {tuple(logits.shape)}: resize it to them")
    return loss + aux_weight * _cross_entropy(aux, labels.long(), ignore_index)


def _cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)


def _require_labels(logits: Tensor, labels: Tensor, ignore_index: int) -> None:
    if logits.ndim != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        wanted = (logits.shape[0], *logits.shape[2:])
        raise InputError(
            f"labels have shape {tuple(labels.shape)}, logits of shape {tuple(logits.shape)} need {wanted}: one class "
            "per pixel, without an axis of channels"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"labels are {labels.dtype}: expected integers, the class of each pixel")
    classes = logits.shape[1]
    if classes < 2:
        raise InputError("there is nothing to learn from the cross entropy of 1 class: give the background one, too")
    if torch.compiler.is_compiling():  # reading values would cause a graph break
        return
    strange = labels[(labels != ignore_index) & ((labels < 0) | (labels >= classes))]
    if len(strange):
        raise InputError(
            f"labels {strange.unique()[:5].tolist()} are not classes: expected 0 to {classes - 1}, or {ignore_index} "
            "for pixels to ignore"
        )


class Segmenter(nn.Module):
    """A backbone and a segmentation head.

    Args:
        backbone: an extractor, or another module with `feature_info` that returns one map per level.
        head: a head built from the backbone's `feature_info`.
        aux: an auxiliary head, used only in the training loss.
        align_corners: how logits are resized to the image. CVNets aligns the corners; transformers and torchvision do
            not.

    Attributes:
        label_names: names of the classes, if the weights came with them.
        load_report: what loading the weights did.

    Raises:
        ArgumentError: a head was built for other levels than the backbone's.
    """

    label_names: tuple[str, ...] = ()
    load_report: LoadReport | None = None

    def __init__(
        self, backbone: nn.Module, head: DenseHead, aux: DenseHead | None = None, *, align_corners: bool = False
    ) -> None:
        super().__init__()
        for module in (head, aux):
            if module is not None and module.feature_info != backbone.feature_info:
                raise ArgumentError(
                    f"{type(module).__name__} was built for other levels than the backbone returns; build it from "
                    f"backbone.feature_info:\n{backbone.feature_info}"
                )
        self.backbone, self.head, self.aux = backbone, head, aux
        self.align_corners = align_corners

    @property
    def feature_info(self) -> Levels:
        """The levels of the maps that the heads receive."""
        return self.head.feature_info

    @property
    def in_chans(self) -> int | None:
        """Channels of the images; None if the backbone does not declare them."""
        return getattr(self.backbone, "in_chans", None)

    @property
    def data_config(self) -> DataConfig | None:
        """Preprocessing that the weights expect, for `featx.transform_whole`; None if the backbone has none."""
        return getattr(self.backbone, "data_config", None)

    @property
    def config(self) -> SimpleNamespace:
        """The backbone's configuration and `align_corners`, which converting other programs' weights depends on."""
        config = getattr(source_of(self.backbone), "config", None)
        values = {} if config is None else {field.name: getattr(config, field.name) for field in fields(config)}
        return SimpleNamespace(**values, align_corners=self.align_corners)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (N, num_classes, H, W) of images (N, in_chans, H, W); with labels (N, H, W) the loss, a scalar.

        The loss is `segmentation_loss`, in training with the auxiliary head. Computing it in `forward` supports
        wrappers that intercept calls, such as DistributedDataParallel.
        """
        maps = maps_in(self.backbone(images))
        logits = self._resize(self.head(maps), images)
        if labels is None:
            return logits
        aux = self._resize(self.aux(maps), images) if self.aux is not None and self.training else None
        return segmentation_loss(logits, labels, aux=aux)

    def forward_coarse(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes, h, w), at the size of the head's map, of images (N, in_chans, H, W)."""
        return self.head(maps_in(self.backbone(images)))

    def _resize(self, logits: Tensor, images: Tensor) -> Tensor:
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=self.align_corners)
