"""RotaryViT at any size, with any prefix: against timm's Eva.

The variants are cut to two narrow blocks, so that one of every kind can be computed.
"""

from typing import Any

import pytest
import timm
import torch
from conftest import images, randomize, relative_difference
from timm.models import get_arch_pretrained_cfgs
from torch import nn

import featx
from featx import FeatureExtractWrapper
from featx.attention import capture_attention
from featx.meta_init import init_empty_weights
from featx.registry import lookup

NARROW: dict[str, Any] = {"depth": 2, "dim": 96, "heads": 3}
VARIANTS = featx.list_models(module="vit_rotary")
# one of each kind of positions, attention, MLP, prefix, norm and pool
KINDS = [
    "eva_giant_patch14_224",
    "eva02_tiny_patch14_336",
    "eva02_base_patch14_448",
    "eva02_base_patch16_clip_224",
    "vit_mediumd_patch16_rope_reg1_gap_256",
    "vit_betwixt_patch16_rope_reg4_gap_256",
    "vit_pe_core_tiny_patch16_384",
    "vit_pe_core_gigantic_patch14_448",
    "vit_pe_lang_large_patch14_448",
    "vit_pe_spatial_tiny_patch16_512",
    "vit_small_patch16_rope_224",
    "vit_small_patch16_rope_mixed_ape_224",
    "vit_small_patch16_dinov3",
    "vit_tiny_patch16_dinov3_qkvb",
    "vit_small_plus_patch16_dinov3_qkvb",
]
NORMED = [name for name in KINDS if "dinov3" in name or "clip" in name or "pe_core" in name or "rope_ape" in name]
QUICK = ["eva02_tiny_patch14_336", "vit_pe_core_tiny_patch16_384", "vit_small_plus_patch16_dinov3_qkvb"]
SIZES = [(224, 224), (96, 320), (193, 65)]
DINOV3 = "vit_small_patch16_dinov3"


def swept(names: list[str]) -> list[Any]:
    """All names, those beyond one per class of attention in the sweep only."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.sweep) for name in names]


def reference(name: str) -> nn.Module:
    """timm's model of that kind, for images of any size."""
    pool = {"attn_pool_num_heads": 3} if "pe_core" in name else {}
    size = {"embed_dim": 96, "depth": 2, "num_heads": 3, **pool}
    return timm.create_model(name, dynamic_img_size=True, dynamic_img_pad=True, **size)


def pair(name: str, **kwargs: Any) -> tuple[Any, Any]:
    """Our model and timm's, with the same weights, loaded strictly in both directions."""
    theirs = randomize(reference(name))
    pool = {"pool_heads": 3} if "pe_core" in name else {}
    ours = featx.create_model(name, **NARROW, **pool, **kwargs).eval()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def timm_pairs(model: Any, x: torch.Tensor, *, norm: bool = False) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(map, prefix tokens) after each block."""
    found = model.forward_intermediates(
        x, norm=norm, intermediates_only=True, return_prefix_tokens=bool(model.num_prefix_tokens)
    )
    return found if model.num_prefix_tokens else [(map_, map_.flatten(2).transpose(1, 2)[:, :0]) for map_ in found]


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", swept(KINDS))
def test_logits_maps_and_prefix_tokens_equal_timms_at_any_aspect(name, size):
    ours, theirs = pair(name, norm_maps=False)
    x = images(1, 3, *size)
    assert relative_difference(ours(x), theirs(x)) <= 1e-5
    for level, (expected, prefix) in enumerate(timm_pairs(theirs, x)):
        ((tokens, map_),) = ours.forward_tokens(x, [level])
        assert map_.is_contiguous()
        assert relative_difference(map_, expected) <= 1e-5
        assert tokens.shape == prefix.shape
        torch.testing.assert_close(tokens, prefix, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", swept(NORMED))
def test_maps_behind_the_last_norm_equal_timms(name, size):
    ours, theirs = pair(name, norm_maps=True)
    x = images(1, 3, *size)
    maps = FeatureExtractWrapper(ours)(x)
    for map_, (expected, _) in zip(maps, timm_pairs(theirs, x, norm=True), strict=True):
        assert relative_difference(map_, expected) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_doubles_agree_to_ten_digits(name):
    ours, theirs = (model.double() for model in pair(name))
    x = images(1, 3, 96, 160).double()
    assert relative_difference(ours(x), theirs(x)) <= 1e-10


@pytest.mark.parametrize("name", swept(KINDS))
def test_a_training_step_gives_the_gradients_of_timms(name):
    ours, theirs = (model.train().double() for model in pair(name))
    for model in (ours, theirs):
        model(images(2, 3, 96, 160).double()).square().mean().backward()
    expected = dict(theirs.named_parameters())
    largest = max(p.grad.abs().max() for p in expected.values())
    for key, parameter in ours.named_parameters():
        assert (parameter.grad - expected[key].grad).abs().max() <= 1e-9 * largest, (
            key
        )  # positions are interpolated in float32


@pytest.mark.parametrize("name", swept(VARIANTS))
def test_names_shapes_and_tags_of_every_variant_are_timms(name):
    variant = lookup(name)
    with torch.device("meta"):
        theirs = timm.create_model(name)
    with init_empty_weights():
        ours = variant.build(variant.config)
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == {
        key: tensor.shape for key, tensor in theirs.state_dict().items()
    }
    published = get_arch_pretrained_cfgs(name)
    assert [f"{name}.{tag}" for tag in variant.weights] == list(published)
    for tag in variant.weights:
        data, cfg = variant.tagged(name, tag).data, published[f"{name}.{tag}"]
        assert (data.size, data.mean, data.std) == (cfg.input_size[1:], cfg.mean, cfg.std)
        assert (data.crop, data.crop_mode) == (cfg.crop_pct, cfg.crop_mode or "center")
        assert data.interpolation == cfg.interpolation


@pytest.mark.parametrize("name", ["vit_small_plus_patch16_dinov3_qkvb", "vit_small_patch16_rope_mixed_ape_224"])
def test_fresh_weights_are_drawn_from_the_distributions_of_timms(name):
    torch.manual_seed(0)
    ours, theirs = featx.create_model(name, **NARROW), dict(reference(name).named_parameters())
    for key, tensor in ours.named_parameters():
        expected = theirs[key]
        if len(expected.unique()) == 1:
            assert torch.equal(tensor, expected), key
        elif key.startswith("head."):
            assert tensor.std() > 0  # timm's is a thousandth of the others
        else:
            spread = 5 / (2 * tensor.numel()) ** 0.5
            assert tensor.std().item() == pytest.approx(expected.std().item(), rel=2 * spread), key


@pytest.mark.parametrize("norm_maps", [False, True])
@pytest.mark.parametrize("name", swept(NORMED))
def test_an_extractor_holds_its_blocks_only_and_trains_all_it_holds(name, norm_maps):
    model = randomize(featx.create_model(name, **NARROW, norm_maps=norm_maps))
    for level in (0, 1):
        extractor = FeatureExtractWrapper(model, [level]).train()
        keys = {key.partition(".")[0] for key in extractor.state_dict()}
        assert keys <= {"cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre", "blocks", "norm"}
        assert ("norm" in keys) == norm_maps
        blocks = {key.split(".")[1] for key in extractor.state_dict() if key.startswith("blocks.")}
        assert blocks == set("01"[: level + 1])
        extractor(images(2, 3, 64, 96))[0].square().mean().backward()
        assert [key for key, p in extractor.named_parameters() if p.grad is None or not p.grad.any()] == []
        extractor.zero_grad()


@torch.no_grad()
def test_maps_of_dinov3_pass_through_the_last_norm_by_default():
    model = randomize(featx.create_model(DINOV3, **NARROW))
    raw = featx.create_model(DINOV3, **NARROW, norm_maps=False).eval()
    raw.load_state_dict(model.state_dict())
    x = images(1, 3, 64, 96)
    for map_, before in zip(FeatureExtractWrapper(model)(x), FeatureExtractWrapper(raw)(x), strict=True):
        assert torch.equal(map_, model.norm(before.movedim(1, -1)).movedim(-1, 1))
    assert torch.equal(FeatureExtractWrapper(raw.normed())(x)[1], FeatureExtractWrapper(model)(x)[1])


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_336", "vit_pe_spatial_tiny_patch16_512"])
def test_normed_maps_are_refused_without_a_norm_behind_the_blocks(name):
    with pytest.raises(featx.ArgumentError, match="norm_maps=True has no norm to apply"):
        featx.create_model(name, norm_maps=True)
    with pytest.raises(featx.ArgumentError, match="no norm after its blocks"):
        featx.create_model(name, **NARROW).normed()


@torch.no_grad()
@pytest.mark.parametrize("name", [*QUICK, "eva02_base_patch14_448"])
def test_captured_attention_is_timms(name):
    ours, theirs = pair(name)
    x = images(2, 3, 64, 96)
    with capture_attention(ours) as seen, capture_attention(theirs) as expected:
        ours(x)
        theirs(x)
    assert list(seen.maps) == list(expected.maps)
    for block, map_ in seen.maps.items():
        assert relative_difference(map_, expected.maps[block]) <= 1e-5


@torch.no_grad()
def test_prefix_tokens_are_not_rotated():
    model = randomize(featx.create_model(DINOV3, **NARROW))
    table, *_ = model.rope((3, 5), torch.device("cpu"))
    assert table.shape == (2, 1, 5 + 15, 32)
    assert torch.equal(table[0, :, :5], torch.ones(1, 5, 32))
    torch.testing.assert_close(table.square().sum(0), torch.ones(1, 20, 32))


@torch.no_grad()
def test_the_pool_with_weights_is_kept():
    model = featx.create_model("vit_pe_core_tiny_patch16_384", **NARROW).eval()
    x = images(1, 3, 64, 96)
    model.reset_classifier(3)
    assert model(x).shape == (1, 3)
    with pytest.raises(featx.ArgumentError, match=r"global_pool='avg'.*'map' has weights"):
        model.reset_classifier(3, "avg")
    with pytest.raises(featx.ArgumentError, match=r"global_pool='map'"):
        featx.create_model(DINOV3, **NARROW).reset_classifier(3, "map")


def test_what_does_not_fit_together_is_refused_at_once():
    with pytest.raises(featx.ArgumentError, match=r"'min': choose one of .*'map'.*not a multiple of 4"):
        featx.create_model(DINOV3, global_pool="min", dim=18, heads=3)
    with pytest.raises(featx.ArgumentError, match="not a multiple of pool_heads=5"):
        featx.create_model("vit_pe_core_tiny_patch16_384", pool_heads=5)


@torch.no_grad()
@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("name", [DINOV3, "eva02_tiny_patch14_336"])
def test_exports_with_open_sides(name):
    extractor = featx.create_model(name, features_only=True, out_indices=[1], **NARROW).eval()
    sides = {2: torch.export.Dim("height", min=32, max=512), 3: torch.export.Dim("width", min=32, max=512)}
    exported = torch.export.export(extractor, (images(2, 3, 96, 160),), dynamic_shapes=(sides,)).module()
    for size in [(224, 224), (97, 161)]:
        x = images(2, 3, *size)
        assert relative_difference(exported(x)[0], extractor(x)[0]) <= 1e-5
