"""The contract of every neck: correct levels at any size, names, training, export and compilation."""

import copy
import pickle
from collections.abc import Callable
from functools import cache

import pytest
import torch
from conftest import assert_same, images, randomize, relative_difference
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

import featx
from featx import FeatureExtractWrapper
from featx.features import FeatureInfo, Levels
from featx.necks import (
    ASPP,
    FPN,
    P6P7,
    PAFPN,
    BiFPN,
    ChannelMapper,
    ExtraLevels,
    MaxPoolLevel,
    Neck,
    Pipeline,
    Resample,
    SimpleFeaturePyramid,
)

Build = Callable[[Levels], list[Neck]]

# necks of three levels of a backbone
PYRAMID: dict[str, Build] = {
    "FPN": lambda info: [FPN(info, 32)],
    "FPN with a pooled level": lambda info: [FPN(info, 32, extra_blocks=LastLevelMaxPool())],
    "FPN with P6 and P7": lambda info: [FPN(info, 32, extra_blocks=LastLevelP6P7(32, 32), norm=nn.BatchNorm2d)],
    "FPN with P6 and P7 of C5": lambda info: [FPN(info, 32, extra_blocks=LastLevelP6P7(info[-1].chs, 32))],
    "PAFPN": lambda info: [PAFPN(info, 32)],
    "BiFPN": lambda info: [BiFPN(info, 32, 2)],
    "BiFPN with three extra levels": lambda info: [BiFPN(info, 32, 1, extra=3)],
    "ChannelMapper": lambda info: [ChannelMapper(info, 48)],
    "extra levels": lambda info: [ExtraLevels(info, (32, 16))],
    "FPN, P6 and P7": lambda info: [fpn := FPN(info, 32), P6P7(fpn.feature_info, 16)],
    "FPN, PAFPN and a pooled level": lambda info: [
        fpn := FPN(info, 32),
        pafpn := PAFPN(fpn.feature_info, 16),
        MaxPoolLevel(pafpn.feature_info),
    ],
}
# necks of one level of a backbone
SINGLE: dict[str, Build] = {
    "SimpleFeaturePyramid": lambda info: [SimpleFeaturePyramid(info, 32)],
    "SimpleFeaturePyramid of other scales": lambda info: [SimpleFeaturePyramid(info, 32, scale_factors=(8, 4, 2))],
    "SimpleFeaturePyramid and a pooled level": lambda info: [
        pyramid := SimpleFeaturePyramid(info, 32),
        MaxPoolLevel(pyramid.feature_info),
    ],
    "SimpleFeaturePyramid and PAFPN": lambda info: [
        pyramid := SimpleFeaturePyramid(info, 32),
        PAFPN(pyramid.feature_info, 16),
    ],
    "ASPP": lambda info: [ASPP(info, 32)],
    "ChannelMapper of one map": lambda info: [ChannelMapper(info, 32)],
    "Resample to finer cells": lambda info: [Resample(info, 12)],
    "Resample and SimpleFeaturePyramid": lambda info: [
        resample := Resample(info, 32),
        SimpleFeaturePyramid(resample.feature_info, 32),
    ],
}
NECKS = {**PYRAMID, **SINGLE}
# whose cells round up, down, and to groups of a patch; and transformers of one stride
PYRAMIDS = ("resnet18", "convnext_atto", "mobilevitv2_050")
TRANSFORMERS = ("vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224")
SIZES = [(97, 161), (223, 225)]


def extractor_of(name: str) -> FeatureExtractWrapper:
    return featx.create_model(name, features_only=True, out_indices=[-1] if name in TRANSFORMERS else 3)


@cache
def extractor_on_meta(name: str) -> FeatureExtractWrapper:
    with torch.device("meta"):
        return extractor_of(name)


def piped(extractor: FeatureExtractWrapper, neck: str) -> Pipeline:
    return Pipeline(extractor, *NECKS[neck](extractor.feature_info))


@pytest.fixture(params=NECKS)
def alone(request: pytest.FixtureRequest) -> tuple[nn.Sequential, list[Tensor]]:
    """The necks of a case, one after another, and maps for them."""
    rows = [FeatureInfo(8, 8, "c3"), FeatureInfo(16, 16, "c4"), FeatureInfo(32, 32, "c5")]
    maps = [images(2, 8, 17, 13), images(2, 16, 9, 7), images(2, 32, 5, 4)]
    taken = slice(1, 2) if request.param in SINGLE else slice(3)
    return randomize(nn.Sequential(*NECKS[request.param](Levels(rows[taken])))), maps[taken]


extractor_built_once = cache(extractor_of)


@pytest.fixture(params=NECKS)
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    extractor = extractor_built_once("vit_tiny_patch16_224" if request.param in SINGLE else "test_efficientnet")
    return randomize(piped(copy.deepcopy(extractor), request.param))


@pytest.mark.parametrize(
    ("name", "neck"),
    [(name, neck) for name in PYRAMIDS for neck in PYRAMID]
    + [(name, neck) for name in TRANSFORMERS for neck in SINGLE],
)
def test_levels_are_true_at_every_size(name, neck):
    source = piped(extractor_on_meta(name), neck)
    proven = featx.verify(source, SIZES)
    assert proven.levels == source.feature_info
    assert len(proven.sizes) == len(SIZES)


@pytest.mark.parametrize(
    ("name", "neck"),
    [("resnet18", neck) for neck in PYRAMID] + [("vit_tiny_patch16_224", neck) for neck in SINGLE],
)
def test_reductions_are_pixels_per_cell(name, neck):
    source = piped(extractor_on_meta(name), neck)
    proven = featx.verify(source, [(256, 512)]).sizes[256, 512]
    assert proven == tuple((256 // stride, 512 // stride) for stride in source.feature_info.reduction())


def test_verify_finds_a_neck_that_says_something_else(monkeypatch):
    extractor = extractor_on_meta("resnet18")
    neck = FPN(extractor.feature_info, 32)
    neck.feature_info = Levels(FeatureInfo(31, level.reduction, level.name) for level in neck.feature_info)
    with pytest.raises(featx.ContractError, match="feature_info says 31 channels"):
        featx.verify(Pipeline(extractor, neck))
    neck = FPN(extractor.feature_info, 32)
    monkeypatch.setattr(neck, "cells", lambda cells: [2 * number for number in cells])
    with pytest.raises(featx.ContractError, match="28 cells for 224 pixels at 1/8"):
        featx.verify(Pipeline(extractor, neck), [(224, 224)])


@pytest.mark.parametrize("taken", [(97, 161), (64, 64)])
def test_a_bridged_backbone_and_one_without_a_size_rule_take_necks(taken):
    bridged = featx.create_model("timm/resnet10t", features_only=True, out_indices=3)
    conv = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2))
    conv.feature_info = [{"chs": 8, "reduction": 4, "name": "0"}]
    for extractor in (bridged, FeatureExtractWrapper(conv)):
        featx.verify(piped(extractor, "FPN"), [taken])


def test_every_name_is_the_module_whose_output_is_the_map(pipeline):
    seen = {}
    for name in pipeline.feature_info.names():
        module = pipeline.get_submodule(name)
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
    with torch.no_grad():
        maps = pipeline(images())
    for level, map_ in zip(pipeline.feature_info, maps, strict=True):
        output = seen[level.name]
        # torchvision's LastLevelMaxPool returns the other maps, too
        assert torch.equal(output[0][-1] if isinstance(output, tuple) else output, map_)


def test_names_are_those_of_the_model_and_of_the_necks_with_a_prefix(pipeline):
    expected = {f"backbone.{name}" for name, _ in pipeline.backbone.named_parameters()}
    for i, neck in enumerate(pipeline.necks):
        expected |= {f"necks.{i}.{name}" for name, _ in neck.named_parameters()}
    assert {name for name, _ in pipeline.named_parameters()} == expected
    assert {name for name in pipeline.state_dict() if name.startswith("backbone.")} == {
        f"backbone.{name}" for name in pipeline.backbone.state_dict()
    }


def test_a_checkpoint_of_the_plain_model_fits_the_backbone():
    model = randomize(featx.create_model("resnet18"))
    source = piped(extractor_of("resnet18"), "FPN")
    featx.load_weights(source.backbone, model.state_dict())
    assert torch.equal(source.state_dict()["backbone.layer4.1.bn2.weight"], model.layer4[1].bn2.weight)


def test_a_pipeline_says_of_images_what_its_extractor_says():
    extractor = featx.create_model("vit_tiny_patch16_224", features_only=True, out_indices=[-1], in_chans=5)
    source = piped(extractor, "SimpleFeaturePyramid")
    assert (source.in_chans, source.data_config, source.size_divisor) == (5, extractor.data_config, 1)
    assert source.feature_at(8).name == "necks.0.simfp_3"
    with pytest.raises(featx.InputError, match="expected 5 channels on axis 1"):
        source(images(1, 3, 64, 64))


def test_a_pipeline_without_necks_is_its_extractor():
    extractor = extractor_of("resnet18").eval()
    assert_same(Pipeline(extractor)(images()), extractor(images()))
    assert Pipeline(extractor).feature_info.names() == ["backbone.layer2", "backbone.layer3", "backbone.layer4"]


def test_a_pipeline_is_a_source_for_further_necks():
    source = piped(extractor_of("resnet18"), "FPN")
    further = Pipeline(source, PAFPN(source.feature_info, 16))
    assert featx.verify(further, [(97, 161)]).sizes[97, 161] == ((13, 21), (7, 11), (4, 6))
    assert {name.split(".")[0] for name in further.state_dict()} == {"backbone", "necks"}


@pytest.mark.parametrize("output", ["dict", "tokens"])
def test_the_extractor_may_return_its_maps_in_any_form(output):
    model = featx.create_model("resnet18").eval()
    extractor, other = FeatureExtractWrapper(model, 3), FeatureExtractWrapper(model, 3, output=output)
    neck = FPN(extractor.feature_info, 8)
    assert_same(Pipeline(other, neck)(images()), Pipeline(extractor, neck)(images()))


def test_copies_give_the_same_maps(pipeline):
    with torch.no_grad():
        expected = pipeline(images())
        assert_same(copy.deepcopy(pipeline)(images()), expected)
        unpickled = pickle.loads(pickle.dumps(pipeline))
        assert_same(unpickled(images()), expected)
    assert unpickled.feature_info == pipeline.feature_info
    featx.verify(unpickled, [(97, 161)])


def test_a_training_step_reaches_every_parameter(pipeline):
    pipeline.train()
    maps = pipeline(images(2, 3, 64, 96))
    # weighted at random, because norms keep the plain sum of a map constant
    sum((map_ * images(*map_.shape, seed=i)).sum() for i, map_ in enumerate(maps)).backward()
    without = [name for name, tensor in pipeline.named_parameters() if tensor.grad is None or not tensor.grad.any()]
    assert not without


@torch.no_grad()
def test_maps_are_contiguous_in_the_memory_format_given(alone):
    necks, maps = alone
    plain = necks(maps)
    last = necks.to(memory_format=torch.channels_last)([m.contiguous(memory_format=torch.channels_last) for m in maps])
    assert all(map_.is_contiguous() for map_ in plain)
    assert all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in last)
    for one, other in zip(last, plain, strict=True):
        # another memory format sums in another order
        assert relative_difference(one, other) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_autocast_changes_numbers_little(alone, dtype):
    necks, maps = alone
    expected = necks(maps)
    with torch.autocast("cpu", dtype):
        rounded = necks(maps)
    for one, other in zip(rounded, expected, strict=True):
        assert one.isfinite().all()
        # bfloat16 has 8 bits, and errors add up over the layers
        assert cosine_similarity(one.float().flatten(), other.flatten(), 0) > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_necks_compute_in_the_type_of_their_parameters(alone, dtype):
    necks, maps = alone
    assert all(map_.dtype == dtype for map_ in necks.to(dtype)([map_.to(dtype) for map_ in maps]))


@pytest.mark.usefixtures("tolerant_of_torch")
@torch.no_grad()
def test_compiles_whole(alone):
    torch._dynamo.reset()  # torch compiles one function for eight models at most
    necks, maps = alone
    assert_same(torch.compile(necks, fullgraph=True, backend="eager")(maps), necks(maps))


@pytest.mark.usefixtures("tolerant_of_torch")
@torch.no_grad()
def test_exports(alone):
    necks, maps = alone
    exported = torch.export.export(necks, (maps,))
    assert exported.state_dict.keys() == necks.state_dict().keys()
    assert_same(exported.module()(maps), necks(maps))


@pytest.mark.usefixtures("tolerant_of_torch")
@torch.no_grad()
def test_a_pipeline_compiles_whole_and_keeps_names():
    torch._dynamo.reset()
    source = randomize(piped(extractor_of("resnet18"), "PAFPN"))
    compiled = torch.compile(source, fullgraph=True, backend="eager")
    assert_same(compiled(images()), source(images()))
    assert [name.removeprefix("_orig_mod.") for name in compiled.state_dict()] == list(source.state_dict())


@pytest.mark.usefixtures("tolerant_of_torch")
@torch.no_grad()
def test_an_exported_pipeline_keeps_names_and_takes_other_sizes():
    source = randomize(piped(extractor_of("resnet18"), "FPN"))
    sides = {2: torch.export.Dim("height", min=64, max=512), 3: torch.export.Dim("width", min=64, max=512)}
    exported = torch.export.export(source, (images(),), dynamic_shapes=(sides,))
    assert_same(exported.module()(images(2, 3, 97, 161)), source(images(2, 3, 97, 161)))
    assert exported.state_dict.keys() == source.state_dict().keys()
