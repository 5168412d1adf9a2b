"""`norm_maps` of models of other packages: maps before and after the last norm of their tokens."""

import pytest
import timm
import torch
import transformers as hf
from conftest import images, randomize, relative_difference

import featx
from featx import FeatureExtractWrapper

TIMM = {
    "vit_tiny_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "vit_small_patch16_dinov3": {"embed_dim": 48, "depth": 2, "num_heads": 3},
}
HF = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 8, "image_size": 32}
SIZES = [(64, 64), (32, 96), (96, 32)]


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm_maps", [True, False])
@pytest.mark.parametrize("name", TIMM)
def test_maps_of_timm_are_those_of_forward_intermediates(name, norm_maps, size):
    theirs = randomize(timm.create_model(name, dynamic_img_size=True, **TIMM[name]))
    ours = featx.create_model(f"timm/{name}", features_only=True, norm_maps=norm_maps, **TIMM[name]).eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    x = images(1, 3, *size)
    expected = theirs.forward_intermediates(x, norm=norm_maps, intermediates_only=True)
    for map_, other in zip(ours(x), expected, strict=True):
        assert relative_difference(map_, other) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("norm_maps", [None, True, False])
@pytest.mark.parametrize("kind", ["dinov2", "dinov3_vit"])
def test_maps_of_transformers_backbones_follow_their_own_option(kind, norm_maps):
    chosen = {} if norm_maps is None else {"norm_maps": norm_maps}
    ours = featx.create_model(f"transformers/{kind}", features_only=True, **chosen, **HF).eval()
    randomize(ours)
    config = {"dinov2": hf.Dinov2Config, "dinov3_vit": hf.DINOv3ViTConfig}[kind](
        **HF, out_features=["stem", "stage1", "stage2"], apply_layernorm=norm_maps is not False
    )
    theirs = hf.AutoBackbone.from_config(config).eval()
    assert not theirs.load_state_dict(ours.state_dict(), strict=False).unexpected_keys
    x = images(1, 3, 32, 48)
    expected = theirs(x).feature_maps[-len(ours.feature_info) :]
    assert len(expected) == len(ours(x)) > 1
    for map_, other in zip(ours(x), expected, strict=True):
        assert relative_difference(map_, other) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("kind", "norm"), [("vit", "layernorm"), ("clip_vision_model", "post_layernorm")])
def test_hidden_states_of_transformers_pass_through_the_last_norm(kind, norm):
    model = randomize(featx.create_model(f"transformers/{kind}", **HF, intermediate_size=96))
    x = images(1, 3, 32, 32)
    raw = FeatureExtractWrapper(model)
    name = f"transformers/{kind}"
    normed = featx.create_model(name, features_only=True, norm_maps=True, **HF, intermediate_size=96).eval()
    normed.load_state_dict(raw.state_dict(), strict=False)
    last = next(module for path, module in model.named_modules() if path.endswith(norm))
    normed.get_submodule(next(p for p, _ in normed.named_modules() if p.endswith(norm))).load_state_dict(
        last.state_dict()
    )
    for map_, before in zip(normed(x), raw(x), strict=True):
        assert relative_difference(map_, last(before.movedim(1, -1)).movedim(-1, 1)) <= 1e-5


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("timm/resnet18", {}),
        ("timm/vit_pe_spatial_tiny_patch16_512", {"depth": 2}),
        ("transformers/swin", {}),
        ("transformers/siglip_vision_model", {**HF, "intermediate_size": 96}),
        ("torchvision/resnet18", {}),
    ],
)
def test_models_without_a_last_norm_of_tokens_say_so(name, arch):
    with pytest.raises(featx.ArgumentError, match="no last norm"):
        featx.create_model(name, features_only=True, norm_maps=True, **arch)
    extractor = featx.create_model(name, features_only=True, norm_maps=False, **arch)
    assert len(extractor.feature_info) > 0


def test_norm_maps_without_maps_is_refused():
    with pytest.raises(featx.ArgumentError, match="pass features_only=True too"):
        featx.create_model("timm/vit_tiny_patch16_224", norm_maps=True)
    with pytest.raises(featx.ArgumentError, match="norm_maps"):
        featx.create_model("timm/vit_tiny_patch16_224", features_only=True, norm_maps="yes")
