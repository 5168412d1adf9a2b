"""Models of transformers on our backbones."""

import sys

import pytest
import torch
import transformers
from conftest import images, randomize
from support.adapters import MASK2FORMER, assert_close, is_vit, matrix, side
from torch import nn
from transformers import AutoBackbone, AutoConfig

import featx
from featx.adapters import transformers as adapter

Config, Backbone = adapter.register()
WEE = "vit_wee_patch16_reg1_gap_256"
TINY = "vit_tiny_patch16_224"  # with a class token


@pytest.fixture(autouse=True)
def quiet():
    """No bars, which the package writes to the terminal, and no advice on types it has not tried."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


def stages(name, depth=4):
    """The configuration of a pyramid with as many levels, from a stride of 4 (8, for 3) pixels."""
    if is_vit(name):
        return Config(backbone=name, pyramid_channels=32, out_indices=list(range(4 - depth, 4)))
    return Config(backbone=name, out_indices=list(range(5 - depth, 5)))


def upernet(name):
    config = transformers.UperNetConfig(
        backbone_config=stages(name), use_auxiliary_head=False, hidden_size=16, pool_scales=[1, 2], num_labels=3
    )
    return transformers.UperNetForSemanticSegmentation(config)


def detr(name):
    backbone = Config(backbone=name) if not is_vit(name) else Config(backbone=name, out_indices=[-1])
    sizes = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.DetrConfig(
        backbone_config=backbone, d_model=16, encoder_layers=1, decoder_layers=1, num_queries=4, num_labels=2, **sizes
    )
    return transformers.DetrForObjectDetection(config)


def rt_detr(name):
    backbone = stages(name, 3)
    chs = [backbone.stage_channels[i] for i in backbone.out_indices]
    sizes = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        d_model=16,
        encoder_hidden_dim=16,
        encoder_in_channels=chs,
        decoder_in_channels=[16, 16, 16],
        decoder_layers=1,
        num_queries=4,
        num_denoising=0,
        num_labels=2,
        **sizes,
    )
    return transformers.RTDetrForObjectDetection(config)


def mask2former(name):
    config = transformers.Mask2FormerConfig(backbone_config=stages(name), **MASK2FORMER)
    return transformers.Mask2FormerForUniversalSegmentation(config)


MODELS = {"upernet": upernet, "detr": detr, "rt_detr": rt_detr, "mask2former": mask2former}
OUTPUTS = {"mask2former": "masks_queries_logits"}


def reloaded(model, folder):
    model.save_pretrained(folder)
    again, loading = type(model).from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    return again.eval()


@pytest.mark.parametrize(("kind", "name"), matrix(list(MODELS)))
def test_models_train_and_keep_their_numbers_through_a_folder(kind, name, tmp_path):
    torch.manual_seed(0)
    model, output = MODELS[kind](name), OUTPUTS.get(kind, "logits")
    x = images(2, 3, side(name), side(name))
    model.train()
    model.zero_grad()
    stem = next(m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    getattr(model(x), output).square().mean().backward()
    assert stem.grad.isfinite().all()
    assert stem.grad.abs().max() > 0
    model.eval()
    with torch.no_grad():
        assert_close(getattr(reloaded(model, tmp_path)(x), output), getattr(model(x), output))


def dpt(name):
    backbone = Config(backbone=name, out_indices=[2, 5, 8, 11], return_tokens=True, arguments={"norm_maps": True})
    config = transformers.DPTConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        reassemble_factors=[4, 2, 1, 0.5],
    )
    return transformers.DPTForDepthEstimation(config)


def depth_anything(name):
    backbone = Config(backbone=name, out_indices=[2, 5, 8, 11], return_tokens=True)
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=backbone.patch_size,
        reassemble_hidden_size=backbone.hidden_size,
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    return transformers.DepthAnythingForDepthEstimation(config)


@pytest.mark.parametrize("build", [dpt, depth_anything])
def test_models_of_depth_get_tokens(build, tmp_path):
    torch.manual_seed(0)
    model, x = build(TINY), images(2, 3, 64, 96)
    model.train()(x).predicted_depth.square().mean().backward()
    assert model.backbone.body.get_parameter("patch_embed.proj.weight").grad.abs().max() > 0
    model.eval()
    with torch.no_grad():
        assert_close(reloaded(model, tmp_path)(x).predicted_depth, model(x).predicted_depth)


def test_tokens_are_the_class_token_and_the_grid_row_by_row():
    config = Config(backbone=TINY, out_indices=[3], return_tokens=True)
    backbone = randomize(Backbone(config))
    x = images(2, 3, 32, 48)
    ((prefix, map_),) = backbone.body(x)
    (tokens,) = backbone(x).feature_maps
    assert tokens.shape == (2, 1 + 2 * 3, 192)
    assert torch.equal(tokens[:, :1], prefix)
    assert torch.equal(tokens[:, 1 + 3 + 2], map_[:, :, 1, 2])


def test_registers_are_left_out_of_the_tokens():
    config = Config(backbone=WEE, arguments={"class_token": True}, return_tokens=True, out_indices=[-1])
    (tokens,) = Backbone(config)(images(1, 3, 32, 32)).feature_maps
    assert tokens.shape[1] == 1 + 4


def test_tokens_of_a_backbone_without_a_class_token_are_refused():
    with pytest.raises(featx.ContractError, match="class token"):
        Backbone(Config(backbone="resnet18", return_tokens=True))(images(1, 3, 64, 64))


def test_maps_are_channels_first_where_the_package_of_the_model_has_them_last():
    config = Config(backbone="timm/swin_tiny_patch4_window7_224", out_indices=[0, 1])
    with torch.device("meta"):
        maps = Backbone(config)(torch.empty(1, 3, 224, 224)).feature_maps
    assert [map_.shape for map_ in maps] == [(1, 96, 56, 56), (1, 192, 28, 28)]


def test_channels_are_reported_for_every_stage_and_for_those_asked_for():
    backbone = Backbone(Config(backbone="resnet18", out_features=["layer1", "layer3"]))
    assert backbone.stage_names == ["act1", "layer1", "layer2", "layer3", "layer4"]
    assert backbone.num_features == [64, 64, 128, 256, 512]
    assert backbone.out_feature_channels["layer4"] == 512
    assert backbone.channels == [64, 256]
    assert (backbone.out_features, backbone.out_indices) == (["layer1", "layer3"], [1, 3])


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        ({"backbone": "resnet18"}, [1, 2, 3, 4]),
        ({"backbone": "convnext_atto"}, [0, 1, 2, 3]),
        ({"backbone": TINY}, [11]),
        ({"backbone": TINY, "pyramid_channels": 8}, [0, 1, 2, 3]),
        ({"backbone": TINY, "return_tokens": True}, [2, 5, 8, 11]),
        ({"backbone": "timm/swin_tiny_patch4_window7_224"}, [0, 1, 2, 3]),
    ],
)
def test_the_stages_by_default_are_one_per_stride_from_4_pixels_on(arguments, stages):
    config = Config(**arguments)
    assert config.out_indices == stages
    assert "is_chosen" not in config.to_dict()


def test_a_configuration_survives_its_file(tmp_path):
    config = Config(backbone="resnet18", out_indices=[1, 2], num_channels=4, arguments={"output_stride": 8})
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is Config
    assert again.to_json_string() == config.to_json_string()
    (_, map_) = AutoBackbone.from_config(again)(images(1, 4, 32, 32)).feature_maps
    assert map_.shape == (1, 128, 4, 4)


def test_a_subclass_of_the_configuration_keeps_its_fields(tmp_path):
    class Smaller(Config):
        model_type = "featx-smaller"
        backbone: str = "mobilenetv3_small_050"
        width: int = 3

    config = Smaller(width=5, out_indices=[1])
    assert (config.backbone, config.width, config.out_indices) == ("mobilenetv3_small_050", 5, [1])
    config.save_pretrained(tmp_path)
    assert Smaller.from_pretrained(tmp_path).width == 5


@pytest.mark.parametrize("name", ["timm/swin_tiny_patch4_window7_224"])
def test_buffers_that_no_checkpoint_has_are_right_after_loading(name, tmp_path):
    config = Config(backbone=name, out_indices=[0], arguments={"img_size": 56})
    backbone = randomize(Backbone(config))
    unsaved = {key for key, _ in backbone.named_buffers()} - set(backbone.state_dict())
    assert unsaved
    again = reloaded(backbone, tmp_path)
    assert all(torch.equal(again.get_buffer(key), backbone.get_buffer(key)) for key in unsaved)
    assert_close(again(images(1, 3, 56, 56)).feature_maps[0], backbone(images(1, 3, 56, 56)).feature_maps[0])


def test_what_a_checkpoint_lacks_is_initialized_as_the_family_does(tmp_path):
    backbone = Backbone(Config(backbone="resnet18"))
    state = backbone.state_dict()
    kept = {key: value for key, value in state.items() if not key.startswith(("body.layer4", "body.bn1"))}
    backbone.save_pretrained(tmp_path, state_dict=kept)
    again = Backbone.from_pretrained(tmp_path)
    assert torch.equal(again.body.bn1.running_var, torch.ones(64))
    assert 0.01 < again.body.layer4[1].conv1.weight.std() < 0.05  # kaiming, fan out: sqrt(2 / (512 * 9)) = 0.021
    assert torch.equal(again.body.get_parameter("conv1.weight"), backbone.body.get_parameter("conv1.weight"))


def test_weights_are_loaded_by_featx_and_not_again_over_a_checkpoint(tmp_path, monkeypatch):
    from featx.adapters import transformers_backbone

    asked = []

    def recorded(name, pretrained=False, **arguments):
        asked.append(pretrained)
        return featx.create_model(name, **arguments)

    monkeypatch.setattr(transformers_backbone, "create_model", recorded)
    backbone = AutoBackbone.from_config(Config(backbone="resnet18", pretrained=True))
    assert asked.count(True) == 1
    reloaded(backbone, tmp_path)
    assert asked.count(True) == 1


def test_hidden_states_are_the_stages_asked_for():
    backbone = Backbone(Config(backbone="resnet18", out_indices=[1, 2]))
    output = backbone(images(2, 3, 64, 64), output_hidden_states=True)
    assert output.hidden_states == output.feature_maps


def test_attentions_are_refused():
    with pytest.raises(featx.ArgumentError, match="no attentions"):
        Backbone(Config(backbone="resnet18"))(images(2, 3, 64, 64), output_attentions=True)


def test_tuples_are_given_where_they_are_asked_for():
    backbone = Backbone(Config(backbone="resnet18", out_indices=[4]))
    ((map_,),) = backbone(images(1, 3, 64, 64), return_dict=False)
    assert map_.shape == (1, 512, 2, 2)


def test_detr_replaces_the_norms_of_the_backbone_by_frozen_ones():
    model = detr("resnet18")
    assert not [m for m in model.model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]


def test_registering_again_changes_nothing():
    assert adapter.register() == (Config, Backbone)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(featx.MissingPackageError, match=r"needs the package transformers.*featx\[transformers\]"):
        adapter.register()


def test_a_package_that_is_too_old_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.backbone_utils", None)
    with pytest.raises(featx.MissingPackageError, match=r"too old.*-U 'featx\[transformers\]'"):
        adapter.register()
