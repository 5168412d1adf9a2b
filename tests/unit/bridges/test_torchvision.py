"""Maps, names and arguments of torchvision's classification models."""

from collections.abc import Iterable

import pytest
import torch
from conftest import COPIES, assert_same, images, randomize
from support.torchvision_transformers import narrow_swin, narrow_vit
from torch import Tensor, nn
from torchvision import models

import featx
from featx import ArgumentError, FeatureExtractWrapper, InputError, UnknownModelError
from featx.bridges import torchvision as bridge
from featx.contract import Size
from featx.meta_init import init_empty_weights

# The smallest of each family, what it is built with, and the sizes of images it is compared at.
SMALL: dict[str, tuple[dict, list[Size]]] = {
    "alexnet": ({}, [(64, 96), (97, 65)]),
    "convnext_tiny": ({}, [(64, 96), (97, 65)]),
    "densenet121": ({}, [(64, 96), (97, 65)]),
    "efficientnet_b0": ({}, [(64, 96), (97, 65)]),
    "googlenet": ({}, [(64, 96), (97, 65)]),
    "inception_v3": ({}, [(96, 96), (131, 99)]),
    "mnasnet0_5": ({}, [(64, 96), (97, 65)]),
    "mobilenet_v2": ({}, [(64, 96), (97, 65)]),
    "mobilenet_v3_small": ({}, [(64, 96), (97, 65)]),
    "regnet_y_400mf": ({}, [(64, 96), (97, 65)]),
    "resnet18": ({}, [(64, 96), (97, 65)]),
    "shufflenet_v2_x0_5": ({}, [(64, 96), (97, 65)]),
    "squeezenet1_1": ({}, [(64, 96), (97, 65)]),
    "swin_t": ({}, [(64, 96), (97, 65)]),
    "swin_v2_t": ({}, [(64, 96)]),
    "vgg11_bn": ({}, [(64, 96), (97, 65)]),
    "vit_b_32": ({"image_size": 64}, [(64, 64)]),
    "maxvit_t": ({}, [(224, 224)]),
    "narrow_swin": ({}, [(64, 96), (97, 65)]),
}

# Those that take long.
SLOW = {"alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "inception_v3", "maxvit_t", "regnet_y_400mf"}
SLOW |= {"swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32"}


def marked(names: Iterable[str]) -> list:
    """All models; those that are not small and fast have the marker sweep."""
    return [pytest.param(n, marks=pytest.mark.sweep) if n in SLOW or n not in SMALL else n for n in names]


NARROW = {"narrow_swin": narrow_swin, "narrow_vit": narrow_vit}


def small(name: str) -> nn.Module:
    return randomize(NARROW[name]() if name in NARROW else bridge.build(name, **SMALL[name][0]))


def hooked(model: nn.Module, levels: featx.Levels, maps: list[Tensor], x: Tensor) -> list[Tensor]:
    """Outputs of the named modules of the intact model, permuted to the axes of `maps`."""
    seen = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.clone()}))
        for name in levels.names()
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()

    def as_map(output: Tensor, like: Tensor) -> Tensor:
        if output.ndim == 3:
            return output[:, 1:].transpose(1, 2).unflatten(2, like.shape[2:])
        return output if output.shape == like.shape else output.permute(0, 3, 1, 2)

    return [as_map(seen[name], map_) for name, map_ in zip(levels.names(), maps, strict=True)]


def run(extractor: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return extractor(x)


@pytest.mark.parametrize("name", marked(SMALL))
def test_maps_are_those_of_the_intact_model(name):
    model = small(name)
    extractor = FeatureExtractWrapper(bridge.pyramid(model))
    for size in SMALL[name][1]:
        x = images(2, 3, *size)
        maps = run(extractor, x)
        assert_same(maps, hooked(model, extractor.feature_info, maps, x))
        for map_, level in zip(maps, extractor.feature_info, strict=True):
            assert map_.is_contiguous()
            assert map_.shape[1] == level.chs


@pytest.mark.usefixtures("shapes_alone")
@pytest.mark.parametrize("name", marked(bridge.names()))
def test_every_model_keeps_the_contract_on_shapes(name):
    with init_empty_weights():
        model = bridge.build(name)
    state = {key: tensor.shape for key, tensor in model.state_dict().items()}
    pyramid = bridge.pyramid(model)
    count = len(pyramid.feature_info)
    size = pyramid.data_config.size
    every = FeatureExtractWrapper(pyramid)
    assert every.feature_info.reduction() == sorted(every.feature_info.reduction())
    assert every.excess == ()
    shapes = [map_.shape for map_ in every(torch.empty(2, 3, *size, device="meta"))]
    for shape, level in zip(shapes, every.feature_info, strict=True):
        assert shape[:2] == (2, level.chs)
        for cells, side in zip(shape[2:], size, strict=True):
            # convolutions without padding lose up to four cells (AlexNet, Inception, SqueezeNet)
            assert side // level.reduction - 4 <= cells <= -(-side // level.reduction)
    chosen = FeatureExtractWrapper(pyramid, [1, 0])
    assert [map_.shape for map_ in chosen(torch.empty(2, 3, *size, device="meta"))] == [shapes[1], shapes[0]]
    assert chosen.excess == ()
    held = {key: tensor.shape for key, tensor in chosen.state_dict().items()}
    assert held.items() <= state.items()
    assert len(held) < len(every.state_dict()) < len(state) or count == 2


@pytest.mark.parametrize(
    "name",
    ["googlenet", "resnet18", "narrow_swin", "narrow_vit", *marked(["swin_t", "vit_b_32"])],
)
def test_each_level_alone_holds_and_runs_what_it_needs(name):
    model = small(name)
    pyramid = bridge.pyramid(model)
    x = images(2, 3, *pyramid.fixed_size) if pyramid.fixed_size else images()
    every = run(FeatureExtractWrapper(pyramid), x)
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)
    ran, held = [], []
    for level, map_ in enumerate(every):
        alone = FeatureExtractWrapper(pyramid, [level])
        called: list[nn.Module] = []
        for module in alone.modules():
            if isinstance(module, kinds):
                module.register_forward_hook(lambda module, *_, called=called: called.append(module))
        assert_same(run(alone, x), [map_])
        ran.append(len(called))
        held.append(sum(parameter.numel() for parameter in alone.parameters()))
        alone.train()(x)[0].mean().backward()
        assert [name for name, parameter in alone.named_parameters() if parameter.grad is None] == []
        model.zero_grad()
        randomize(model)
    assert ran == sorted(set(ran))
    assert held == sorted(set(held))


@pytest.mark.parametrize("name", ["resnet18", "mnasnet0_5"])
def test_maps_come_in_the_order_asked_for(name):
    model, (_, sizes) = small(name), SMALL[name]
    x = images(2, 3, *sizes[0])
    every = run(FeatureExtractWrapper(model), x)
    extractor = FeatureExtractWrapper(model, [-1, 0, 2])
    assert_same(run(extractor, x), [every[-1], every[0], every[2]])
    assert extractor.feature_info.channels() == [map_.shape[1] for map_ in run(extractor, x)]


@pytest.mark.parametrize("name", ["resnet18", *marked(["densenet121"])])
def test_checkpoints_load_both_ways(name):
    model = small(name)
    extractor = FeatureExtractWrapper(bridge.build(name), [1])
    report = featx.load_weights(extractor, model.state_dict())
    held = extractor.state_dict()
    assert set(report.loaded) == held.keys() < model.state_dict().keys()
    assert_same([*held.values()], [model.state_dict()[key] for key in held])
    assert bridge.build(name).load_state_dict(held, strict=False).unexpected_keys == []


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_has_the_same_maps(copied):
    extractor = FeatureExtractWrapper(small("mobilenet_v3_small"), [2, 0])
    assert_same(run(copied(extractor), images()), run(extractor, images()))


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("name", ["resnet18", "narrow_swin", "narrow_vit", *marked(["densenet121", "swin_t"])])
def test_compiles_whole_and_exports_with_the_names_of_the_model(name):
    torch._dynamo.reset()
    model = small(name)
    x = images(2, 3, 32, 32) if name == "narrow_vit" else images()
    extractor = FeatureExtractWrapper(model, [1, 0])
    expected = run(extractor, x)
    compiled = run(torch.compile(extractor, fullgraph=True, backend="eager"), x)
    exported = torch.export.export(extractor, (x,))
    # attention in eval mode is one fused operation where it is not compiled
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if name == "narrow_vit" else {"rtol": 0, "atol": 0}
    for maps in (compiled, run(exported.module(), x)):
        torch.testing.assert_close(list(maps), expected, **tolerance)
    assert exported.state_dict.keys() <= model.state_dict().keys()


def test_a_vit_gives_its_class_token_beside_the_map():
    model = randomize(narrow_vit())
    x = images(2, 3, 32, 32)
    extractor = FeatureExtractWrapper(model, output="tokens")
    assert extractor.feature_info.names() == [f"encoder.layers.encoder_layer_{i}" for i in range(3)]
    assert extractor.feature_info.reduction() == [8, 8, 8]
    ((token, map_), *_) = run(extractor, x)
    seen = {}
    handle = model.encoder.layers[0].register_forward_hook(lambda _, __, out: seen.update(tokens=out))
    run(model, x)
    handle.remove()
    assert torch.equal(torch.cat([token, map_.flatten(2).transpose(1, 2)], 1), seen["tokens"])


def test_models_of_one_size_say_so():
    extractor = FeatureExtractWrapper(randomize(narrow_vit()))
    with pytest.raises(InputError, match="expected images of 32x32 pixels, got 48x64"):
        extractor(images(1, 3, 48, 64))


@pytest.mark.parametrize(("output_stride", "reductions"), [(8, [2, 4, 8, 8, 8]), (16, [2, 4, 8, 16, 16])])
def test_output_stride_keeps_the_resolution_of_resnets(output_stride, reductions):
    with torch.device("meta"):
        model = bridge.build("resnet50", output_stride=output_stride)
    extractor = FeatureExtractWrapper(model)
    maps = extractor(torch.empty(1, 3, 64, 96, device="meta"))
    deepest = 64 // output_stride
    assert maps[-1].shape[2] == deepest
    assert extractor.feature_info.reduction()[-1] == output_stride
    assert set(extractor.feature_info.reduction()) == set(reductions)


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "mobilenet_v3_small"])
def test_output_stride_of_mobilenetv3_is_the_packages_dilated(name):
    ours = randomize(bridge.build(name, output_stride=16))
    theirs = getattr(models, name)(dilated=True)
    theirs.load_state_dict(ours.state_dict())
    x = images(1, 3, 64, 96)
    with torch.no_grad():
        assert_same(FeatureExtractWrapper(ours, [-1])(x), [theirs.eval().features(x)])
    assert FeatureExtractWrapper(ours).feature_info.reduction() == [2, 4, 8, 16]


def test_an_output_stride_of_32_changes_nothing():
    with torch.device("meta"):
        assert (
            FeatureExtractWrapper(bridge.build("mobilenet_v3_small", output_stride=32)).feature_info[-1].reduction == 32
        )


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("vgg11", {"output_stride": 16}, "cannot trade strides"),
        ("resnet50", {"output_stride": 4}, "choose one of"),
        ("mobilenet_v3_large", {"output_stride": 8}, r"choose one of \[16, 32\]"),
        ("resnet18", {"output_stride": 16}, "Dilation > 1 not supported in BasicBlock"),
        ("resnet18", {"width": 3}, "cannot be built with .*'width'"),
        ("resnet18", {"num_classes": -1}, "expected 0"),
        ("resnet18", {"in_chans": 0}, "expected 1 or more"),
        ("googlenet", {"in_chans": 1, "transform_input": True}, "normalizes three channels itself"),
        ("maxvit_t", {"input_size": (100, 100)}, "not divisible by partition size"),
    ],
)
def test_what_a_model_cannot_do_is_refused(name, arguments, words):
    with pytest.raises(ArgumentError, match=words), torch.device("meta"):
        bridge.build(name, **arguments)


@pytest.mark.parametrize(
    ("name", "words"), [("resnet19", r"closest are .*'resnet18'"), ("resnet18.V9", r"it has \['IMAGENET1K_V1'")]
)
def test_unknown_names_get_the_closest(name, words):
    with pytest.raises(UnknownModelError, match=words):
        bridge.build(name)


@pytest.mark.usefixtures("shapes_alone")
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "googlenet", "swin_t", "vit_b_32"])
def test_classes_and_channels_are_a_choice(name):
    arch = {"image_size": 64} if name == "vit_b_32" else {}
    x = torch.empty(2, 5, 64, 64, device="meta")
    with torch.device("meta"):
        seven = bridge.build(name, num_classes=7, in_chans=5, **arch).eval()
        pooled = bridge.build(name, num_classes=0, in_chans=5, **arch).eval()
    assert seven(x).shape == (2, 7)
    assert pooled(x).shape[1] not in (7, 1000)
    assert FeatureExtractWrapper(seven).in_chans == 5


def test_one_channel_is_treated_like_three_alike():
    model = small("resnet18")
    one = bridge.build("resnet18", in_chans=1).eval()
    state = model.state_dict()
    state["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
    one.load_state_dict(state)
    x = images(1, 1, 64, 64)
    # sums of three products come in another order
    torch.testing.assert_close(run(one, x), run(model, x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_create_model_builds_them_by_name():
    with torch.device("meta"):
        extractor = featx.create_model("torchvision/resnet18", features_only=True, out_indices=[3, 1])
    assert extractor.feature_info.names() == ["layer3", "layer1"]
    assert len(bridge.names()) >= 80


def test_a_bare_name_is_answered_with_the_spelling_of_the_package():
    with pytest.raises(UnknownModelError, match="torchvision/shufflenet_v2_x1_0"):
        featx.create_model("shufflenet_v2_x1_0")
