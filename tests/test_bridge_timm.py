"""Models of timm under the contract."""

import copy
import importlib.util
import pickle
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import images, randomise
from torch import nn

import featx
from featx import FeatureExtractWrapper
from featx.bridges import bridge_of, bridge_to
from featx.bridges import timm as bridge

# The smallest architecture of each kind of feature net in timm, and of each way their maps differ.
SMALL = [
    *("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet", "test_nfnet", "test_mambaout"),
    *("mobilenetv3_small_050", "hrnet_w18_small", "pit_ti_224", "levit_128s", "vit_wee_patch16_reg1_gap_256"),
]
LARGER = [
    *("xception41", "legacy_xception", "inception_v3", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224"),
    *("swinv2_tiny_window8_256", "sequencer2d_s", "mvitv2_tiny", "coat_tiny", "crossvit_tiny_240", "efficientvim_m1"),
    *("cait_xxs24_224", "xcit_nano_12_p16_224", "convit_tiny", "deit_tiny_distilled_patch16_224", "gcvit_xxtiny"),
    *("eva02_tiny_patch14_224", "davit_tiny", "edgenext_xx_small", "fastvit_t8", "mobilevitv2_050", "ghostnet_050"),
    *("densenet121", "ese_vovnet19b_slim_dw", "dla46x_c", "regnetx_002", "rexnet_100", "tresnet_m", "hiera_tiny_224"),
    *("nest_tiny", "focalnet_tiny_srf", "efficientformer_l1", "efficientformerv2_s0", "mixer_s32_224", "pvt_v2_b0"),
    *(
        "poolformer_s12",
        "twins_svt_small",
        "inception_next_atto",
        "tiny_vit_5m_224",
        "selecsls42",
        "maxvit_rmlp_pico_rw_256",
    ),
]
REPRESENTATIVES = [*SMALL, *(pytest.param(name, marks=pytest.mark.bridges) for name in LARGER)]
# One of each of timm's wrappers: list, getter, its own two, hooks.
KINDS = ["test_resnet", "test_vit", "mobilenetv3_small_050"]
KINDS += [pytest.param(name, marks=pytest.mark.bridges) for name in ("hrnet_w18_small", "pit_ti_224")]


def built(name, **arguments):
    torch.manual_seed(0)
    return randomise(bridge.build(name, **arguments))


def on_meta(name, **arguments):
    with torch.device("meta"):
        return bridge.build(name, **arguments).eval()


def extractor(model, *args, **choice):
    return FeatureExtractWrapper(bridge.pyramid(model), *args, **choice)


def batch(pyramid, count=2):
    return images(count, pyramid.in_chans, *pyramid.data_config.size)


def maps_of(module, x):
    with torch.no_grad():
        return module(x)


def assert_same(ours, reference):
    assert len(ours) == len(reference)
    for a, b in zip(ours, reference, strict=True):
        assert torch.equal(a, b)


def as_map(output, shape):
    """What a module of timm returned as a map of that shape, whatever its layout; None if its values are others."""
    for candidate in output if isinstance(output, tuple | list) else [output]:
        n, chs, h, w = shape
        if tuple(candidate.shape) == shape:
            return candidate
        if tuple(candidate.shape) == (n, h, w, chs):
            return candidate.permute(0, 3, 1, 2)
        if candidate.ndim == 3 and candidate.shape[2] == chs and candidate.shape[1] >= h * w:  # prefix tokens first
            return candidate[:, -h * w :].transpose(1, 2).unflatten(2, (h, w))
    return None


def hooked(model, names, x):
    """Outputs of the modules of those names, seen while the intact model computes its logits."""
    seen = {}

    def keep(name, output):
        several = isinstance(output, tuple | list)
        values = [value.clone() for value in output if isinstance(value, torch.Tensor)] if several else output.clone()
        seen[name] = values

    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name in names
    ]
    maps_of(model, x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_maps_are_those_of_the_intact_model(name):
    model = built(name)
    pyramid = bridge.pyramid(model)
    x = batch(pyramid)
    with torch.no_grad():
        _, reference = model.forward_intermediates(x, norm=False, output_fmt="NCHW")
    every = maps_of(FeatureExtractWrapper(pyramid), x)
    assert_same(every, reference)
    assert all(map_.is_contiguous() for map_ in every)
    for level in range(min(3, len(every))):  # cut right behind it
        assert_same(maps_of(FeatureExtractWrapper(pyramid, [level]), x), [reference[level]])


@pytest.mark.parametrize("name", [name for name in REPRESENTATIVES if "hiera" not in str(name)])  # it reorders tokens
def test_maps_are_what_the_named_modules_put_out(name):
    model = built(name)
    pyramid = bridge.pyramid(model)
    x = batch(pyramid)
    maps = maps_of(FeatureExtractWrapper(pyramid), x)
    places = [level.name.rstrip("]").partition("[") for level in pyramid.feature_info]
    seen = hooked(model, {path for path, _, _ in places}, x)
    compared = 0
    for (path, _, position), map_ in zip(places, maps, strict=True):
        output = seen.get(path)
        output = output[int(position)] if position and output is not None else output
        put_out = None if output is None else as_map(output, tuple(map_.shape))
        if put_out is not None:
            compared += 1
            # timm rectifies some maps of its older nets once more, and scales some of an NFNet by a constant
            assert any(torch.equal(map_, same) for same in (put_out, put_out.relu()))
    assert compared


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_what_is_kept_has_the_names_of_the_plain_model_and_all_of_it_is_used(name):
    model = built(name).train()
    before = {key: id(tensor) for key, tensor in model.named_parameters()}
    modules = [path for path, _ in model.named_modules()]
    pyramid = bridge.pyramid(model)
    for levels in ([1, 0], [-1]):
        taken = FeatureExtractWrapper(pyramid, levels)
        assert taken.state_dict().keys() < model.state_dict().keys()
        assert {key: id(tensor) for key, tensor in taken.named_parameters()}.items() < before.items()
        sum(map_.square().mean() for map_ in taken(batch(pyramid))).backward()
        assert [key for key, tensor in taken.named_parameters() if tensor.requires_grad and tensor.grad is None] == []
        taken.zero_grad()
    assert [path for path, _ in model.named_modules()] == modules


@pytest.mark.parametrize("name", KINDS)
def test_maps_come_in_the_order_of_out_indices_and_feature_info_with_them(name):
    model = built(name)
    pyramid = bridge.pyramid(model)
    x = batch(pyramid)
    every = maps_of(FeatureExtractWrapper(pyramid), x)
    taken = FeatureExtractWrapper(pyramid, (2, 0))
    assert_same(maps_of(taken, x), [every[2], every[0]])
    assert taken.feature_info.channels() == [map_.shape[1] for map_ in maps_of(taken, x)]
    assert taken.feature_info.names() == [pyramid.feature_info[2].name, pyramid.feature_info[0].name]


@pytest.mark.parametrize("wrong", [(2, 2), (17,), (-18,), (), 0])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "pit_ti_224"])
def test_levels_that_are_none_or_twice_are_refused(name, wrong):
    with pytest.raises(featx.OutIndicesError):
        extractor(on_meta(name), wrong)


@pytest.mark.parametrize("name", KINDS)
def test_fine_tuned_weights_load_both_ways(name):
    plain, tuned = built(name), randomise(bridge.build(name), seed=1)
    taken, x = extractor(tuned, [1]), batch(bridge.pyramid(plain))
    expected = maps_of(taken, x)
    assert not plain.load_state_dict(taken.state_dict(), strict=False).unexpected_keys
    assert_same(maps_of(extractor(plain, [1]), x), expected)
    fresh = extractor(built(name), [1])
    featx.load_weights(fresh, tuned.state_dict())
    assert_same(maps_of(fresh, x), expected)


# Measured with timm's feature nets by hand: millions of parameters up to the third level.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("efficientnet_b0", 0.07),
        ("mobilenetv3_large_100", 0.06),
        ("legacy_xception", 0.19),
        ("xception41", 1.01),
        pytest.param("efficientnet_b4", 0.27, marks=pytest.mark.bridges),
        pytest.param("nasnetalarge", 3.7, marks=pytest.mark.bridges),
        pytest.param("pnasnet5large", 4.2, marks=pytest.mark.bridges),
    ],
)
def test_nothing_deeper_than_the_deepest_level_is_kept(name, millions):
    held = sum(parameter.numel() for parameter in extractor(on_meta(name), (1, 2)).parameters())
    assert held / 1e6 == pytest.approx(millions, abs=0.051)  # they are rounded


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "test_mambaout"])
def test_maps_of_architectures_that_compute_channels_last_are_nchw(name):
    model = on_meta(name)
    assert model.output_fmt == "NHWC"
    taken = extractor(model)
    maps = taken(torch.empty(1, 3, *taken.data_config.size, device="meta"))
    assert [map_.shape[1] for map_ in maps] == [row["num_chs"] for row in model.feature_info]


def test_prefix_tokens_come_beside_the_maps():
    model = built("vit_wee_patch16_reg1_gap_256", depth=3)
    x = images(2, 3, 256, 256)
    pairs = maps_of(extractor(model, [2, 0], output="tokens"), x)
    with torch.no_grad():
        _, reference = model.forward_intermediates(x, norm=False, output_fmt="NCHW", return_prefix_tokens=True)
    assert pairs[0][0].shape == (2, 1, 256)
    assert_same([pairs[0][1], pairs[0][0], pairs[1][1], pairs[1][0]], [*reference[2], *reference[0]])


@pytest.mark.parametrize("name", ["test_resnet", "mixer_s32_224"])
def test_architectures_without_prefix_tokens_give_none(name):
    model = built(name)
    tokens, map_ = maps_of(extractor(model, [-1], output="tokens"), batch(bridge.pyramid(model)))[0]
    assert tokens.shape == (2, 0, map_.shape[1])


def test_wrong_declarations_are_corrected_and_said():
    pyramid = bridge.pyramid(on_meta("tresnet_m"))
    assert pyramid.feature_info[0] == featx.FeatureInfo(64, 4, "body.conv1")
    assert "level 0: timm declares reduction=2, measured 4" in pyramid.corrections


def test_levels_that_timm_names_after_no_module_get_the_name_of_the_one_that_makes_them():
    pyramid = bridge.pyramid(on_meta("hrnet_w18_small"))
    assert pyramid.feature_info.names() == ["act1", *(f"incre_modules.{i}" for i in range(4))]


def test_levels_that_one_module_makes_are_told_apart_by_their_position():
    names = bridge.pyramid(on_meta("crossvit_tiny_240")).feature_info.names()
    assert names == [f"blocks.{block}[{branch}]" for branch in range(2) for block in range(3)]


def test_a_true_declaration_needs_no_correction():
    assert bridge.pyramid(on_meta("test_resnet")).corrections == ()


@pytest.mark.parametrize(
    ("name", "level", "rule"),
    [
        ("test_resnet", 1, "rounded up"),
        ("test_convnext", 1, "rounded down"),
        ("ese_vovnet19b_slim_dw", 4, "(side +3) // 32"),
        # 299 -> 149 -> 147: three convolutions of 3, the first of stride 2, two of them without padding
        pytest.param("inception_v3", 0, "(side -5) // 2", marks=pytest.mark.bridges),
        ("mobilevitv2_050", 3, "rounded up to a multiple of 2"),
    ],
)
def test_the_rounding_of_each_reduction_is_found_and_holds_at_every_size(name, level, rule):
    pyramid = bridge.pyramid(on_meta(name))
    assert str(pyramid.roundings()[pyramid.feature_info[level].reduction]) == rule
    assert len(featx.verify(pyramid).sizes) == 5


def test_a_convolution_without_padding_keeps_its_stride_and_gives_a_cell_less():
    pyramid = bridge.pyramid(on_meta("pit_ti_224"))
    assert pyramid.feature_info.reduction() == [8, 16, 32]
    assert pyramid.size_rule(224, 8) == 27
    assert extractor(on_meta("pit_ti_224"), [0])(torch.empty(1, 3, 224, 224, device="meta"))[0].shape[2:] == (27, 27)


# those with windows, patches or tables of positions get img_size; a ResNet takes any size as it is
@pytest.mark.parametrize(
    "name",
    ["test_resnet", "swin_tiny_patch4_window7_224", "test_vit", "levit_128s", "pit_ti_224"],
)
def test_one_argument_builds_for_another_size(name):
    model = on_meta(name, image_size=(192, 256))
    pyramid = bridge.pyramid(model)
    assert pyramid.data_config.size == (192, 256)
    assert pyramid.feature_info.reduction() == bridge.pyramid(on_meta(name)).feature_info.reduction()
    for level, map_ in zip(
        pyramid.feature_info, FeatureExtractWrapper(pyramid)(torch.empty(1, 3, 192, 256, device="meta")), strict=True
    ):
        unpadded = name.startswith("pit") and level.reduction == 8
        assert map_.shape[1:] == (level.chs, 192 // level.reduction - unpadded, 256 // level.reduction - unpadded)


def test_one_side_is_that_of_a_square():
    assert bridge.pyramid(on_meta("test_vit", image_size=96)).data_config.size == (96, 96)


@pytest.mark.parametrize("wrong", [0, (1, 2, 3), "big", (64, 0)])
def test_a_size_that_is_none_is_refused(wrong):
    with pytest.raises(featx.ArgumentError, match="image_size="):
        bridge.build("test_vit", image_size=wrong)


def test_a_size_is_said_in_one_way():
    with pytest.raises(featx.ArgumentError, match=r"image_size and \['img_size'\] both say"):
        bridge.build("test_vit", image_size=96, img_size=96)


@pytest.mark.parametrize("name", ["nest_tiny", "halonet26t", "crossvit_tiny_240"])
def test_a_size_an_architecture_cannot_be_built_for_is_refused_with_its_own_reason(name):
    with pytest.raises(featx.ArgumentError, match="cannot be built for images of 192x256 pixels:\n  as it is: "):
        bridge.build(name, image_size=(192, 256))


def test_images_of_a_size_the_model_does_not_take_are_refused():
    model = bridge.build("deit_tiny_patch16_224", depth=2)
    with pytest.raises(featx.InputError, match=r"takes no images of 192x256 pixels .* image_size=\(192, 256\)"):
        extractor(model)(images(1, 3, 192, 256))


def test_images_that_the_architecture_would_resize_are_refused():
    model = bridge.build("crossvit_tiny_240")
    with pytest.raises(featx.InputError, match="takes no images of 192x256 pixels"):
        extractor(model)(images(1, 3, 192, 256))


def test_output_stride_is_passed_on():
    assert bridge.pyramid(on_meta("test_resnet", output_stride=8)).feature_info.reduction() == [2, 4, 8, 8, 8]


@pytest.mark.parametrize("name", ["test_vit", "vgg11", "hrnet_w18_small", "ghostnet_050"])
def test_an_architecture_that_cannot_trade_strides_says_so(name):
    with pytest.raises(featx.ArgumentError, match="output_stride"):
        bridge.build(name, output_stride=8)


def test_channels_and_classes_are_choices():
    model = on_meta("test_resnet", in_chans=5, num_classes=7)
    assert extractor(model).in_chans == 5
    assert model(torch.empty(1, 5, 64, 64, device="meta")).shape == (1, 7)


def test_preprocessing_is_what_timm_publishes():
    data = extractor(on_meta("vit_base_patch16_clip_224.openai", depth=1)).data_config
    assert (data.mean, data.size, data.interpolation) == (featx.preprocessing.CLIP_MEAN, (224, 224), "bicubic")


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("resnet81", featx.UnknownModelError, "the closest are .*'resnet18'"),
        ("resnet18.nope", featx.UnknownModelError, "no weights tagged 'nope'; it has .*'a1_in1k'"),
    ],
)
def test_unknown_names_come_with_the_known_ones(name, error, match):
    with pytest.raises(error, match=match):
        bridge.build(name)


def test_unknown_arguments_come_with_the_known_ones():
    with pytest.raises(featx.ArgumentError, match=r"no argument 'drop_pth_rate': its class has \[.*'drop_path_rate'"):
        bridge.build("test_resnet", drop_pth_rate=0.1)


def test_arguments_of_timms_own_feature_nets_are_refused():
    with pytest.raises(featx.ArgumentError, match="no argument 'features_only'"):
        bridge.build("test_resnet", features_only=True)


def test_weights_that_are_nowhere_are_missed():
    unpublished = sorted(set(timm.list_models("resnet*")) - {n.partition(".")[0] for n in timm.list_pretrained()})
    with pytest.raises(featx.WeightsNotFoundError, match="no published weights"):
        bridge.build(unpublished[0], pretrained=True)


def test_weights_that_cannot_be_fetched_are_missed(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(featx.WeightsNotFoundError, match=r"could not load the weights of test_resnet .*no route"):
        bridge.build("test_resnet", pretrained=True)


def test_weights_are_loaded_as_timm_loads_them(monkeypatch):
    tuned = randomise(bridge.build("test_vit"), seed=3)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *a, **k: dict(tuned.state_dict()))
    model = bridge.build("test_vit.r160_in1k", pretrained=True).eval()
    assert_same(maps_of(extractor(model), images(1, 3, 160, 160)), maps_of(extractor(tuned), images(1, 3, 160, 160)))


def test_a_feature_net_of_timm_is_refused():
    net = timm.create_model("test_resnet", features_only=True)
    with pytest.raises(featx.ContractError, match="without features_only=True"):
        bridge.pyramid(net)


def test_a_bridge_is_found_by_name_and_by_model():
    assert bridge_of("timm/test_vit.r160_in1k") == (bridge, "test_vit.r160_in1k")
    assert bridge_to(on_meta("test_vit")) is bridge


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050"])
def test_gradient_checkpointing_that_was_enabled_before_changes_no_gradient(name):
    plain = built(name, drop_rate=0.0)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    gradients = []
    for model in (plain, saving):
        taken = extractor(model, [2, 1])
        x = batch(bridge.pyramid(model)).requires_grad_()
        sum(map_.square().mean() for map_ in taken(x)).backward()
        gradients.append([x.grad, *(parameter.grad for parameter in taken.parameters())])
    assert_same(*gradients)


@pytest.mark.parametrize("name", ["test_vit", "hrnet_w18_small"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_of_an_extractor_is_independent(name, copied):
    taken = extractor(built(name), [1])
    x = batch(taken, 1)
    before = maps_of(taken, x)
    twin = copied(taken)
    assert_same(maps_of(twin, x), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_same(maps_of(taken, x), before)


def test_a_model_that_keeps_computed_values_is_wrapped_without_them():
    model = built("levit_128s")
    model(images(1, 3, 224, 224))  # in eval mode it keeps biases, with their graph, which nothing can copy
    tuned = randomise(bridge.build("levit_128s"), seed=1)
    taken = extractor(model, [0])
    featx.load_weights(taken, tuned.state_dict())
    assert_same(maps_of(taken, images(1, 3, 224, 224)), maps_of(extractor(tuned, [0]), images(1, 3, 224, 224)))


def test_training_mode_follows_the_wrapper():
    taken = extractor(built("test_resnet")).train()
    assert all(module.training for module in taken._inner._inner.modules())
    assert not any(module.training for module in taken.eval().modules())


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("name", KINDS)
def test_compiles_whole(name):
    torch._dynamo.reset()
    taken = extractor(built(name), [2, 0])
    x = batch(taken, 1)
    compiled = torch.compile(taken, fullgraph=True, backend="eager")
    assert_same(maps_of(compiled, x), maps_of(taken, x))


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("name", KINDS)
def test_exports_with_the_names_of_the_model(name):
    model = built(name)
    taken = extractor(model, [2, 0])
    x = batch(taken, 1)
    exported = torch.export.export(taken, (x,))
    assert_same(maps_of(exported.module(), x), maps_of(taken, x))
    assert exported.state_dict.keys() <= model.state_dict().keys()


def test_an_architecture_that_looks_at_values_is_measured_with_them():
    class Looks(type(bridge.build("test_resnet"))):
        def forward_intermediates(self, x, *args, **kwargs):
            assert x.sum().item() == 0
            return super().forward_intermediates(x, *args, **kwargs)

    model = bridge.build("test_resnet")
    model.__class__ = Looks
    assert bridge.pyramid(model).feature_info == bridge.pyramid(bridge.build("test_resnet")).feature_info
    with pytest.raises(featx.ContractError, match="build it on a real one"):
        bridge.pyramid(model.to("meta"))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_needed_is_cut_where_gradients_are_off(mode):
    model = built("hrnet_w18_small")
    with mode():
        taken = extractor(model, [1])
    assert list(taken.state_dict()) == list(extractor(model, [1]).state_dict())
    x = images(1, 3, 64, 64)
    assert_same(maps_of(taken, x), maps_of(extractor(model, [1]), x))


def test_nothing_needed_is_cut_where_checkpointing_hides_parameters(monkeypatch):
    monkeypatch.setattr("timm.layers.config._USE_REENTRANT_CKPT", True)
    model = built("test_resnet")
    expected = list(extractor(model, [1]).state_dict())
    model.set_grad_checkpointing()
    assert list(extractor(model, [1]).state_dict()) == expected


def test_a_model_that_runs_at_no_size_is_refused():
    model = bridge.build("test_resnet")
    model.conv1 = nn.Linear(1, 1)
    with pytest.raises(featx.ContractError, match="does not run on images of"):
        bridge.pyramid(model)


def table():
    """The module that writes the tables in docs/bridges.md."""
    spec = importlib.util.spec_from_file_location("bridge_table", Path(__file__).parents[1] / "docs" / "bridges.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.bridges
@pytest.mark.filterwarnings("ignore")  # some architectures warn of their own age
@pytest.mark.parametrize("name", timm.list_models())
def test_every_architecture_keeps_the_contract_on_shapes(name):
    row = table().timm_row(name)
    assert not row.refused


def test_the_table_is_of_this_timm():
    text = (Path(__file__).parents[1] / "docs" / "bridges.md").read_text()
    section = text.partition(f"### timm {timm.__version__}\n")[2].partition("\n### ")[0]
    assert f"| all | {len(timm.list_models())} |\n| give true maps | {len(timm.list_models())} |" in section


def test_a_broken_promise_stops_the_table():
    module, model = table(), on_meta("test_resnet")
    taken = extractor(model, [1, 0])
    taken.feature_info = bridge.pyramid(on_meta("test_vit")).feature_info.select([1, 0])
    with pytest.raises(AssertionError, match="FeatureInfo"):
        module.check_maps(taken, (160, 160))
