"""Checkpoints of ConvNeXt, ConvNeXt V2, DINOv2, DeiT III and MAE as their authors' programs save them.

timm's converters of these checkpoints are the reference.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import images, randomize, relative_difference, same_state, to_native
from timm.models.convnext import checkpoint_filter_fn as timm_convnext
from timm.models.vision_transformer import checkpoint_filter_fn as timm_vit
from torch import Tensor, nn

import featx
from featx.weights.layout import find_layout, recognize_layout

# Single precision, the same operations in another order.
TOLERANCE = 1e-5

State = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A variant at a small size, in our fields and in timm's; timm's converter; names that only the original has."""

    name: str
    system: str
    family: str
    fields: dict[str, Any]
    theirs: dict[str, Any]
    converter: Callable[..., State]
    marks: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def convnext(name: str, depths: tuple[int, ...], *marks: str) -> Case:
    dims = (8, 16, 24, 32)
    fields, theirs = {"depths": depths, "chs": dims}, {"depths": depths, "dims": dims}
    return Case(name, "facebook", "ConvNeXt", fields, theirs, timm_convnext, ("downsample_layers.0.0.weight", *marks))


def vit(name: str, system: str, *marks: str, extra: tuple[str, ...] = (), **settings: Any) -> Case:
    ours = {"dim": 48, "depth": 2, "heads": 2, "patch": 8, "image_size": 32, "norm_maps": False}
    theirs = {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32, "dynamic_img_size": True}

    def converter(state: State, model: nn.Module) -> State:
        return timm_vit(state, model, adapt_layer_scale=system == "deit3")

    return Case(name, system, "ViT", ours, theirs, converter, marks, extra, settings)


CASES = {
    "convnext": convnext("convnext_tiny", (3, 1, 2, 1), "stages.0.0.gamma", "norm.weight", "head.weight"),
    "convnextv2": convnext("convnextv2_tiny", (3, 1, 2, 1), "stages.0.0.grn.gamma", "stages.0.0.pwconv1.weight"),
    "convnextv2 of 1x1 convolutions": convnext("convnextv2_atto", (2, 2, 3, 2), "stages.1.0.grn.beta"),
    "dinov2": vit(
        "vit_small_patch14_dinov2",
        "dinov2",
        extra=("mask_token",),
        antialias=False,
        position_excess=0.1,
    ),
    "dinov2 with registers": vit("vit_small_patch14_reg4_dinov2", "dinov2", "register_tokens", extra=("mask_token",)),
    "dinov2 giant": vit(
        "vit_giant_patch14_reg4_dinov2",
        "dinov2",
        "blocks.0.mlp.w12.weight",
        "blocks.0.mlp.w3.bias",
        extra=("mask_token",),
    ),
    "deit3": vit("deit3_small_patch16_224", "deit3", "blocks.0.gamma_1", "blocks.1.gamma_2"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def native(case: Case) -> State:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomized(featx.create_model(case.name, num_classes=7, **case.fields)).state_dict()


def randomized(model: nn.Module) -> nn.Module:
    """With positions that matter, too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in randomize(model, seed=4).named_parameters():
            if name.endswith("pos_embed"):
                tensor.normal_(generator=generator)
    return model


def foreign(case: Case) -> State:
    from_native = find_layout(case.system, [case.family]).from_native
    assert from_native is not None
    return from_native(native(case))


def reference(case: Case) -> nn.Module:
    """timm's model, filled by timm's converter from the same original names."""
    model = timm.create_model(case.name, num_classes=7, **case.theirs)
    model.load_state_dict(case.converter(foreign(case), model), strict=True)
    return model.eval()


def test_the_names_are_the_originals(case):
    assert {*case.marks, *case.extra} <= foreign(case).keys()


def test_there_and_back_again_nothing_has_changed(case):
    ours = native(case)
    before = {name: tensor.clone() for name, tensor in ours.items()}
    theirs = foreign(case)
    copies = {name: tensor.clone() for name, tensor in theirs.items()}
    assert same_state(to_native(theirs, ours.keys(), [case.family]), before)
    assert same_state(theirs, copies)
    assert same_state(ours, before)


def test_the_layout_says_how_the_original_computes(case):
    found = recognize_layout(foreign(case), [case.family])
    assert found is not None
    assert dict(found.settings) == case.settings


def test_our_own_names_are_taken_for_ours(case):
    assert recognize_layout(native(case), [case.family]) is None


def test_logits_are_those_of_timms_conversion(case, tmp_path):
    torch.save({"model": foreign(case), "epoch": 3}, tmp_path / "w.pth")
    model = featx.create_model(case.name, num_classes=7, checkpoint_path=tmp_path / "w.pth", **case.fields).eval()
    theirs = reference(case)
    x = images(2, 3, 32, 32) if case.family == "ViT" else images(2, 3, 64, 75)
    with torch.no_grad():
        assert relative_difference(model(x), theirs(x)) < TOLERANCE


def test_maps_are_those_of_timms_conversion(case, tmp_path):
    torch.save(foreign(case), tmp_path / "w.pth")
    extractor = featx.create_model(
        case.name, features_only=True, num_classes=7, checkpoint_path=tmp_path / "w.pth", **case.fields
    ).eval()
    x = images(1, 3, 32, 32) if case.family == "ViT" else images(1, 3, 64, 75)
    with torch.no_grad():
        expected = reference(case).forward_intermediates(x, intermediates_only=True)
        for map_, other in zip(extractor(x), expected, strict=True):
            assert relative_difference(map_, other) < TOLERANCE


@pytest.mark.parametrize("shape", ["chunks", "plain"])
def test_blocks_that_dinov2_grouped_for_training_are_found(shape):
    """A chunk keeps the numbers that its blocks have in the whole."""
    case = CASES["dinov2"]
    chunk = {"0": "0.0", "1": "1.1"} if shape == "chunks" else {"0": "0.0", "1": "0.1"}
    theirs = {
        ".".join(["blocks", chunk[name.split(".")[1]], *name.split(".")[2:]]) if name.startswith("blocks.") else name: t
        for name, t in foreign(case).items()
    }
    assert same_state(to_native(theirs, native(case).keys(), ["ViT"]), native(case))


def test_positions_are_resized_as_dinov2_resizes_them():
    fields = {**CASES["dinov2"].fields, "antialias": False, "num_classes": 7}
    model = randomized(featx.create_model("vit_small_patch14_dinov2", position_excess=0.1, **fields))
    larger = featx.create_model("vit_small_patch14_dinov2", **{**fields, "image_size": 48}).eval()
    state = model.state_dict()
    grid = state["pos_embed"][:, 1:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(6.1 / 4, 6.1 / 4), mode="bicubic")
    resized = torch.cat([state["pos_embed"][:, :1], grid.permute(0, 2, 3, 1).reshape(1, 36, 48)], dim=1)
    larger.load_state_dict({**state, "pos_embed": resized})
    x = images(1, 3, 48, 48)
    with torch.no_grad():
        assert relative_difference(model(x), larger(x)) < TOLERANCE


def fcmae(state: State, *, sparse: bool) -> State:
    """The encoder without norm and classifier, and pieces of a decoder.

    With `sparse` as MinkowskiEngine has it: flat kernels whose index counts columns first, wrapped layers.
    """
    new: State = {}
    for name, tensor in state.items():
        if name.startswith(("norm.", "head.")):
            continue
        first = name.startswith("downsample_layers.0.")
        if sparse and not first and name.endswith("weight") and tensor.ndim == 4:
            name = f"{name.removesuffix('weight')}kernel"
            kernel = tensor.permute(3, 2, 1, 0).flatten(0, 1)
            tensor = kernel[:, 0] if ".dwconv." in name else kernel
        elif sparse and not first and ".pwconv" in name:
            name = ".linear.".join(name.rsplit(".", 1))
        elif sparse and not first and (".norm." in name or (name.split(".")[2] == "0" and name.startswith("down"))):
            name = ".ln.".join(name.rsplit(".", 1))
        elif sparse and not first and name.endswith("bias"):
            tensor = tensor[None]
        elif sparse and ".grn." in name:
            tensor = tensor.view(1, -1)
        new[f"encoder.{name}" if sparse else name] = tensor
    decoder = {
        "mask_token": torch.zeros(1, 4, 1, 1),
        "proj.weight": torch.zeros(4, 32, 1, 1),
        "pred.bias": torch.ones(2),
    }
    return {**new, **decoder, "decoder.0.dwconv.weight": torch.zeros(4, 1, 7, 7)} if sparse else new


@pytest.mark.parametrize("sparse", [False, True], ids=["published", "MinkowskiEngine"])
@pytest.mark.parametrize("name", ["convnextv2", "convnextv2 of 1x1 convolutions"])
def test_an_encoder_pretrained_under_masks_fills_an_extractor(name, sparse, tmp_path):
    case = CASES[name]
    torch.save({"model": fcmae(foreign(case), sparse=sparse)}, tmp_path / "fcmae.pt")
    extractor = featx.create_model(case.name, features_only=True, checkpoint_path=tmp_path / "fcmae.pt", **case.fields)
    expected = {name: t for name, t in native(case).items() if not name.startswith("head.")}
    assert same_state(extractor.state_dict(), expected)


def test_an_encoder_pretrained_under_masks_lacks_the_norm_of_a_classifier():
    case = CASES["convnextv2"]
    model = featx.create_model(case.name, **case.fields)
    with pytest.raises(featx.CheckpointError, match=r"missing    head.norm.weight"):
        featx.load_weights(model, fcmae(foreign(case), sparse=False))
    featx.load_weights(model, fcmae(foreign(case), sparse=False), skip=("head.",))


def test_norms_and_projectors_of_distilled_convnexts_are_left_out():
    case = CASES["convnext"]
    theirs = {**foreign(case), "norms.3.weight": torch.ones(32), "projectors.0.weight": torch.ones(2, 2)}
    assert same_state(to_native(theirs, native(case).keys(), ["ConvNeXt"]), native(case))


def test_the_decoder_of_a_masked_autoencoder_is_left_out():
    ours = randomize(featx.create_model("vit_tiny_patch16_224", depth=2)).state_dict()
    decoder = {f"decoder_{name}.weight": torch.zeros(2, 2) for name in ("embed", "norm", "pred", "blocks.0.norm1")}
    theirs = {**ours, **decoder, "mask_token": torch.zeros(1, 1, 2), "decoder_pos_embed": torch.zeros(1, 5, 2)}
    assert same_state(to_native(theirs, ours.keys(), ["ViT"]), ours)


PUBLISHED = [
    *(f"convnext_{size}" for size in ("tiny", "small", "base", "large", "xlarge")),
    *(f"convnextv2_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")),
]


@pytest.mark.sweep
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_convnext_fits(name):
    with torch.device("meta"):
        ours = featx.create_model(name).state_dict()
    from_native = find_layout("facebook", ["ConvNeXt"]).from_native
    assert from_native is not None
    theirs = from_native(ours)
    assert all(tensor.ndim == 2 for key, tensor in theirs.items() if ".pwconv" in key and key.endswith("weight"))
    again = to_native(theirs, ours.keys(), ["ConvNeXt"])
    assert {key: t.shape for key, t in again.items()} == {key: t.shape for key, t in ours.items()}
