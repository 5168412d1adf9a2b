"""PAFPN: a feature pyramid whose shallow maps reach the deep ones again (PANet, https://arxiv.org/abs/1803.01534)."""

from torch import Tensor, nn

from .base import Neck, described, named, pyramid_of, resize, start_uniform


class PAFPN(Neck):
    """Maps of doubling reductions to maps of `chs` channels and the same sizes: deep to shallow, then back.

    Layers, names and numbers are those of mmdetection's PAFPN without extra levels: what goes on to the deeper level is
    the sum, before the level's last convolution, and no activation follows a convolution, where the paper has both
    otherwise. Any sizes fit: maps are resized to those they are added to.

    Raises ContractError if reductions do not double.
    """

    def __init__(self, feature_info: object, chs: int = 256) -> None:
        levels = pyramid_of(feature_info, "PAFPN")
        super().__init__(levels)
        deeper = range(len(levels) - 1)
        names = ["fpn_convs.0", *(f"pafpn_convs.{i}" for i in deeper)]
        self.feature_info = described((chs, *row) for row in zip(levels.reduction(), names, strict=True))
        self.lateral_convs = nn.ModuleList(_conv(level.chs, chs, 1) for level in levels)
        self.fpn_convs = nn.ModuleList(_conv(chs, chs, 3) for _ in levels)
        self.downsample_convs = nn.ModuleList(_conv(chs, chs, 3, stride=2) for _ in deeper)
        self.pafpn_convs = nn.ModuleList(_conv(chs, chs, 3) for _ in deeper)

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        laterals = [conv(map_) for conv, map_ in zip(self.lateral_convs, maps, strict=True)]
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + resize(laterals[i + 1], laterals[i])
        sums = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals, strict=True)]
        for i, conv in enumerate(self.downsample_convs):
            sums[i + 1] = sums[i + 1] + resize(conv(sums[i]), sums[i + 1])
        return [sums[0], *(conv(map_) for conv, map_ in zip(self.pafpn_convs, sums[1:], strict=True))]


def _conv(in_chs: int, chs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_chs, chs, kernel, stride, kernel // 2)
    start_uniform(conv)
    return named(conv=conv)
