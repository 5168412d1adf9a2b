"""Detection of artifacts: tokens of the background with outlier norms, Darcet et al. 2024 (https://arxiv.org/abs/2309.16588).

Large ViTs store global information in such tokens, which have lost what the image shows at their place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import pyramid_of

OUTLIER = 3.0  # norm of an artifact relative to the median


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LevelArtifacts:
    """The artifacts of one level in a batch of images.

    Attributes:
        name: the level.
        norms: L2 norms over the channels, (N, h, w), before the last norm of the model.
        threshold: the norm above which a token is an artifact.
    """

    name: str
    norms: Tensor
    threshold: float

    @property
    def mask(self) -> Tensor:
        """(N, h, w), whether a token is an artifact."""
        return self.norms > self.threshold

    @property
    def count(self) -> int:
        """Number of artifacts in all images."""
        return int(self.mask.sum())

    @property
    def share(self) -> float:
        """Share of the tokens that are artifacts, 0 to 1."""
        return self.count / max(1, self.norms.numel())

    @property
    def positions(self) -> Tensor:
        """(count, 3): image, row and column of each artifact."""
        return self.mask.nonzero()

    def __repr__(self) -> str:
        median, largest = (float(value) for value in (self.norms.median(), self.norms.amax()))
        return (
            f"{self.name}: {self.count} of {self.norms.numel()} tokens ({self.share:.2%}) have norms above "
            f"{self.threshold:.4g} (median {median:.4g}, largest {largest:.4g})"
        )


@torch.no_grad()
def artifact_tokens(
    extractor: FeatureExtractWrapper, images: Tensor, threshold: float | None = None
) -> list[LevelArtifacts]:
    """Find tokens with outlier norms in the maps of a batch.

    Norms are those before the last norm of the model, which would make them nearly equal.

    Args:
        extractor: an extractor of a ViT; maps of other models have norms, too.
        images: (N, in_chans, H, W), at least one.
        threshold: the norm above which a token is an artifact, as in the papers (150 for DINOv2's ViT-g and ViT-L); by
            default 3 times the median of each level, which is a heuristic.

    Returns:
        One report per level, in the order of the maps.

    Raises:
        ArgumentError: `extractor` is not an extractor, `threshold` is not positive, or the maps are normalized by a
            norm that cannot be left out.
        InputError: the extractor does not accept the images.
    """
    require_extractor(extractor)
    require_threshold(threshold)
    extractor._check(images)
    levels = extractor.feature_info
    ascending = sorted(levels.out_indices)
    maps = dict(zip(ascending, pyramid_of(extractor).raw().forward_maps(images, ascending), strict=True))
    return [
        artifacts_in(maps[position], level.name, threshold)
        for position, level in zip(levels.out_indices, levels, strict=True)
    ]


def artifacts_in(map_: Tensor, name: str, threshold: float | None) -> LevelArtifacts:
    """The artifacts of a map (N, chs, h, w) without the last norm."""
    norms = map_.float().norm(dim=1)
    return LevelArtifacts(name, norms, OUTLIER * float(norms.median()) if threshold is None else threshold)


def require_extractor(extractor: object) -> None:
    if not isinstance(extractor, FeatureExtractWrapper):
        raise ArgumentError(f"expected an extractor, got {type(extractor).__name__}: features_only=True builds one")


def require_threshold(threshold: float | None) -> None:
    if threshold is not None and not threshold > 0:
        raise ArgumentError(f"threshold={threshold}: expected a positive norm, or None for 3 times the median")


def emerged(reports: Sequence[LevelArtifacts]) -> int:
    """Position of the first level in which at least half of the artifacts of the last level are artifacts."""
    last = reports[-1].mask
    return next(i for i, report in enumerate(reports) if 2 * int((report.mask & last).sum()) >= int(last.sum()))
