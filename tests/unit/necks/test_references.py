"""Necks against their references: torchvision's layers, or the formulas of detectron2, mmdetection and the papers."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from conftest import images, randomize, relative_difference
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from featx.features import FeatureInfo
from featx.necks import ASPP, FPN, P6P7, PAFPN, BiFPN, ChannelMapper, MaxPoolLevel, SimpleFeaturePyramid

CHANNELS = (6, 10, 14, 18)
LEVELS = [FeatureInfo(chs, 4 << i, f"c{i}") for i, chs in enumerate(CHANNELS)]
# of maps that halve exactly, that round up, that round down, and that do neither
SIZES = {
    "even": [(16, 24), (8, 12), (4, 6), (2, 3)],
    "up": [(25, 41), (13, 21), (7, 11), (4, 6)],
    "down": [(25, 41), (12, 20), (6, 10), (3, 5)],
    "grown": [(25, 41), (14, 22), (8, 12), (4, 6)],
}
# the same operations in double precision, in another order of sums
EXACT = 1e-12


def some_maps(sizes: str) -> list[Tensor]:
    return [images(2, chs, *size, seed=chs) for chs, size in zip(CHANNELS, SIZES[sizes], strict=True)]


@pytest.fixture(params=SIZES)
def maps(request: pytest.FixtureRequest) -> list[Tensor]:
    return some_maps(request.param)


def doubles(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def assert_close(ours: list[Tensor], reference: list[Tensor]) -> None:
    assert len(ours) == len(reference)
    for one, other in zip(ours, reference, strict=True):
        assert relative_difference(one, other) < EXACT


def nearest(x: Tensor, like: Tensor) -> Tensor:
    """Each cell takes the given cell that its own index falls on."""
    rows, columns = (torch.arange(n) * m // n for n, m in zip(like.shape[2:], x.shape[2:], strict=True))
    return x[:, :, rows][:, :, :, columns]


def pooled(x: Tensor) -> Tensor:
    """The largest of each 3x3 cells around every second one."""
    padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
    return padded.unfold(2, 3, 2).unfold(3, 3, 2).amax((-2, -1))


def normed(x: Tensor, state: dict[str, Tensor], name: str, eps: float) -> Tensor:
    """Batch norm with the statistics of the state."""
    mean, var, weight, bias = (
        state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + eps).sqrt() * weight + bias


def extras(kind: str) -> nn.Module | None:
    blocks = {
        "pool": LastLevelMaxPool,
        "p5": lambda: LastLevelP6P7(8, 8),
        "c5": lambda: LastLevelP6P7(CHANNELS[-1], 8),
    }
    return blocks[kind]() if kind in blocks else None


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
@pytest.mark.parametrize("kind", ["none", "pool", "p5", "c5"])
def test_fpn_is_bit_for_bit_torchvisions_under_its_names(maps, kind, norm):
    reference = randomize(FeaturePyramidNetwork(list(CHANNELS), 8, extras(kind), norm))
    neck = FPN(LEVELS, 8, extra_blocks=extras(kind), norm=norm).eval()
    assert list(neck.state_dict()) == list(reference.state_dict())
    neck.load_state_dict(reference.state_dict())
    expected = reference(OrderedDict(zip("abcd", maps, strict=True)))
    ours = neck(maps)
    assert len(ours) == len(neck.feature_info) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(ours, expected.values(), strict=True))


def test_fpn_starts_from_torchvisions_random_values():
    torch.manual_seed(0)
    reference = FeaturePyramidNetwork(list(CHANNELS), 8).state_dict()
    torch.manual_seed(0)
    ours = FPN(LEVELS, 8).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in reference.items())


def test_fpn_takes_the_names_that_older_torchvision_wrote():
    reference = randomize(FPN(LEVELS, 8, extra_blocks=LastLevelMaxPool()))
    old = {name.replace(".0.weight", ".weight").replace(".0.bias", ".bias") for name in reference.state_dict()}
    assert "inner_blocks.3.weight" in old
    state = {
        f"neck.{name.replace('.0.weight', '.weight').replace('.0.bias', '.bias')}": tensor
        for name, tensor in reference.state_dict().items()
    }
    holder = nn.ModuleDict({"neck": FPN(LEVELS, 8, extra_blocks=LastLevelMaxPool())})
    holder.load_state_dict(state)
    maps = some_maps("up")
    assert all(torch.equal(a, b) for a, b in zip(holder["neck"](maps), reference(maps), strict=True))


def test_p6p7_is_torchvisions(maps):
    reference = randomize(LastLevelP6P7(CHANNELS[-1], 8))
    neck = P6P7(LEVELS, 8)
    neck.load_state_dict(reference.state_dict())
    reference.use_P5 = True
    expected, _ = reference(list(maps), list(maps), [])
    assert all(torch.equal(one, other) for one, other in zip(neck(maps), expected, strict=True))


def test_max_pool_level_is_torchvisions(maps):
    expected, _ = LastLevelMaxPool()(list(maps), list(maps), [])
    assert all(torch.equal(one, other) for one, other in zip(MaxPoolLevel(LEVELS)(maps), expected, strict=True))


def test_aspp_is_bit_for_bit_torchvisions_under_its_names():
    reference = randomize(deeplabv3.ASPP(18, (2, 4), 8))
    neck = ASPP(LEVELS[-1:], 8, rates=(2, 4)).eval()
    assert list(neck.state_dict()) == list(reference.state_dict())
    neck.load_state_dict(reference.state_dict())
    x = images(2, 18, 7, 11)
    assert torch.equal(neck([x])[0], reference(x))


def test_channel_mapper_is_a_projection_and_a_group_norm(maps):
    neck = randomize(ChannelMapper(LEVELS, 64)).double()
    state = neck.state_dict()

    def formula(x: Tensor, name: str) -> Tensor:
        weight, bias, scale, shift = (state[f"{name}.{part}"] for part in ("0.weight", "0.bias", "1.weight", "1.bias"))
        projected = torch.einsum("nchw,dc->ndhw", x, weight[:, :, 0, 0]) + bias.view(1, -1, 1, 1)
        groups = projected.unflatten(1, (32, 2)).flatten(2)
        var, mean = torch.var_mean(groups, 2, correction=0, keepdim=True)
        standard = ((groups - mean) / (var + 1e-5).sqrt()).reshape(projected.shape)
        return standard * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    expected = [formula(x, f"convs.{i}") for i, x in enumerate(doubles(maps))]
    assert_close(neck(doubles(maps)), expected)


def test_pafpn_is_mmdetections_formula_under_its_names(maps):
    neck = randomize(PAFPN(LEVELS, 8)).double()
    state = neck.state_dict()
    kinds = {"lateral_convs": 4, "fpn_convs": 4, "downsample_convs": 3, "pafpn_convs": 3}
    assert set(state) == {
        f"{kind}.{i}.conv.{part}" for kind, count in kinds.items() for i in range(count) for part in ("weight", "bias")
    }

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        return F.conv2d(x, weight, state[f"{name}.conv.bias"], stride, weight.shape[-1] // 2)

    c2, c3, c4, c5 = doubles(maps)
    p5 = conv(c5, "lateral_convs.3")
    p4 = conv(c4, "lateral_convs.2") + nearest(p5, c4)
    p3 = conv(c3, "lateral_convs.1") + nearest(p4, c3)
    p2 = conv(c2, "lateral_convs.0") + nearest(p3, c2)
    n2 = conv(p2, "fpn_convs.0")
    n3 = conv(p3, "fpn_convs.1") + nearest(conv(n2, "downsample_convs.0", 2), c3)
    n4 = conv(p4, "fpn_convs.2") + nearest(conv(n3, "downsample_convs.1", 2), c4)
    n5 = conv(p5, "fpn_convs.3") + nearest(conv(n4, "downsample_convs.2", 2), c5)
    expected = [n2, *(conv(n, f"pafpn_convs.{i}") for i, n in enumerate((n3, n4, n5)))]
    assert_close(neck(doubles(maps)), expected)


def test_bifpn_is_the_papers_formula(maps):
    neck = randomize(BiFPN(LEVELS[1:], 8, repeats=2, extra=2)).double()
    with torch.no_grad():
        for name, weight in neck.named_parameters():
            if name.endswith("outer.1.weight"):
                weight[1] = -0.3  # fused with no weight at all
    state = neck.state_dict()

    def projected(x: Tensor, i: int) -> Tensor:
        plane = torch.einsum("nchw,dc->ndhw", x, state[f"projections.{i}.conv.weight"][:, :, 0, 0])
        return normed(plane, state, f"projections.{i}.bn", 1e-3)

    def fused(name: str, *parts: Tensor) -> Tensor:
        weights = state[f"{name}.weight"].clamp(min=0)
        x = sum(w * part for w, part in zip(weights, parts, strict=True)) / (1e-4 + weights.sum())
        x = x / (1 + torch.exp(-x))
        x = F.conv2d(x, state[f"{name}.conv_dw.weight"], padding=1, groups=8)
        x = torch.einsum("nchw,dc->ndhw", x, state[f"{name}.conv_pw.weight"][:, :, 0, 0])
        return normed(x, state, f"{name}.bn", 1e-3)

    def layer(n: str, p3: Tensor, p4: Tensor, p5: Tensor, p6: Tensor, p7: Tensor) -> list[Tensor]:
        td6 = fused(f"{n}.inner.2", p6, nearest(p7, p6))
        td5 = fused(f"{n}.inner.1", p5, nearest(td6, p5))
        td4 = fused(f"{n}.inner.0", p4, nearest(td5, p4))
        out3 = fused(f"{n}.outer.0", p3, nearest(td4, p3))
        out4 = fused(f"{n}.outer.1", p4, td4, nearest(pooled(out3), p4))
        out5 = fused(f"{n}.outer.2", p5, td5, nearest(pooled(out4), p5))
        out6 = fused(f"{n}.outer.3", p6, td6, nearest(pooled(out5), p6))
        return [out3, out4, out5, out6, fused(f"{n}.outer.4", p7, nearest(pooled(out6), p7))]

    c3, c4, c5 = doubles(maps[1:])
    p6 = pooled(projected(c5, 3))
    expected = [projected(c3, 0), projected(c4, 1), projected(c5, 2), p6, pooled(p6)]
    expected = layer("layers.1", *layer("layers.0", *expected))
    assert_close(neck(doubles(maps[1:])), expected)


def detectron2_names(scale_factors: tuple[float, ...]) -> set[str]:
    """What detectron2's SimpleFeaturePyramid with norm="LN" calls its parameters, for a patch of 16 pixels."""
    before = {4: ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"], 2: ["0.weight", "0.bias"]}
    first = {4: 4, 2: 1, 1: 0, 0.5: 1}
    stage = {4: "simfp_2", 2: "simfp_3", 1: "simfp_4", 0.5: "simfp_5"}
    convs = {
        f"{stage[scale]}.{first[scale] + i}.{part}"
        for scale in scale_factors
        for i in (0, 1)
        for part in ("weight", "norm.weight", "norm.bias")
    }
    return convs | {f"{stage[scale]}.{part}" for scale in scale_factors for part in before.get(scale, [])}


@pytest.mark.parametrize("size", [(14, 14), (7, 11), (2, 3)])
def test_simple_feature_pyramid_is_detectron2s_formula_under_its_names(size):
    neck = randomize(SimpleFeaturePyramid([FeatureInfo(16, 16, "blocks.11")], 8)).double()
    state = neck.state_dict()
    assert set(state) == detectron2_names((4, 2, 1, 0.5))

    def layer_norm(x: Tensor, name: str) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        scale, shift = (state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return scale * ((x - mean) / (var + 1e-6).sqrt()) + shift

    def doubled(x: Tensor, name: str) -> Tensor:
        """Each cell becomes 2x2 cells by a matrix of their own."""
        blocks = torch.einsum("nchw,cdij->ndhiwj", x, state[f"{name}.weight"]).flatten(4, 5).flatten(2, 3)
        return blocks + state[f"{name}.bias"][:, None, None]

    def ended(x: Tensor, name: str, first: int) -> Tensor:
        x = F.conv2d(x, state[f"{name}.{first}.weight"])
        x = layer_norm(x, f"{name}.{first}.norm")
        x = F.conv2d(x, state[f"{name}.{first + 1}.weight"], padding=1)
        return layer_norm(x, f"{name}.{first + 1}.norm")

    x = images(2, 16, *size).double()
    twice = F.gelu(layer_norm(doubled(x, "simfp_2.0"), "simfp_2.1"))
    even = x[:, :, : size[0] // 2 * 2, : size[1] // 2 * 2]
    half = even.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    expected = [
        ended(doubled(twice, "simfp_2.3"), "simfp_2", 4),
        ended(doubled(x, "simfp_3.0"), "simfp_3", 1),
        ended(x, "simfp_4", 0),
        ended(half, "simfp_5", 1),
    ]
    assert_close(neck([x]), expected)


@torch.no_grad()
def test_a_simple_feature_pyramid_of_several_blocks_makes_each_map_of_its_own_block():
    blocks = [FeatureInfo(16, 16, f"blocks.{i}") for i in (2, 5, 8, 11)]
    several = randomize(SimpleFeaturePyramid(blocks, 8))
    single = SimpleFeaturePyramid(blocks[:1], 8)
    single.load_state_dict(several.state_dict())
    maps = [images(1, 16, 6, 5, seed=seed) for seed in range(4)]
    expected = [single([map_])[i] for i, map_ in enumerate(maps)]
    assert all(map(torch.equal, several(maps), expected))
    assert several.feature_info == single.feature_info
