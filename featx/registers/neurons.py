"""Register neurons: the neurons of the MLPs that make artifacts, Jiang et al. 2025 (https://arxiv.org/abs/2506.08010).

A neuron is an input channel of the last linear layer of a block's MLP. Its score is its mean absolute activation at the
artifacts of an image, averaged over the images that have any. The blocks up to the one in which the artifacts emerge
are searched, because artifacts excite other neurons in later blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import require_number
from ..errors import ArgumentError, InputError
from ..models.layers.token_pyramid import TokenPyramid
from ..tracing.copies import structural_copy
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import pyramid_of
from .artifacts import artifacts_in, emerged, require_extractor, require_threshold


@dataclass(frozen=True, slots=True)
class RegisterNeuron:
    """A neuron that makes artifacts.

    Attributes:
        block: position of the block.
        channel: input channel of `blocks.{block}.mlp.fc2`.
        score: mean absolute activation at artifacts.
    """

    block: int
    channel: int
    score: float = 0.0


@torch.no_grad()
def register_neurons(
    extractor: FeatureExtractWrapper,
    images: Tensor,
    *,
    count: int = 10,
    threshold: float | None = None,
) -> list[RegisterNeuron]:
    """Find the neurons that make the artifacts in the deepest level of an extractor.

    The paper detects artifacts in the second to last block, with hundreds of images, and takes 10 neurons of a CLIP
    ViT-B/16 and 50 of a DINOv2 ViT-L/14.

    Args:
        extractor: an extractor of a native ViT in eval mode, such as one with `out_indices=[-2]`.
        images: (N, in_chans, H, W).
        count: the number of neurons.
        threshold: the norm above which a token is an artifact, as for `artifact_tokens`.

    Returns:
        The neurons with the largest scores, largest first.

    Raises:
        ArgumentError: the model is not a native ViT, `count` is below 1, or `threshold` is not positive.
        InputError: no token of these images is an artifact, or the extractor does not accept them.
    """
    require_extractor(extractor)
    require_threshold(threshold)
    require_number(count, "count", 1)
    vit = require_vit(extractor)
    extractor._check(images)
    deepest = max(extractor.feature_info.out_indices)
    names = [level.name for level in vit.feature_info]
    maps = vit.raw().forward_maps(images, range(deepest + 1))
    reports = [artifacts_in(map_, name, threshold) for map_, name in zip(maps, names, strict=False)]
    if not reports[-1].count:
        raise InputError(
            f"{reports[-1]}: without artifacts, their neurons cannot be found: choose another level with "
            "out_indices, more images, or a lower threshold"
        )
    scores = _scores(vit, images, reports[-1].mask.flatten(1), emerged(reports) + 1)
    ranked = [
        RegisterNeuron(block, channel, score)
        for block, row in enumerate(scores)
        for channel, score in enumerate(row.tolist())
    ]
    return sorted(ranked, key=lambda neuron: -neuron.score)[:count]


def _scores(vit: TokenPyramid, images: Tensor, is_artifact: Tensor, blocks: int) -> list[Tensor]:
    """The scores of the neurons of the first `blocks` blocks, (hidden,) each. is_artifact: (N, h * w)."""
    found: dict[int, Tensor] = {}
    copied = structural_copy(vit)  # hooks on the model itself would act in other threads
    for block in range(blocks):
        layer: Any = copied.blocks[block].mlp
        layer.fc2.register_forward_pre_hook(partial(_record, found, block, vit.num_prefix_tokens, is_artifact))
    copied.forward_maps(images, [blocks - 1])
    return [found[block] for block in range(blocks)]


def _record(
    found: dict[int, Tensor],
    block: int,
    prefix: int,
    is_artifact: Tensor,
    _module: nn.Module,
    args: tuple[Tensor, ...],
) -> None:
    patches = args[0][:, prefix : prefix + is_artifact.shape[1]].float().abs()  # (N, h * w, hidden)
    weights, with_any = is_artifact.float(), is_artifact.any(1)
    sums = torch.einsum("nl,nlh->nh", weights, patches)[with_any]
    found[block] = (sums / weights.sum(1)[with_any, None]).mean(0)


def require_vit(extractor: FeatureExtractWrapper) -> TokenPyramid:
    """The native ViT in an extractor. ArgumentError for another model."""
    pyramid = pyramid_of(extractor)
    if not isinstance(pyramid, TokenPyramid):
        raise ArgumentError(
            f"{type(extractor.source).__name__} is not a native ViT, whose register neurons can be reached: build it "
            "under a name without a prefix, such as create_model('vit_large_patch14_dinov2', features_only=True), or "
            "add registers before featx.shifted"
        )
    return pyramid


def by_block(neurons: Sequence[RegisterNeuron]) -> dict[int, list[int]]:
    """The channels of the neurons of each block."""
    channels: dict[int, list[int]] = {}
    for neuron in neurons:
        channels.setdefault(neuron.block, []).append(neuron.channel)
    return channels
