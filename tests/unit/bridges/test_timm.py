"""Maps of timm's models: values, order and names, and the parameters that extractors keep."""

import pytest
import torch
from conftest import assert_same, images, randomize
from support.timm_extractors import KINDS, batch, built, extractor, maps_of, on_meta

import featx
from featx import FeatureExtractWrapper
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


def as_map(output, shape):
    """The output of a module of timm as a map of that shape, from any layout; None if its size differs."""
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
    for (path, _, position), map_ in zip(places, maps, strict=True):
        output = seen[path][int(position)] if position else seen[path]
        put_out = as_map(output, tuple(map_.shape))
        assert put_out is not None
        # timm rectifies some maps of its older nets once more, and scales some of an NFNet by a constant
        assert any(torch.equal(map_, same) for same in (put_out, put_out.relu()))


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
    plain, tuned = built(name), randomize(bridge.build(name), seed=1)
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


def test_levels_that_one_module_makes_are_distinguished_by_their_position():
    names = bridge.pyramid(on_meta("crossvit_tiny_240")).feature_info.names()
    assert names == [f"blocks.{block}[{branch}]" for branch in range(2) for block in range(3)]


def test_a_true_declaration_needs_no_correction():
    assert bridge.pyramid(on_meta("test_resnet")).corrections == ()
