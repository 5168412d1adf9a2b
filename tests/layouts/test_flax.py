"""Flax's names and shapes of ViTs and hybrids: against outputs of BLIP's reader, and against timm's."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from check_golden import check
from conftest import images, randomize, relative_difference, same_state
from timm.models.vision_transformer import VisionTransformer

import featx
from featx import CheckpointError
from featx.weights.layout import all_layouts, find_layout
from featx.weights.layouts.flax import to_flax
from featx.weights.readers import read_checkpoint

LAYOUT = find_layout("flax", ["ViT"])
PLAIN = ("vit_tiny_patch16_224", {"depth": 2, "image_size": 64})
HYBRIDS = [("vit_small_r26_s32_224", {"depth": 1, "image_size": 64}), ("vit_tiny_r_s16_p8_224", {"depth": 1})]
CASES = [PLAIN, (PLAIN[0], {**PLAIN[1], "representation": 48}), *HYBRIDS]
IDS = ["plain", "with pre_logits", "hybrid", "stem alone"]


def saved(state, path, prefix=""):
    np.savez(path, **{f"{prefix}{name}": tensor.numpy() for name, tensor in state.items()})
    return path


def build(name, arch, **more):
    return randomize(featx.create_model(name, **arch, **more))


def test_tokens_attention_gradients_and_logits_are_those_of_the_reference():
    rows = list(check(Path(__file__).parents[1] / "data" / "flax_npz_vit_64"))
    assert [row.output for row in rows] == ["tokens", "attention_map", "attn_gradients", "head_logits"]
    assert not [row for row in rows if row.failure]


@pytest.mark.parametrize(("name", "arch"), CASES, ids=IDS)
def test_there_and_back_changes_nothing(name, arch):
    native = build(name, arch, num_classes=7).state_dict()
    before = {key: tensor.clone() for key, tensor in native.items()}
    assert same_state(LAYOUT.to_native(LAYOUT.from_native(native), native), native)
    assert same_state(native, before)


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
@pytest.mark.parametrize(("name", "arch"), CASES, ids=IDS)
def test_a_file_fills_classifiers_and_extractors(name, arch, prefix, tmp_path):
    model = build(name, arch, num_classes=7)
    path = saved(LAYOUT.from_native(model.state_dict()), tmp_path / "w.npz", prefix)
    again = featx.create_model(name, num_classes=7, checkpoint_path=path, **arch)
    assert same_state(again.state_dict(), model.state_dict())
    extractor = featx.create_model(name, features_only=True, checkpoint_path=path, **arch)
    assert same_state(extractor.state_dict(), featx.FeatureExtractWrapper(model).state_dict())


TINY = {"img_size": 64, "embed_dim": 192, "depth": 2, "num_heads": 3}
REFERENCES = {
    "plain": (PLAIN, lambda: VisionTransformer(**TINY, num_classes=7)),
    "hybrid": (HYBRIDS[0], lambda: timm.create_model(HYBRIDS[0][0], img_size=64, depth=1, num_classes=7)),
    "stem alone": (HYBRIDS[1], lambda: timm.create_model(HYBRIDS[1][0], depth=1, num_classes=7)),
}


@pytest.mark.parametrize(("case", "reference"), REFERENCES.values(), ids=REFERENCES)
def test_the_numbers_are_those_of_timms_reader(case, reference, tmp_path):
    name, arch = case
    model = build(name, arch, num_classes=7)
    path = saved(LAYOUT.from_native(model.state_dict()), tmp_path / "w.npz")
    theirs = reference().eval()
    theirs.load_pretrained(str(path))
    size = 224 if "image_size" not in arch else 64
    x = images(1, 3, size, size)
    with torch.no_grad():
        assert relative_difference(model(x), theirs(x)) <= 1e-5


def test_norms_of_convolutions_from_before_linen_are_vectors_too():
    model = build(*HYBRIDS[0], num_classes=7)
    old = {
        name: tensor.reshape(1, 1, 1, -1) if "gn" in name else tensor
        for name, tensor in LAYOUT.from_native(model.state_dict()).items()
    }
    assert old["gn_root/scale"].shape == (1, 1, 1, 64)
    assert same_state(LAYOUT.to_native(old, ()), model.state_dict())


def test_the_names_and_shapes_are_those_of_flax():
    with torch.device("meta"):
        native = featx.create_model("vit_base_patch16_224").state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in LAYOUT.from_native(native).items()}
    block, attention = "Transformer/encoderblock_11", "Transformer/encoderblock_11/MultiHeadDotProductAttention_1"
    expected = {
        "cls": (1, 1, 768),
        "embedding/kernel": (16, 16, 3, 768),
        "Transformer/posembed_input/pos_embedding": (1, 197, 768),
        "Transformer/encoder_norm/scale": (768,),
        f"{block}/LayerNorm_0/scale": (768,),
        f"{block}/LayerNorm_2/bias": (768,),
        f"{attention}/query/kernel": (768, 12, 64),
        f"{attention}/value/bias": (12, 64),
        f"{attention}/out/kernel": (12, 64, 768),
        f"{attention}/out/bias": (768,),
        f"{block}/MlpBlock_3/Dense_0/kernel": (768, 3072),
        f"{block}/MlpBlock_3/Dense_1/kernel": (3072, 768),
        "head/kernel": (768, 1000),
    }
    assert {name: shapes[name] for name in expected} == expected
    assert len(shapes) == 6 + 12 * 16 + 2


def test_the_names_of_a_hybrid_are_those_of_flax():
    with torch.device("meta"):
        names = LAYOUT.from_native(featx.create_model("vit_small_r26_s32_224", depth=1).state_dict())
    for name in ("conv_root/kernel", "gn_root/scale", "block1/unit1/conv_proj/kernel", "block1/unit1/gn_proj/bias"):
        assert name in names
    for name in ("block4/unit2/conv3/kernel", "block4/unit2/gn3/scale", "embedding/bias"):
        assert name in names
    assert names["conv_root/kernel"].shape == (7, 7, 3, 64)


LATER = ("clip", "gap")  # of another program, with tensors that the originals have not
PUBLISHED = [
    name for name in featx.list_models("vit_*_[23]*4", module="vit") if not any(word in name for word in LATER)
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_variant_comes_back_with_its_names_and_shapes(name):
    with torch.device("meta"):
        native = featx.create_model(name).state_dict()
    back = LAYOUT.to_native(LAYOUT.from_native(native), native)
    assert {key: tensor.shape for key, tensor in back.items()} == {key: tensor.shape for key, tensor in native.items()}


def test_a_width_that_was_never_published_needs_its_heads():
    model = build(PLAIN[0], {"dim": 96, "heads": 3, "depth": 1, "image_size": 64}, num_classes=0)
    with pytest.raises(CheckpointError, match="cannot tell the heads of a ViT 96 channels wide"):
        LAYOUT.from_native(model.state_dict())
    assert same_state(LAYOUT.to_native(to_flax(model.state_dict(), heads=3), ()), model.state_dict())


@pytest.mark.parametrize(
    "name", ["deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch32_clip_224"]
)
def test_what_the_original_vits_have_no_place_for_is_refused(name):
    with torch.device("meta"):
        native = featx.create_model(name).state_dict()
    with pytest.raises(CheckpointError, match=r"no place for \['(reg_token|norm_pre|blocks\.0\.ls1)"):
        LAYOUT.from_native(native)


@pytest.mark.parametrize("levels", [[0], [1]])
def test_a_cut_model_goes_there_and_back(levels):
    model = build(*PLAIN, num_classes=7)
    native = featx.FeatureExtractWrapper(model, levels).state_dict()
    assert same_state(LAYOUT.to_native(LAYOUT.from_native(native), native), native)


def test_a_checkpoint_without_a_value_layer_says_so():
    model = build(*PLAIN, num_classes=7)
    state = {name: tensor for name, tensor in LAYOUT.from_native(model.state_dict()).items() if "/value/" not in name}
    with pytest.raises(CheckpointError, match=r"missing    blocks\.0\.attn\.qkv\.weight"):
        featx.load_weights(featx.create_model(PLAIN[0], num_classes=7, **PLAIN[1]), state)


def test_no_other_layout_recognizes_these_names_nor_this_one_native_names():
    native = build(*PLAIN, num_classes=7).state_dict()
    foreign = LAYOUT.from_native(native)
    assert [other for other in all_layouts() if other.recognizes(foreign)] == [LAYOUT]
    assert not LAYOUT.recognizes(native)


def test_the_published_file_is_read_as_numpy_reads_it():
    path = Path(__file__).parents[1] / "data" / "flax_npz_vit_64" / "flax_npz_vit_64.npz"
    with np.load(path) as expected:
        ours = read_checkpoint(path)
        assert ours.keys() == {*expected.files}
        assert all(np.array_equal(ours[name].numpy(), expected[name]) for name in ours)
