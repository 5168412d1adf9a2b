"""Levels that configurations of transformers models choose for a featx backbone, and the checks of them."""

import pytest
import torch
import transformers
from conftest import images, randomize
from support.adapters import MASK2FORMER, assert_close

import featx
from featx.adapters import transformers as adapter
from featx.adapters.transformers_backbone import NEEDS

Config, Backbone = adapter.register()
SMALL = {"dim": 32, "depth": 4, "heads": 2}
SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "img_size": 64, "window_size": 2}
SIZES = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
FEW = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 4, "num_labels": 2}


@pytest.fixture(autouse=True)
def quiet():
    """No bars, which the package writes to the terminal, and no advice on types it has not tried."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


def resnet(**choice):
    return Config(backbone="resnet18", **choice)


def swin(**choice):
    return Config(backbone="timm/swin_tiny_patch4_window7_224", arguments={**SWIN, "strict_img_size": False}, **choice)


def vit_14(**choice):
    return Config(backbone="vit_small_patch14_dinov2", arguments=SMALL, **{"pyramid_channels": 32, **choice})


def vit_16(**choice):
    return Config(backbone="vit_tiny_patch16_224", arguments=SMALL, **{"pyramid_channels": 32, **choice})


def rt_detr(backbone, kind="RTDetr"):
    widths = {"d_model": 32, "encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3, "num_denoising": 0}
    config = getattr(transformers, f"{kind}Config")(backbone_config=backbone, **widths, **SIZES, **FEW)
    return getattr(transformers, f"{kind}ForObjectDetection")(config)


def mask2former(backbone):
    config = transformers.Mask2FormerConfig(backbone_config=backbone, **MASK2FORMER)
    return transformers.Mask2FormerForUniversalSegmentation(config)


def maskformer(backbone):
    decoder = transformers.DetrConfig(d_model=32, **SIZES, **FEW)
    widths = {"fpn_feature_size": 32, "mask_feature_size": 32}
    config = transformers.MaskFormerConfig(backbone_config=backbone, decoder_config=decoder, **widths)
    return transformers.MaskFormerForInstanceSegmentation(config)


def upernet(backbone, **choice):
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], num_labels=3, **choice
    )
    return transformers.UperNetForSemanticSegmentation(config)


def detr(backbone, kind="Detr"):
    config = getattr(transformers, f"{kind}Config")(backbone_config=backbone, d_model=32, **SIZES, **FEW)
    return getattr(transformers, f"{kind}ForObjectDetection")(config)


def d_fine(backbone):
    return rt_detr(backbone, "DFine")


def deformable_detr(backbone):
    return detr(backbone, "DeformableDetr")


def table_transformer(backbone):
    return detr(backbone, "TableTransformer")


MODELS = [rt_detr, d_fine, mask2former, maskformer, upernet, detr, deformable_detr, table_transformer]
FAST = {(rt_detr, vit_16), (rt_detr, vit_14), (mask2former, vit_16), (mask2former, swin), (upernet, vit_14)}


def outputs(model, x):
    with torch.no_grad():
        returned = model.eval()(x)
    return returned.masks_queries_logits if "masks_queries_logits" in returned else returned.logits


@pytest.mark.parametrize(
    ("build", "backbone"),
    [
        pytest.param(
            build,
            backbone,
            marks=[] if (build, backbone) in FAST else [pytest.mark.sweep],
            id=f"{build.__name__}-{backbone.__name__}",
        )
        for build in MODELS
        for backbone in (resnet, swin, vit_14, vit_16)
    ],
)
def test_models_take_a_backbone_whose_levels_nobody_chose(build, backbone, tmp_path):
    torch.manual_seed(0)
    model, x = build(backbone()), images(1, 3, 64, 96)
    expected = outputs(model, x)
    assert expected.isfinite().all()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.backbone_config.out_indices == model.config.backbone_config.out_indices
    assert torch.equal(outputs(again, x), expected)


STRIDES = {
    rt_detr: [8, 16, 32],
    mask2former: [4, 8, 16, 32],
    upernet: [4, 8, 16, 32],
    detr: [32],
    deformable_detr: [8, 16, 32],
}


@pytest.mark.parametrize("build", STRIDES, ids=lambda build: build.__name__)
@pytest.mark.parametrize("backbone", [resnet, vit_14])
def test_the_levels_are_those_that_the_model_takes(build, backbone):
    given = backbone()
    with torch.device("meta"):
        chosen = build(given).config.backbone_config
    assert [chosen.stage_strides[index] for index in chosen.out_indices] == STRIDES[build]
    assert given.out_indices == backbone().out_indices  # another model may be built with it
    assert not given.is_chosen


def own_resnet(stages):
    return transformers.ResNetConfig(
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        embedding_size=64,
        layer_type="basic",
        out_features=stages,
    )


@pytest.mark.parametrize(
    ("build", "stages"),
    [
        (rt_detr, ["stage2", "stage3", "stage4"]),
        (mask2former, ["stage1", "stage2", "stage3", "stage4"]),
        (upernet, ["stage1", "stage2", "stage3", "stage4"]),
        (detr, ["stage4"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_numbers_are_those_of_the_model_on_the_packages_own_resnet(build, stages):
    theirs = build(own_resnet(stages))
    ours = build(resnet())
    randomize(theirs)
    (path,) = (name for name, module in ours.named_modules() if isinstance(module, Backbone))
    state = theirs.state_dict()
    inside = {n.removeprefix(f"{path}."): t for n, t in state.items() if n.startswith(f"{path}.")}
    featx.load_weights(ours.get_submodule(path).body, inside)
    ours.load_state_dict({n: t for n, t in state.items() if not n.startswith(f"{path}.")}, strict=False)
    x = images(1, 3, 64, 96)
    maps = [model.eval().get_submodule(path)(x).feature_maps for model in (ours, theirs)]
    for one, other in zip(*maps, strict=True):
        assert_close(one, other)
    assert_close(outputs(ours, x), outputs(theirs, x))


@pytest.mark.parametrize(
    ("build", "backbone", "message"),
    [
        (rt_detr, lambda: vit_16(out_indices=[3]), r"3 maps of strides \[8, 16, 32\].*\[32\].*out_indices=\[1, 2, 3\]"),
        (rt_detr, lambda: resnet(out_indices=[0, 1, 2, 3]), r"RTDetrConfig takes 3 maps.*out_indices=\[2, 3, 4\]"),
        (rt_detr, lambda: vit_16(pyramid_channels=0), r"gives strides \[16\]: pass pyramid_channels=256"),
        (mask2former, lambda: vit_14(out_indices=[1, 2, 3]), r"4 maps of strides.*\(feature_strides\)"),
        (mask2former, lambda: swin(out_features=["layers.3"]), r"Mask2FormerConfig takes 4 maps"),
        (upernet, lambda: resnet(out_indices=[3, 4]), "three maps or more, or use_auxiliary_head=False"),
        (deformable_detr, lambda: resnet(out_indices=[0, 1, 2, 3, 4]), r"at most 4 maps \(num_feature_levels\)"),
    ],
)
def test_levels_that_the_model_cannot_take_are_refused_with_its_configuration(build, backbone, message):
    with pytest.raises(featx.OutIndicesError, match=message):
        build(backbone())


@pytest.mark.parametrize("model_type", sorted(NEEDS))
def test_every_model_with_a_rule_is_known_to_the_package(model_type):
    assert transformers.AutoConfig.for_model(model_type) is not None


def test_the_advice_of_a_refusal_is_taken():
    with pytest.raises(featx.OutIndicesError, match=r"pass out_indices=\[1, 2, 3\]"):
        rt_detr(vit_16(out_indices=[0, 1]))
    with torch.device("meta"):
        assert rt_detr(vit_16(out_indices=[1, 2, 3])).config.backbone_config.out_indices == [1, 2, 3]


def test_other_strides_are_taken_where_the_configuration_says_so():
    config = transformers.RTDetrConfig(
        backbone_config=vit_16(out_indices=[0, 1]), feat_strides=[4, 8], encoder_in_channels=[32, 32]
    )
    assert config.backbone_config.out_indices == [0, 1]


def test_depth_takes_tokens():
    config = transformers.DepthAnythingConfig
    with pytest.raises(featx.ArgumentError, match="return_tokens=True"):
        config(backbone_config=vit_14(pyramid_channels=0))
    tokens = {"pyramid_channels": 0, "return_tokens": True}
    with pytest.raises(featx.ArgumentError, match=r"reassemble_hidden_size=384.*needs reassemble_hidden_size=32"):
        config(backbone_config=vit_14(**tokens))
    with pytest.raises(featx.OutIndicesError, match=r"takes 4 levels.*has 2.*\[0, 1, 2, 3\]"):
        config(backbone_config=vit_14(**tokens, out_indices=[0, 1]), reassemble_hidden_size=32)
    assert config(backbone_config=vit_14(**tokens), reassemble_hidden_size=32).backbone_config.out_indices == [
        0,
        1,
        2,
        3,
    ]


def test_a_backbone_given_as_a_dictionary_is_checked_too():
    given = {"model_type": "featx", "backbone": "resnet18", "out_indices": [4]}
    with pytest.raises(featx.OutIndicesError, match="RTDetrConfig takes 3 maps"):
        transformers.RTDetrConfig(backbone_config=given)


def test_other_backbones_are_left_alone():
    config = transformers.RTDetrConfig(backbone_config=own_resnet(["stage4"]))
    assert config.backbone_config.out_features == ["stage4"]


def test_a_pyramid_is_not_made_of_a_pyramid():
    with pytest.raises(featx.ArgumentError, match=r"strides \[2, 4, 8, 16, 32\] already: leave it out"):
        resnet(pyramid_channels=8)


def test_maps_that_a_family_enlarges_have_the_strides_of_the_others():
    backbone = Backbone(Config(backbone="mobilevitv2_050")).eval()
    assert [map_.shape[-1] for map_ in backbone(images(1, 3, 96, 96)).feature_maps] == [24, 12, 6, 3]
