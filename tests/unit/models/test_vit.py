"""ViT at any size, with any prefix: against timm where it can, from the definitions where it cannot.

The variants are cut to two narrow blocks, so that one of every kind can be computed.
"""

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import images, randomize, relative_difference
from timm.layers import resample_abs_pos_embed
from torch import nn

import featx
from featx import FeatureExtractWrapper
from featx.models.layers.pos_embed import resample_positions

NARROW = {"depth": 2, "dim": 96, "heads": 3}
# one of each kind: prefix with positions, prefix without, registers, no prefix at all, gated, normalized before, hybrid
KINDS = [
    "vit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_wee_patch16_reg1_gap_256",
    "vit_medium_patch16_gap_240",
    "vit_giant_patch14_reg4_dinov2",
    "vit_base_patch32_clip_224",
    "vit_tiny_r_s16_p8_224",
]
NORMED = [name for name in KINDS if "reg1_gap" not in name]
AWKWARD = [(224, 224), (96, 320), (97, 161)]
TINY = "vit_tiny_patch16_224"


def reference(name: str) -> nn.Module:
    """timm's model of that kind, for images of any size."""
    size = {"embed_dim": 96, "depth": 2, "num_heads": 3}
    return timm.create_model(name, dynamic_img_size=True, dynamic_img_pad=True, **size)


def pair(name: str, **kwargs) -> tuple[nn.Module, nn.Module]:
    """Our model and timm's, with the same weights, loaded strictly in both directions."""
    theirs = randomize(reference(name))
    ours = featx.create_model(name, **NARROW, **kwargs).eval()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def timm_tokens(model: nn.Module, x: torch.Tensor, *, norm: bool = False) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(patches, prefix tokens) after each block; as tokens, because timm cannot shape the hybrids' at every size."""
    found = model.forward_intermediates(
        x, norm=norm, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=bool(model.num_prefix_tokens)
    )
    # without prefix tokens timm returns no pairs
    return found if model.num_prefix_tokens else [(patches, patches[:, :0]) for patches in found]


def tokens_of(map_: torch.Tensor) -> torch.Tensor:
    return map_.flatten(2).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("size", AWKWARD)
@pytest.mark.parametrize("name", KINDS)
def test_logits_and_maps_equal_timms_at_any_aspect(name, size):
    ours, theirs = pair(name, norm_maps=False)
    x = images(1, 3, *size)
    assert relative_difference(ours(x), theirs(x)) <= 1e-5
    maps = FeatureExtractWrapper(ours)(x)
    reduction = ours.feature_info[0].reduction
    assert reduction == theirs.feature_info[0]["reduction"]
    for map_, (patches, _) in zip(maps, timm_tokens(theirs, x), strict=True):
        assert map_.shape[2:] == tuple(-(-side // reduction) for side in size)
        assert map_.is_contiguous()
        assert relative_difference(tokens_of(map_), patches) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_doubles_agree_to_ten_digits(name):
    ours, theirs = (model.double() for model in pair(name))
    x = images(1, 3, 96, 160).double()
    assert relative_difference(ours(x), theirs(x)) <= 1e-10


@pytest.mark.parametrize("name", KINDS)
def test_a_training_step_gives_the_gradients_of_timms(name):
    ours, theirs = (model.train().double() for model in pair(name))
    for model in (ours, theirs):
        model(images(2, 3, 96, 160).double()).square().mean().backward()
    expected = dict(theirs.named_parameters())
    largest = max(p.grad.abs().max() for p in expected.values())
    for key, parameter in ours.named_parameters():
        assert (parameter.grad - expected[key].grad).abs().max() <= 1e-10 * largest, key


@pytest.mark.parametrize("name", [*KINDS, "vit_small_r26_s32_224"])
def test_fresh_weights_are_drawn_from_the_distributions_of_timms(name):
    torch.manual_seed(0)
    ours, theirs = featx.create_model(name, **NARROW), dict(reference(name).named_parameters())
    for key, tensor in ours.named_parameters():
        for half, expected in zip(tensor.chunk(2), theirs[key].chunk(2), strict=True):
            if len(expected.unique()) == 1:
                assert torch.equal(half, expected), key
                continue
            # the spread of n numbers is known to about 1 / sqrt(2n): 5 of those for a normal distribution
            spread = 5 / (2 * half.numel()) ** 0.5
            assert half.std().item() == pytest.approx(expected.std().item(), rel=2 * spread), key
            assert half.mean().item() == pytest.approx(0, abs=2 * spread * half.std().item()), key


@torch.no_grad()
def test_a_hybrid_of_four_stages_equals_timms():
    ours, theirs = (model.double() for model in pair("vit_small_r26_s32_224"))
    x = images(1, 3, 97, 161).double()
    assert relative_difference(ours(x), theirs(x)) <= 1e-10
    maps = FeatureExtractWrapper(ours)(x)
    assert [map_.shape[2:] for map_ in maps] == [(4, 6)] * 2
    for map_, (patches, _) in zip(maps, timm_tokens(theirs, x), strict=True):
        assert relative_difference(tokens_of(map_), patches) <= 1e-10


@pytest.mark.parametrize("size", [(14, 14), (7, 7), (9, 21), (14, 28), (1, 40), (30, 3)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_positions_are_resampled_as_timm_does(size, prefix):
    positions = images(1, prefix + 14 * 14, 24)
    expected = resample_abs_pos_embed(positions, list(size), [14, 14], num_prefix_tokens=prefix)
    assert torch.equal(resample_positions(positions, size, prefix=prefix), expected)


def test_positions_keep_the_type_of_half_precision_weights():
    positions = images(1, 50, 24).bfloat16()
    exact = resample_positions(positions.float(), (3, 9), prefix=1)
    assert torch.equal(resample_positions(positions, (3, 9), prefix=1), exact.bfloat16())


@torch.no_grad()
def test_without_antialias_the_positions_are_blips():
    model = randomize(featx.create_model(TINY, num_classes=0, antialias=False, depth=1))
    seen = []
    model.pos_drop.register_forward_hook(lambda *call: seen.append(call[2]))
    x = images(1, 3, 64, 96)
    model(x)
    # as BLIP's interpolate_pos_embed, but for a grid that is not square
    grid = model.pos_embed[:, 1:].reshape(1, 14, 14, 192).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (4, 6), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
    tokens = torch.cat([model.cls_token, tokens_of(model.patch_embed(x))], dim=1)
    expected = tokens + torch.cat([model.pos_embed[:, :1], grid], dim=1)
    assert torch.equal(seen[0], expected)
    smooth = featx.create_model(TINY, num_classes=0, depth=1).eval()
    smooth.load_state_dict(model.state_dict())
    assert not torch.allclose(smooth(x), model(x))


@torch.no_grad()
def test_images_of_whole_patches_are_not_copied():
    model = featx.create_model("vit_wee_patch16_reg1_gap_256", features_only=True, out_indices=[0]).eval()
    given: list[torch.Tensor] = []
    model.get_submodule("patch_embed.proj").register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    x = images(1, 3, 64, 64)
    model(x)
    assert given[0].data_ptr() == x.data_ptr()


def test_partly_covered_patches_are_filled_with_zeros():
    extractor = randomize(featx.create_model(TINY, features_only=True, out_indices=[1]))
    x = images(1, 3, 97, 161)
    assert torch.equal(extractor(x)[0], extractor(F.pad(x, (0, 15, 0, 15)))[0])


@torch.no_grad()
@pytest.mark.parametrize("norm_maps", [False, True])
@pytest.mark.parametrize("name", NORMED)
def test_prefix_tokens_and_normed_maps_are_timms(name, norm_maps):
    ours, theirs = pair(name, norm_maps=norm_maps)
    x = images(2, 3, 96, 160)
    for level, (patches, prefix) in enumerate(timm_tokens(theirs, x, norm=norm_maps)):
        ((tokens, map_),) = ours.forward_tokens(x, [level])
        assert tokens.shape == prefix.shape
        torch.testing.assert_close(tokens, prefix, rtol=1e-4, atol=1e-4)
        assert relative_difference(tokens_of(map_), patches) <= 1e-5


@torch.no_grad()
def test_prefix_tokens_are_the_class_token_and_the_registers():
    model = randomize(featx.create_model("vit_small_patch14_reg4_dinov2", **NARROW, registers=3, norm_maps=False))
    tokens, map_ = model.forward_tokens(images(2, 3, 70, 99), [1])[0]
    assert tokens.shape == (2, 1 + 3, 96)
    assert map_.shape == (2, 96, 5, 8)
    every = model.forward_features(images(2, 3, 70, 99))
    assert torch.equal(every, model.norm(torch.cat([tokens, tokens_of(map_)], dim=1)))


@torch.no_grad()
def test_maps_of_dinov2_pass_through_the_last_norm_by_default():
    model = randomize(featx.create_model("vit_small_patch14_dinov2", **NARROW))
    raw = featx.create_model("vit_small_patch14_dinov2", **NARROW, norm_maps=False).eval()
    raw.load_state_dict(model.state_dict())
    x = images(1, 3, 70, 99)
    for map_, before in zip(FeatureExtractWrapper(model)(x), FeatureExtractWrapper(raw)(x), strict=True):
        assert torch.equal(map_, model.norm(before.movedim(1, -1)).movedim(-1, 1))


def test_weights_with_a_norm_behind_the_pool_have_no_normed_maps():
    fine_tuned = featx.create_model("vit_small_patch14_dinov2", **NARROW, fc_norm=True, norm_maps=False)
    model = featx.create_model("vit_small_patch14_dinov2", **NARROW, checkpoint_path=fine_tuned.state_dict())
    assert (model.config.fc_norm, model.config.norm_maps) == (True, False)


@torch.no_grad()
def test_an_extractor_gives_prefix_tokens_on_request_in_the_order_asked_for():
    name, x = "vit_small_patch14_reg4_dinov2", images(2, 3, 70, 99)
    model = randomize(featx.create_model(name, **NARROW, registers=3))
    pairs = featx.FeatureExtractWrapper(model, [1, 0], output="tokens")(x)
    maps = featx.FeatureExtractWrapper(model, [1, 0])(x)
    for level, (tokens, map_), alone in zip((1, 0), pairs, maps, strict=True):
        assert torch.equal(tokens, model.forward_tokens(x, [level])[0][0])
        assert torch.equal(map_, alone)


@torch.no_grad()
def test_a_convolutional_extractor_has_no_prefix_tokens_to_give():
    extractor = featx.create_model("resnet18", features_only=True, out_indices=[2, 0], output="tokens").eval()
    pairs = extractor(images(2, 3, 64, 64))
    assert [tuple(tokens.shape) for tokens, _ in pairs] == [(2, 0, 128), (2, 0, 64)]
    assert [tuple(map_.shape) for _, map_ in pairs] == [(2, 128, 8, 8), (2, 64, 32, 32)]


def test_normed_maps_are_refused_where_the_norm_follows_the_pool():
    with pytest.raises(featx.ArgumentError, match="norm_maps=True has no norm to apply"):
        featx.create_model("vit_wee_patch16_reg1_gap_256", norm_maps=True)


@pytest.mark.parametrize("norm_maps", [False, True])
@pytest.mark.parametrize("name", NORMED)
def test_an_extractor_holds_its_blocks_only_and_trains_all_it_holds(name, norm_maps):
    model = randomize(featx.create_model(name, **NARROW, norm_maps=norm_maps))
    for level in (0, 1):
        extractor = FeatureExtractWrapper(model, [level]).train()
        keys = {key.partition(".")[0] for key in extractor.state_dict()}
        assert keys <= {"cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre", "blocks", "norm"}
        assert ("norm" in keys) == norm_maps
        assert {key.split(".")[1] for key in extractor.state_dict() if key.startswith("blocks.")} == set(
            "01"[: level + 1]
        )
        extractor.zero_grad()
        extractor(images(2, 3, 64, 96))[0].square().mean().backward()
        # the class token and the registers too: the patches of every block attend to them
        assert [key for key, p in extractor.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_forward_head_of_forward_features_is_forward():
    model = randomize(featx.create_model(TINY, depth=2))
    assert model.forward_features(images()).shape == (2, 1 + 4 * 6, 192)
    assert torch.equal(model.forward_head(model.forward_features(images())), model(images()))


@torch.no_grad()
def test_average_pool_reads_the_patches_after_the_norm():
    model = randomize(featx.create_model(TINY, depth=1, global_pool="avg", num_classes=0))
    torch.testing.assert_close(model(images()), model.forward_features(images())[:, 1:].mean(1))


@torch.no_grad()
def test_a_representation_layer_comes_before_the_classifier():
    model = randomize(featx.create_model(TINY, depth=1, representation=32, num_classes=7))
    class_token = model.forward_features(images())[:, 0]
    logits = F.linear(class_token, model.pre_logits.fc.weight, model.pre_logits.fc.bias).tanh() @ model.head.weight.T
    torch.testing.assert_close(model(images()), logits + model.head.bias)
    assert model.head_hidden_size == 32
    model.reset_classifier(3)
    assert model(images()).shape == (2, 3)


def test_drop_rates_reach_every_part():
    rates = {"drop_rate": 0.1, "pos_drop_rate": 0.2, "proj_drop_rate": 0.3, "attn_drop_rate": 0.4}
    model = featx.create_model(TINY, depth=3, drop_path_rate=0.6, **rates)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.1, 0.2, 0.3, 0.4}
    assert [getattr(block.drop_path2, "rate", 0) for block in model.blocks] == pytest.approx([0, 0.3, 0.6])
    model.train()
    assert not torch.equal(model(images()), model(images()))


def test_what_does_not_fit_together_is_refused_at_once():
    with pytest.raises(featx.ArgumentError, match=r"'min': choose one of .*not a multiple of heads=5.*image_size=8"):
        featx.create_model(TINY, global_pool="min", heads=5, image_size=8)
    with pytest.raises(featx.ArgumentError, match="global_pool='token' needs class_token=True"):
        featx.create_model(TINY, class_token=False)


@torch.no_grad()
@pytest.mark.usefixtures("tolerant_of_torch")
def test_exports_with_open_sides():
    extractor = featx.create_model(TINY, features_only=True, out_indices=[1], depth=2).eval()
    sides = {2: torch.export.Dim("height", min=32, max=512), 3: torch.export.Dim("width", min=32, max=512)}
    exported = torch.export.export(extractor, (images(2, 3, 96, 160),), dynamic_shapes=(sides,)).module()
    for size in [(224, 224), (97, 161)]:
        assert torch.equal(exported(images(2, 3, *size))[0], extractor(images(2, 3, *size))[0])


@torch.no_grad()
def test_maps_of_a_channels_last_model_are_channels_last():
    extractor = featx.create_model(TINY, features_only=True, out_indices=[0]).to(memory_format=torch.channels_last)
    x = images(2, 3, 64, 96).to(memory_format=torch.channels_last)
    assert extractor(x)[0].is_contiguous(memory_format=torch.channels_last)
