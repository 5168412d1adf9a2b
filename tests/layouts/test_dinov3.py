"""Checkpoints of DINOv3 with Meta's names, restated here, beside what timm's converter makes of them."""

import pytest
import timm
import torch
from conftest import images, randomize, relative_difference, same_state
from timm.models.eva import checkpoint_filter_fn
from torch import Tensor, nn

import featx
from featx.weights.layout import recognize_layout

NARROW = {"depth": 2, "dim": 48, "heads": 3}
TOLERANCE = 1e-5
PLAIN, BIASED, GATED = (
    "vit_small_patch16_dinov3",
    "vit_small_patch16_dinov3_qkvb",
    "vit_small_plus_patch16_dinov3_qkvb",
)


def of_meta(model: nn.Module, *, biased: bool, gated: bool) -> dict[str, Tensor]:
    """The tensors of a model of timm under Meta's names, with what only Meta's files hold."""
    state: dict[str, Tensor] = {}
    swiglu = {".mlp.fc1_g.": ".mlp.w1.", ".mlp.fc1_x.": ".mlp.w2.", ".mlp.fc2.": ".mlp.w3."} if gated else {}
    names = {"reg_token": "storage_tokens", ".gamma_1": ".ls1.gamma", ".gamma_2": ".ls2.gamma", **swiglu}
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_bias", "v_bias")):
            continue
        for ours, metas in names.items():
            name = name.replace(ours, metas)
        state[name] = tensor
    for block in range(NARROW["depth"]):
        q, v = torch.zeros(2, NARROW["dim"])
        if biased:
            q, v = (model.get_parameter(f"blocks.{block}.attn.{part}_bias").detach() for part in ("q", "v"))
        state[f"blocks.{block}.attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
        mask = torch.ones(3, NARROW["dim"])
        mask[1] = 0
        state[f"blocks.{block}.attn.qkv.bias_mask"] = mask.flatten()
    state["mask_token"] = torch.zeros(1, NARROW["dim"])
    state["rope_embed.periods"] = 100 ** (torch.arange(4) / 4)
    return state


def reference(name: str) -> nn.Module:
    return randomize(timm.create_model(name, embed_dim=48, depth=2, num_heads=3))


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (48, 112), (112, 32)])
@pytest.mark.parametrize(
    ("asked", "published"), [(PLAIN, PLAIN), (BIASED, BIASED), (GATED, GATED), (PLAIN, BIASED), (BIASED, PLAIN)]
)
def test_maps_are_those_of_timms_conversion_whichever_variant_is_asked_for(asked, published, size, tmp_path):
    theirs = reference(published)
    state = of_meta(theirs, biased=published != PLAIN, gated=published == GATED)
    converted = checkpoint_filter_fn(dict(state), theirs)
    theirs.load_state_dict(converted, strict=True)
    torch.save(state, tmp_path / "dinov3.pth")
    ours = featx.create_model(asked, features_only=True, checkpoint_path=tmp_path / "dinov3.pth", **NARROW).eval()
    x = images(1, 3, *size)
    expected = theirs.forward_intermediates(x, intermediates_only=True, norm=True)
    for map_, other in zip(ours(x), expected, strict=True):
        assert relative_difference(map_, other) < TOLERANCE


def test_a_file_of_meta_is_recognized_and_its_other_tensors_are_left_out(tmp_path):
    state = of_meta(reference(PLAIN), biased=False, gated=False)
    found = recognize_layout(state, ["RotaryViT"])
    assert found is not None
    assert found.system == "dinov3"
    extra = {"local_cls_norm.weight": torch.ones(48), "projectors.0.weight": torch.ones(2, 2)}
    before = {name: tensor.clone() for name, tensor in state.items()}
    model = featx.create_model(PLAIN, checkpoint_path={**state, **extra}, **NARROW)
    assert same_state(state, before)
    assert model.load_report is not None


def test_biases_that_are_not_zero_are_not_dropped_from_a_model_without_them():
    state = of_meta(reference(BIASED), biased=True, gated=False)
    model = featx.create_model(PLAIN, **NARROW)
    with pytest.raises(featx.CheckpointError, match=r"blocks\.0\.attn\.q_bias"):
        featx.load_weights(model, state)


@torch.no_grad()
def test_names_of_native_files_choose_between_the_variants_with_and_without_biases():
    biased = featx.create_model(BIASED, **NARROW)
    model = featx.create_model(PLAIN, checkpoint_path=biased.state_dict(), **NARROW)
    assert same_state(model.state_dict(), biased.state_dict())
    plain = featx.create_model(PLAIN, **NARROW)
    model = featx.create_model(BIASED, checkpoint_path=plain.state_dict(), **NARROW)
    assert same_state(model.state_dict(), plain.state_dict())
