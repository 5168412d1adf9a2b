"""Maps of any modules of a model: their values, and the memory and computation that they need."""

import copy
import gc
import weakref

import pytest
import torch
from conftest import COPIES, assert_same, images
from support.tap_models import branches as branches
from support.tap_models import outputs, run
from torch import nn
from torch.utils.checkpoint import checkpoint

import featx
from featx.tapped_levels import tap
from featx.tracing.placeholders import axis_rules


@pytest.mark.parametrize("size", [(64, 96), (40, 56)])
@pytest.mark.parametrize("names", [["deep", "stem"], ["down"], ["right", "down", "left"], ["deep.1"]])
def test_maps_are_what_the_modules_return_in_the_order_of_names(branches, names, size):
    x = images(2, 3, *size)
    assert_same(run(tap(branches, names), x), outputs(branches, names, x))


def test_feature_info_is_measured_and_has_the_order_of_names(branches):
    levels = tap(branches, ["deep", "stem"]).feature_info
    assert list(levels) == [featx.FeatureInfo(24, 8, "deep"), featx.FeatureInfo(8, 2, "stem")]


def test_the_model_stays_as_it_is(branches):
    def parts():
        return {
            name: (
                *(type(module), module.training, len(module._forward_hooks), sorted(vars(module))),
                *(id(part) for part in (*module.children(), *module.parameters(), *module.buffers())),
            )
            for name, module in branches.named_modules()
        }

    before = parts()
    tap(branches, ["stem"])
    assert parts() == before


def test_parameters_are_shared_under_the_names_of_the_model(branches):
    own = dict(branches.named_parameters())
    for name, parameter in tap(branches, ["down"]).named_parameters():
        assert parameter is own[name]


@pytest.mark.parametrize(
    ("names", "held"),
    [
        (["stem"], {"stem"}),
        (["right"], {"stem", "right"}),
        (["down"], {"stem", "left", "right", "down"}),
        (["deep"], {"stem", "left", "right", "down", "deep"}),
    ],
)
def test_only_what_the_maps_depend_on_is_held_and_run(branches, names, held):
    extractor = tap(branches, names)
    assert {name.split(".")[0] for name in extractor.state_dict()} == held
    assert extractor.excess == ()
    called = []
    for path, module in extractor.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda *_, path=path: called.append(path))
    run(extractor, images())
    assert {path.split(".")[0] for path in called} == held


@pytest.mark.parametrize("names", [["deep", "stem"], ["right"], ["down"]])
def test_every_parameter_gets_the_gradient_it_has_in_the_model(branches, names):
    branches.train()
    x = images()
    kept = {}
    handles = [
        branches.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: kept.update({name: out.clone()})
        )
        for name in names
    ]
    twin = copy.deepcopy(branches)
    for handle in handles:
        handle.remove()
    twin(x)
    sum(kept[name].square().mean() for name in names).backward()
    expected = {name: parameter.grad for name, parameter in twin.named_parameters() if parameter.grad is not None}
    extractor = tap(branches, names).train()
    sum(map_.square().mean() for map_ in extractor(x)).backward()
    gradients = {name: parameter.grad for name, parameter in extractor.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        # gradients of maps are added up in another order
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_is_independent_and_has_the_same_maps(branches, copied):
    extractor = tap(branches, ["deep", "down"])
    expected = run(extractor, images())
    twin = copied(extractor)
    with torch.no_grad():
        for parameter in extractor.parameters():
            parameter.zero_()
    assert_same(run(twin, images()), expected)
    assert list(twin.state_dict()) == list(extractor.state_dict())


def test_nothing_of_a_forward_stays_referenced(branches):
    extractor = tap(branches, ["down"])
    maps = extractor(images())
    alive = weakref.ref(maps[0])
    del maps
    gc.collect()
    assert alive() is None


def test_what_checkpointing_computes_again_is_not_kept(branches):
    extractor = tap(branches, ["down"]).train()
    (map_,) = checkpoint(extractor, images(), use_reentrant=False)
    map_.mean().backward()
    assert extractor._inner._collector.maps is None


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("names", [["deep", "stem"], ["down"]])
def test_compiles_whole_and_exports_with_the_names_of_the_model(branches, names):
    torch._dynamo.reset()
    extractor = tap(branches, names)
    expected = run(extractor, images())
    assert_same(run(torch.compile(extractor, fullgraph=True, backend="eager"), images()), expected)
    exported = torch.export.export(extractor, (images(),))
    assert_same(run(exported.module(), images()), expected)
    assert exported.state_dict.keys() == extractor.state_dict().keys() <= branches.state_dict().keys()


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 5, 3, 2, 1),
        nn.Conv2d(3, 5, 4, 4),
        nn.Conv2d(3, 5, 3),
        nn.Upsample(scale_factor=2),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(2),
    ],
    ids=lambda module: type(module).__name__,
)
def test_the_shape_a_module_returns_follows_from_the_one_it_is_given(module):
    inputs = [(2, 3, *size) for size in ((64, 96), (736, 1440), (135, 129))]
    module = module.to("meta")
    rules = axis_rules(inputs, [tuple(module(torch.empty(shape, device="meta")).shape) for shape in inputs])
    if isinstance(module, nn.Flatten):  # products of axes have no rule
        assert rules is None
        return
    for shape in [(1, 3, 32, 48), (5, 3, 63, 81), (2, 3, 64, 97)]:
        assert [rule.length(shape) for rule in rules] == [*module(torch.empty(shape, device="meta")).shape]


def test_a_rule_without_an_offset_precedes_the_line_through_two_sizes_of_the_other_side():
    """Channels last in and first out: heights 56 and 224, and widths 56 and 392, fit the heights 7 and 28."""
    inputs, outputs = [(2, 56, 56, 8), (2, 224, 392, 8)], [(2, 12, 7, 7), (2, 12, 28, 49)]
    rules = axis_rules(inputs, outputs)
    assert [rule.length((1, 24, 40, 8)) for rule in rules] == [1, 12, 3, 5]
