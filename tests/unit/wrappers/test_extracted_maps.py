"""Maps of extractors of the smallest variants: values, order, training, copies, compilation and export."""

import copy

import pytest
import torch
import torch.distributed
from conftest import COPIES, SMALL, assert_same, hooked_maps, images
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.nn.parallel import DistributedDataParallel

import featx
from featx import FeatureExtractWrapper


def maps_of(module, x):
    with torch.no_grad():
        return module(x)


def test_maps_are_the_outputs_of_the_named_modules_of_the_intact_model(model):
    """Maps before the last norm, where the default is after it."""
    raw = model.raw() if getattr(model, "maps_are_normed", False) else model
    assert_same(maps_of(FeatureExtractWrapper(raw), images()), hooked_maps(model, images()))


def test_maps_come_in_the_order_of_out_indices(model):
    every = maps_of(FeatureExtractWrapper(model), images())
    extractor = FeatureExtractWrapper(model, (3, 1))
    assert_same(maps_of(extractor, images()), [every[3], every[1]])
    assert list(extractor.feature_info) == [model.feature_info[3], model.feature_info[1]]


def test_each_level_alone_equals_that_level_among_all(model):
    every = maps_of(FeatureExtractWrapper(model), images())
    for level in range(len(model.feature_info)):
        assert_same(maps_of(FeatureExtractWrapper(model, [level]), images()), [every[level]])


def test_a_dict_is_keyed_by_level_name(model):
    maps = maps_of(FeatureExtractWrapper(model, [2, 0], output="dict"), images())
    assert list(maps) == [model.feature_info[2].name, model.feature_info[0].name]
    assert_same(list(maps.values()), maps_of(FeatureExtractWrapper(model, [2, 0]), images()))


def test_forward_head_of_forward_features_is_forward(model):
    with torch.no_grad():
        assert torch.equal(model.forward_head(model.forward_features(images())), model(images()))


def test_every_parameter_of_every_level_gets_a_gradient(model):
    for level in range(len(model.feature_info)):
        extractor = FeatureExtractWrapper(copy.deepcopy(model), [level]).train()
        extractor(images())[0].square().mean().backward()
        assert [name for name, p in extractor.named_parameters() if p.grad is None] == []


def test_training_mode_follows_the_wrapper(model):
    extractor = FeatureExtractWrapper(model)
    extractor.train()
    assert all(module.training for module in extractor.modules())
    extractor.eval()
    assert not any(module.training for module in extractor.modules())


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_is_independent_and_has_the_same_names_and_maps(model, copied):
    extractor = FeatureExtractWrapper(model, [1, -1])
    before = maps_of(extractor, images())
    twin = copied(extractor)
    assert_same(maps_of(twin, images()), before)
    assert list(twin.state_dict()) == list(extractor.state_dict())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_same(maps_of(extractor, images()), before)


def test_replacing_a_child_of_a_copy_changes_its_maps(model):
    twin = copy.deepcopy(FeatureExtractWrapper(model, [1]))
    first = next(name for name, child in twin.named_children() if next(child.parameters(), None) is not None)
    setattr(twin, first, torch.nn.Identity())
    with pytest.raises(RuntimeError):  # what comes next now gets 3 channels
        twin(images())


def test_moving_and_casting_reach_every_tensor(model):
    extractor = FeatureExtractWrapper(model, [2]).double()
    assert {t.dtype for t in extractor.state_dict().values() if t.is_floating_point()} == {torch.float64}
    assert maps_of(extractor, images().double())[0].dtype == torch.float64


def test_maps_have_the_memory_format_of_the_images(model):
    extractor = FeatureExtractWrapper(model)
    assert all(map_.is_contiguous() for map_ in maps_of(extractor, images()))
    maps = maps_of(extractor, images().to(memory_format=torch.channels_last))
    assert all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in maps)


def test_channels_last_is_kept(model):
    extractor = FeatureExtractWrapper(model).to(memory_format=torch.channels_last)
    reference = maps_of(extractor, images())
    for map_, expected in zip(
        maps_of(extractor, images().to(memory_format=torch.channels_last)), reference, strict=True
    ):
        assert map_.is_contiguous(memory_format=torch.channels_last)
        # another memory format sums in another order
        torch.testing.assert_close(map_, expected, rtol=1e-4, atol=1e-4)


def test_autocast_computes_in_bfloat16(model):
    extractor = FeatureExtractWrapper(model, [1])
    (expected,) = maps_of(extractor, images())
    with torch.autocast("cpu", torch.bfloat16):
        (rounded,) = maps_of(extractor, images())
    assert not torch.equal(rounded.float(), expected)
    # bfloat16 has 8 bits, and errors add up over the layers
    assert torch.nn.functional.cosine_similarity(rounded.float().flatten(), expected.flatten(), 0) > 0.99


# One of each way to give maps, of those that are traced in a second or two; the others are swept.
TRACED = ("resnest14d", "test_efficientnet", "convnext_atto", "mobilevit_xxs", "vit_tiny_patch16_224")
EVERY = [name if name in TRACED else pytest.param(name, marks=pytest.mark.sweep) for name in SMALL]


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("built", EVERY, indirect=True)
def test_compiles_whole_and_keeps_names(model):
    torch._dynamo.reset()  # torch compiles one function for eight models at most
    extractor = FeatureExtractWrapper(model, [-1, 1])
    compiled = torch.compile(extractor, fullgraph=True, backend="eager")
    assert_same(maps_of(compiled, images()), maps_of(extractor, images()))
    assert [name.removeprefix("_orig_mod.") for name in compiled.state_dict()] == list(extractor.state_dict())


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("built", EVERY, indirect=True)
def test_exports_with_the_names_of_the_model(model):
    extractor = FeatureExtractWrapper(model, [-1, 1])
    with torch.no_grad():  # with gradients, positions of a ViT are products with matrices: see test_captured
        exported = torch.export.export(extractor, (images(),))
    assert_same(maps_of(exported.module(), images()), maps_of(extractor, images()))
    assert exported.state_dict.keys() == extractor.state_dict().keys()


@pytest.mark.usefixtures("one_process", "tolerant_of_torch")
def test_trains_under_ddp_with_every_parameter_used(model):
    extractor = FeatureExtractWrapper(model, [1]).train()
    parallel = DistributedDataParallel(extractor)
    for _ in range(2):  # a second step fails if the first left a parameter without a gradient
        parallel(images())[0].mean().backward()
    names = [name.removeprefix("module.") for name, _ in parallel.named_parameters()]
    assert names == [name for name, _ in extractor.named_parameters()]
    assert {*names} <= {name for name, _ in model.named_parameters()}


def test_distributed_checkpoints_have_the_names_of_the_model(model):
    extractor = FeatureExtractWrapper(model, [2])
    assert get_model_state_dict(extractor).keys() == extractor.state_dict().keys() <= model.state_dict().keys()


def test_batch_norms_of_an_extractor_can_be_synchronized(model):
    if not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
        pytest.skip("it has no batch norms")
    extractor = FeatureExtractWrapper(model, [1])
    names = list(extractor.state_dict())
    synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(extractor)
    assert list(synced.state_dict()) == names
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in synced.modules())


def test_to_empty_fills_an_extractor_built_without_memory():
    with torch.device("meta"):
        extractor = featx.create_model("resnet18", features_only=True)
    filled = extractor.to_empty(device="cpu")
    filled.load_state_dict(featx.create_model("resnet18", features_only=True).state_dict())
    assert maps_of(filled.eval(), images())[0].shape == (2, 64, 32, 48)
