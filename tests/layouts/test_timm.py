"""timm's checkpoints: what each of its wrappers calls a model's tensors, and names of the past."""

import pytest
import timm
import torch
from conftest import SMALL_VARIANTS, images, randomize, relative_difference, to_native
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

import featx
from featx.weights.layout import recognize_layout

# Wrappers that timm cannot put around these: their levels lie deeper than it looks, or are no modules.
NESTED = ("mobilenet", "test_efficientnet", "vit", "hrnet")
WRAPPERS = {"getter": ("none",), "dict": NESTED, "hook": ("hrnet",), "fx": ("hrnet",)}
FAMILIES = [
    *("resnet18", "resnest14d", "repvgg_a0", "mobilenetv2_035", "mobilenetv3_small_050", "test_efficientnet"),
    *("rexnet_100", "hrnet_w18_small", "convnext_atto", "mobilevit_xxs", "mobilevitv2_050", "vit_tiny_patch16_224"),
]
OFTEN = ("resnet18", "convnext_atto", "mobilevitv2_050")  # with every wrapper; the others are swept
VARIATIONS = ("ecaresnet26t", "convnextv2_atto", "vit_wee_patch16_reg1_gap_256", "vit_tiny_r_s16_p8_224")
FEATURE_NETS = [
    *((name, None) for name in [*FAMILIES, *VARIATIONS]),
    *(
        (name, wrapper) if name in OFTEN else pytest.param(name, wrapper, marks=pytest.mark.sweep)
        for name in FAMILIES
        for wrapper in WRAPPERS
        if not name.startswith(WRAPPERS[wrapper])
    ),
]
VIT = {"dim": 24, "depth": 2, "heads": 2, "patch": 8, "image_size": 32, "num_classes": 7}


@pytest.mark.parametrize(("name", "wrapper"), FEATURE_NETS)
def test_a_feature_nets_checkpoint_fills_an_extractor(name, wrapper, tmp_path):
    options = {"feature_cls": wrapper} if wrapper else {}
    theirs = randomize(timm.create_model(name, features_only=True, **options))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    extractor = featx.create_model(name, features_only=True, checkpoint_path=tmp_path / "w.pth")
    given = theirs.state_dict()
    for ours, tensor in extractor.state_dict().items():
        names = [f"{prefix}{n}" for prefix in ("", "model.", "body.", "graph_module.") for n in (ours, flat(ours))]
        assert torch.equal(tensor, next(given[name] for name in names if name in given))


def flat(name: str) -> str:
    return name.replace(".", "_", 1)


@pytest.mark.parametrize("name", ["convnext_atto", "rexnet_100", "vit_tiny_patch16_224", "hrnet_w18_small"])
def test_maps_are_those_of_the_feature_net(name, tmp_path):
    theirs = randomize(timm.create_model(name, features_only=True))
    torch.save({f"module.{key}": tensor for key, tensor in theirs.state_dict().items()}, tmp_path / "w.pth")
    levels = theirs.feature_info.out_indices if name.startswith("vit") else None
    extractor = featx.create_model(
        name, features_only=True, out_indices=levels, checkpoint_path=tmp_path / "w.pth"
    ).eval()
    x = images(1, 3, *((224, 224) if name.startswith("vit") else (64, 96)))
    with torch.no_grad():
        for ours, expected in zip(extractor(x), theirs(x), strict=True):
            assert relative_difference(ours, expected) < 1e-5  # single precision, operations in another order


def old_vit(*, representation: bool) -> nn.Module:
    fields = {**VIT, "dim": 192, "representation": 192} if representation else VIT
    return randomize(featx.create_model("vit_tiny_patch16_224", **fields))


def test_patches_by_a_linear_layer_become_a_convolution():
    ours = old_vit(representation=False).state_dict()
    theirs = {**ours, "patch_embed.proj.weight": ours["patch_embed.proj.weight"].flatten(1)}
    model = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=2, patch_size=8, img_size=32, num_classes=7
    )
    expected = checkpoint_filter_fn(theirs, model)
    converted = to_native(theirs, ours.keys(), ["ViT"])
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


@pytest.mark.parametrize("linear", [False, True], ids=["convolution", "linear"])
def test_a_layer_before_the_classifier_asks_for_its_width(linear):
    model = old_vit(representation=True)
    state = dict(model.state_dict())
    if linear:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    layout = recognize_layout(state, ["ViT"])
    assert layout is not None
    assert layout.settings == {"representation": 192}
    again = featx.create_model("vit_tiny_patch16_224", **{**VIT, "dim": 192, **layout.settings}).eval()
    featx.load_weights(again, state)
    x = images(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("name", SMALL_VARIANTS)
def test_names_of_today_are_ours(name):
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), featx.create_model(name)
    assert recognize_layout(theirs.state_dict(), [type(ours).__name__]) is None
