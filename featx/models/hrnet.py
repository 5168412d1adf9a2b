"""HRNet, https://arxiv.org/abs/1908.07919: parallel branches at four resolutions with repeated fusion.

Upsampled branches are cropped to the branch that they are added to, so that any image size works. At sizes that need no
crop, outputs equal those of the reference (timm), which refuses other sizes. The level of a branch is the map that its
classifier uses.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import BackboneConfig, Pyramid, classifier
from ..features import FeatureInfo, Levels
from ..preprocessing import DataConfig
from ..registry import Variant, register
from .layers.normed import ConvNorms, normed
from .layers.pool import flatten, global_pool, pooled_chs
from .layers.residual import BasicBlock, Bottleneck, init_conv_norm

HEAD_CHS = (32, 64, 128, 256)

# A function from a map (N, C, h, w), a size (H, W) and the nominal scale factor to a map (N, C, H, W).
Fit = Callable[[Tensor, torch.Size, int], Tensor]


def enlarged(x: Tensor, size: torch.Size, factor: int) -> Tensor:
    """Nearest-neighbor upsampling by the scale factor, cropped to the size."""
    if torch.compiler.is_compiling():  # a graph for any size must not branch on whether a crop is needed
        rows, columns = (torch.arange(cells, device=x.device) // factor for cells in size)
        return x.index_select(2, rows).index_select(3, columns)
    return F.interpolate(x, scale_factor=float(factor))[..., : size[0], : size[1]]


def resized(x: Tensor, size: torch.Size, _factor: int) -> Tensor:
    """Nearest-neighbor resizing to the size: equals `enlarged` for sides that are multiples of 32 pixels."""
    return F.interpolate(x, size)


@dataclass(frozen=True, slots=True)
class HRNetConfig(BackboneConfig):
    """The configuration of an HRNet.

    Attributes:
        width: channels of the finest branch; each coarser branch has twice as many.
        head_bias: whether the classifier's convolutions have a bias.
        modules: exchange modules in stages 2, 3 and 4.
        depth: blocks per branch in a module.
        stem_depth: blocks of stage 1, which has one branch.
        stem_chs: channels of stage 1.
        fit: resizes a coarse branch to the size of the branch that it is added to.
    """

    width: int
    modules: tuple[int, int, int] = (1, 4, 3)
    depth: int = 4
    stem_depth: int = 4
    stem_chs: int = 64
    head_bias: bool = True
    fit: Fit = enlarged


class HRNet(Pyramid):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the stem's first activation, the four branches."""

    last_linear = "classifier"
    pool_layers = ("global_pool", "flatten")
    initialize = staticmethod(init_conv_norm)

    def __init__(self, cfg: HRNetConfig) -> None:
        super().__init__()
        self.config, self.in_chans = cfg, cfg.in_chans
        self.conv1 = nn.Conv2d(cfg.in_chans, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.act2 = nn.ReLU(inplace=True)
        self.layer1 = repeat(Bottleneck, 64, cfg.stem_chs, cfg.stem_depth)
        widths = [cfg.stem_chs * Bottleneck.expansion]
        for number, modules in enumerate(cfg.modules, start=1):
            wider = [cfg.width * 2**branch for branch in range(number + 1)]
            self.add_module(f"transition{number}", transition(widths, wider))
            self.add_module(f"stage{number + 1}", stage(cfg, wider, modules))
            widths = wider
        self.incre_modules = nn.ModuleList(repeat(Bottleneck, w, c, 1) for w, c in zip(widths, HEAD_CHS, strict=True))
        chs = [c * Bottleneck.expansion for c in HEAD_CHS]
        self.downsamp_modules = nn.ModuleList(
            conv_norm(a, b, 2, act=True, bias=cfg.head_bias) for a, b in pairwise(chs)
        )
        last = nn.Conv2d(chs[-1], 2048, 1, bias=cfg.head_bias)
        self.final_layer = nn.Sequential(last, nn.BatchNorm2d(2048), nn.ReLU(inplace=True))
        self.global_pool = global_pool(cfg.global_pool)
        self.flatten = flatten(cfg.global_pool)
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.num_features, self.head_hidden_size = 2048, pooled_chs(2048, cfg.global_pool)
        self.classifier = classifier(self.head_hidden_size, cfg.num_classes, cfg.global_pool)
        branches = [FeatureInfo(c, 4 * 2**branch, f"incre_modules.{branch}") for branch, c in enumerate(chs)]
        self.feature_info = Levels([FeatureInfo(64, 2, "act1"), *branches])
        self.initialize(self)

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        x = self.act1(normed(self.conv1, self.bn1, x))
        maps = [x] if 0 in levels else []
        if levels[-1] == 0:
            return maps
        branches = self._branches(x)
        return maps + [self.incre_modules[level - 1](branches[level - 1]) for level in levels if level > 0]

    def forward_features(self, x: Tensor) -> Tensor:
        """The input of the global pool: the four branches summed from fine to coarse, (N, 2048, H / 32, W / 32)."""
        return self._joined(self.forward_maps(x, range(1, len(self.feature_info))))

    def forward_features_and_maps(self, x: Tensor, levels: Sequence[int]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        pairs = self.forward_tokens(x, range(len(self.feature_info)))
        return self._joined([map_ for _, map_ in pairs[1:]]), [pairs[level] for level in levels]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(self.flatten(self.global_pool(x)))
        return x if pre_logits else self.classifier(x)

    def _joined(self, branches: list[Tensor]) -> Tensor:
        y, *coarser = branches
        for down, branch in zip(self.downsamp_modules, coarser, strict=True):
            y = branch + down(y)
        return self.final_layer(y)

    def unused(self, levels: Sequence[int]) -> Iterator[str]:
        yield from ("downsamp_modules", "final_layer", "global_pool", "flatten", "head_drop", "classifier")
        if levels[-1] == 0:
            trunk = ("layer1", "transition1", "stage2", "transition2", "stage3", "transition3", "stage4")
            yield from ("conv2", "bn2", "act2", *trunk, "incre_modules")
            return
        last_exchange = f"stage4.{len(self.get_submodule('stage4')._modules) - 1}"
        for branch in range(len(HEAD_CHS)):
            if branch + 1 not in levels:
                yield from (f"incre_modules.{branch}", f"{last_exchange}.fuse_layers.{branch}")

    def _branches(self, x: Tensor) -> list[Tensor]:
        """The stem's map (N, 64, H / 2, W / 2) to one map per branch, fine to coarse, at 1/4 to 1/32."""
        maps = [self.layer1(self.act2(normed(self.conv2, self.bn2, x)))]
        for number in (1, 2, 3):
            paths = self.get_submodule(f"transition{number}").children()
            # a branch that this stage adds starts from the coarsest existing one
            maps = [path(maps[min(branch, len(maps) - 1)]) for branch, path in enumerate(paths)]
            maps = self.get_submodule(f"stage{number + 1}")(maps)
        return maps


class Exchange(nn.Module):
    """Residual blocks in every branch, then every branch becomes the sum of all: maps to maps of the same shapes."""

    def __init__(self, widths: Sequence[int], depth: int, fit: Fit) -> None:
        super().__init__()
        self.branches = nn.ModuleList(repeat(BasicBlock, width, width, depth) for width in widths)
        self.fuse_layers = nn.ModuleList(Fuse(widths, branch, fit) for branch in range(len(widths)))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        # pruning replaces an unused branch by an identity
        return [fuse(maps) for fuse in self.fuse_layers]


class Fuse(nn.ModuleList):
    """The sum of all branches, converted to the size and channels of one of them."""

    def __init__(self, widths: Sequence[int], branch: int, fit: Fit) -> None:
        super().__init__(
            narrowed(width, widths[branch]) if other > branch else downsampled(width, widths[branch], branch - other)
            for other, width in enumerate(widths)
        )
        self.branch, self.fit = branch, fit

    def forward(self, maps: list[Tensor]) -> Tensor:
        first, *others = (self._path(other, x, maps[self.branch].shape[-2:]) for other, x in enumerate(maps))
        for y in others:
            first = first + y
        return F.relu(first)

    def _path(self, other: int, x: Tensor, size: torch.Size) -> Tensor:
        y = self[other](x)
        return self.fit(y, size, 2 ** (other - self.branch)) if other > self.branch else y


def stage(cfg: HRNetConfig, widths: Sequence[int], modules: int) -> nn.Sequential:
    return nn.Sequential(*(Exchange(widths, cfg.depth, cfg.fit) for _ in range(modules)))


def repeat(block: type[BasicBlock | Bottleneck], in_chs: int, chs: int, depth: int) -> nn.Sequential:
    return nn.Sequential(block(in_chs, chs), *(block(chs * block.expansion, chs) for _ in range(depth - 1)))


def conv_norm(in_chs: int, chs: int, stride: int, *, act: bool, bias: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(in_chs, chs, 3, stride, 1, bias=bias), nn.BatchNorm2d(chs)]
    return ConvNorms(*layers, nn.ReLU(inplace=True)) if act else ConvNorms(*layers)


def transition(widths: Sequence[int], wider: Sequence[int]) -> nn.ModuleList:
    """Convert the branches of a stage to those of the next stage, which has one more."""
    kept = [nn.Identity() if a == b else conv_norm(a, b, 1, act=True) for a, b in zip(widths, wider, strict=False)]
    return nn.ModuleList([*kept, nn.Sequential(conv_norm(widths[-1], wider[-1], 2, act=True))])


def narrowed(in_chs: int, chs: int) -> nn.Sequential:
    return ConvNorms(nn.Conv2d(in_chs, chs, 1, bias=False), nn.BatchNorm2d(chs))


def downsampled(in_chs: int, chs: int, halvings: int) -> nn.Module:
    """The identity, or the necessary number of strided convolutions, the last without activation."""
    if halvings == 0:
        return nn.Identity()
    before = [conv_norm(in_chs, in_chs, 2, act=True) for _ in range(halvings - 1)]
    return nn.Sequential(*before, conv_norm(in_chs, chs, 2, act=False))


BILINEAR = DataConfig(interpolation="bilinear")
WIDE_CROP = DataConfig(interpolation="bilinear", crop=0.95)
TAGS = {"ms_in1k": asdict(BILINEAR)}
GLUON, PADDLE = ("gluon_in1k", "ms_in1k"), ("paddle_in1k",)

register(
    {
        "hrnet_w18_small": Variant(HRNet, HRNetConfig(16, (1, 1, 1), 2, 1, 32), GLUON, tags=TAGS),
        "hrnet_w18_small_v2": Variant(HRNet, HRNetConfig(18, (1, 3, 2), 2, 2), GLUON, tags=TAGS),
        "hrnet_w18": Variant(HRNet, HRNetConfig(18), ("ms_aug_in1k", "ms_in1k"), WIDE_CROP, TAGS),
        "hrnet_w18_ssld": Variant(HRNet, HRNetConfig(18, head_bias=False), PADDLE, WIDE_CROP),
        "hrnet_w48_ssld": Variant(HRNet, HRNetConfig(48, head_bias=False), PADDLE, WIDE_CROP),
        **{f"hrnet_w{w}": Variant(HRNet, HRNetConfig(w), ("ms_in1k",), BILINEAR) for w in (30, 32, 40, 44, 48, 64)},
    }
)
