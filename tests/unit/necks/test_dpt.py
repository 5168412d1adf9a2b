"""DPT's necks: equal to transformers', correct at every size, and usable in all the ways of their backbone."""

import pytest
import torch
from conftest import assert_same, images, randomize, relative_difference
from torch import Tensor, nn
from transformers import DPTConfig
from transformers.models.dpt.modeling_dpt import DPTNeck

import featx
from featx import ArgumentError, ContractError, InputError
from featx.features import FeatureInfo, Levels
from featx.necks import FPN, FeatureFusion, Pipeline, Reassemble, Resample

WIDTH, CHANNELS, FUSED = 12, (6, 10, 14, 18), 8
BLOCKS = Levels(FeatureInfo(WIDTH, 16, f"blocks.{i}") for i in (2, 5, 8, 11))
READOUTS = ("ignore", "add", "project")
VIT = "vit_tiny_patch16_224"
# the same operations in single precision, in another order of sums
CLOSE = 1e-6


def reference(readout: str) -> DPTNeck:
    config = DPTConfig(
        hidden_size=WIDTH,
        neck_hidden_sizes=list(CHANNELS),
        fusion_hidden_size=FUSED,
        readout_type=readout,
        neck_ignore_stages=[],
        is_hybrid=False,
    )
    return randomize(DPTNeck(config))


def with_weights_of(neck: DPTNeck, readout: str) -> nn.Sequential:
    """Both necks with the tensors of transformers' one."""
    reassemble = Reassemble(BLOCKS, CHANNELS, readout=readout)
    fusion = FeatureFusion(reassemble.feature_info, FUSED)
    prefix, state = "reassemble_stage.", neck.state_dict()
    reassemble.load_state_dict({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
    fusion.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith(prefix)})
    return nn.Sequential(reassemble, fusion).eval()


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("height", "width"), [(6, 6), (4, 10)])
@torch.no_grad()
def test_maps_equal_those_of_transformers_with_its_weights(readout, height, width):
    neck = reference(readout)
    tokens = [torch.randn(2, 1 + height * width, WIDTH) for _ in BLOCKS]
    expected = neck(tokens, height, width)[::-1]
    pairs = [(t[:, :1], t[:, 1:].transpose(1, 2).unflatten(2, (height, width))) for t in tokens]
    inputs = [map_ for _, map_ in pairs] if readout == "ignore" else pairs
    maps = with_weights_of(neck, readout)(inputs)
    assert [tuple(m.shape[2:]) for m in maps] == [(height * 8 // k, width * 8 // k) for k in (1, 2, 4, 8)]
    for ours, theirs in zip(maps, expected, strict=True):
        assert relative_difference(ours, theirs) < CLOSE


def pipeline(readout: str = "ignore", fused: bool = True, name: str = VIT, **fields) -> Pipeline:
    output = "list" if readout == "ignore" else "tokens"
    backbone = featx.create_model(name, features_only=True, out_indices=[2, 5, 8, 11], output=output, **fields)
    reassemble = Reassemble(backbone.feature_info, CHANNELS, readout=readout)
    return Pipeline(backbone, reassemble, *([FeatureFusion(reassemble.feature_info, FUSED)] if fused else ()))


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("fused", [False, True])
def test_levels_are_true_at_every_size(readout, fused):
    with torch.device("meta"):
        source = pipeline(readout, fused)
    assert source.feature_info.reduction() == ([2, 4, 8, 16] if fused else [4, 8, 16, 32])
    assert len(featx.verify(source, [(224, 224), (97, 161), (256, 512), (223, 225)]).sizes) == 4


@pytest.mark.parametrize("readout", READOUTS)
def test_a_training_step_reaches_every_parameter(readout):
    source = randomize(pipeline(readout)).train()
    maps = source(images(2, 3, 64, 96))
    sum((map_ * images(*map_.shape, seed=i)).sum() for i, map_ in enumerate(maps)).backward()
    unreached = [n for n, p in source.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("readout", READOUTS)
@torch.no_grad()
def test_pipelines_compile_whole_and_export_at_other_sizes(readout):
    torch._dynamo.reset()
    source = randomize(pipeline(readout)).eval()
    small, wide = images(2, 3, 64, 96), images(2, 3, 97, 161)
    assert_same(torch.compile(source, fullgraph=True, backend="eager")(small), source(small))
    exported = torch.export.export(source, (small,))
    assert exported.state_dict.keys() == source.state_dict().keys()
    assert_same(exported.module()(small), source(small))
    assert all(map_.isfinite().all() for map_ in source(wide))


@pytest.mark.parametrize("readout", READOUTS)
@torch.no_grad()
def test_a_pyramid_of_blocks_takes_further_necks(readout):
    source = pipeline(readout, fused=False)
    model = Pipeline(source, FPN(source.feature_info, 16)).eval()
    assert [tuple(m.shape[1:]) for m in model(images(1, 3, 64, 96))] == [(16, 64 // s, 96 // s) for s in (4, 8, 16, 32)]


def test_a_patch_of_14_pixels_is_resampled_first():
    with torch.device("meta"):
        backbone = featx.create_model("vit_small_patch14_dinov2", features_only=True, out_indices=[2, 5, 8, 11])
        with pytest.raises(ContractError, match=r"Resample\(feature_info, 16\) before this neck"):
            Reassemble(backbone.feature_info, CHANNELS)
        resample = Resample(backbone.feature_info, 16)
        source = Pipeline(backbone, resample, Reassemble(resample.feature_info, CHANNELS))
    assert source.feature_info.reduction() == [4, 8, 16, 32]
    featx.verify(source, [(224, 224), (230, 310)])


def test_places_stay_where_sides_are_no_multiples():
    """A fused map keeps the cells of the next map: an edge in the image is an edge in the same place of the maps."""
    fusion = FeatureFusion(Levels(FeatureInfo(1, 4 << i, f"{i}") for i in range(4)), 1).eval()
    for name, parameter in fusion.named_parameters():
        nn.init.zeros_(parameter)
        if name.startswith("convs.") or name.endswith("projection.weight"):
            nn.init.dirac_(parameter)
    sizes = [(13, 25), (7, 13), (4, 7), (2, 4)]
    maps = fusion([torch.linspace(-1, 1, w).expand(1, 1, h, w).clone() for h, w in sizes])
    assert [tuple(m.shape[2:]) for m in maps] == [(26, 50), (13, 25), (7, 13), (4, 7)]
    for map_ in maps:
        row = map_[0, 0, 0] / map_.max()
        assert torch.allclose(row, torch.linspace(-1, 1, row.numel()), atol=1e-5)


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: Reassemble(BLOCKS, (8, 8)), ArgumentError, r"4 levels, 2 chs and 4 scale_factors"),
        (lambda: Reassemble(BLOCKS, CHANNELS, scale_factors=(4, 3, 2, 1)), ArgumentError, "powers of two"),
        (lambda: Reassemble(BLOCKS, CHANNELS, readout="cat"), ArgumentError, r"choose one of \('ignore', 'add', 'proj"),
        (
            lambda: Reassemble([FeatureInfo(8, 4, "a"), FeatureInfo(8, 8, "b")], (8, 8), scale_factors=(2, 1)),
            ContractError,
            "needs FPN instead",
        ),
        (lambda: FeatureFusion(BLOCKS), ContractError, "takes maps whose reduction doubles"),
        (lambda: FeatureFusion([FeatureInfo(8, 7, "a"), FeatureInfo(8, 14, "b")]), ContractError, "which is odd"),
        (
            lambda: Pipeline(
                featx.create_model(VIT, features_only=True, out_indices=[2, 5, 8, 11]),
                Reassemble([FeatureInfo(192, 16, f"{i}") for i in range(4)], CHANNELS, readout="add"),
            ),
            ContractError,
            'put it first, after an extractor with output="tokens"',
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, error, words):
    with pytest.raises(error, match=words):
        build()


@pytest.mark.parametrize(
    "maps", [[torch.zeros(1, WIDTH, 4, 4)] * 4, [(torch.zeros(1, 0, WIDTH), torch.zeros(1, WIDTH, 4, 4))] * 4]
)
def test_a_readout_needs_prefix_tokens(maps: list[Tensor]):
    with pytest.raises(InputError, match='or use readout="ignore"'):
        Reassemble(BLOCKS, CHANNELS, readout="add")(maps)
