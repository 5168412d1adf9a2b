"""The loss of semantic segmentation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

IGNORED = 255  # the label of pixels that belong to no class, as in Pascal VOC
AUX_WEIGHT = 0.4  # of the auxiliary loss, as in PSPNet (https://arxiv.org/abs/1612.01105)


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    aux: Tensor | None = None,
    aux_weight: float = AUX_WEIGHT,
    ignore_index: int = IGNORED,
) -> Tensor:
    """Cross entropy of logits (N, classes, H, W), averaged over the pixels whose label is not `ignore_index`: a scalar.

    labels: integers (N, H, W) from 0 to classes - 1, or `ignore_index`. aux: further logits of that shape, whose loss
    is added with `aux_weight`. Where every pixel is ignored the loss is 0, not NaN.

    Raises InputError for labels of another shape or kind, for labels of classes there are not, and for a single class.
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
    if torch.compiler.is_compiling():  # looking at values would break the graph
        return
    strange = labels[(labels != ignore_index) & ((labels < 0) | (labels >= classes))]
    if len(strange):
        raise InputError(
            f"labels {strange.unique()[:5].tolist()} are no classes: expected 0 to {classes - 1}, or {ignore_index} "
            "for pixels to ignore"
        )
