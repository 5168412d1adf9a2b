"""checkpoint_path of timm's models: timm's own conversions, other sizes and numbers of classes, and the report."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from conftest import images, randomize, relative_difference, same_state
from torch import Tensor

import featx
from featx import CheckpointError
from featx.bridges.timm_checkpoint import filter_of
from featx.weights.layout import find_layout

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 2}
VIT, SWIN, DINOV3 = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "vit_small_patch16_dinov3"
CONVNEXT = "convnext_atto"
ARCHITECTURES = {
    VIT: TINY,
    DINOV3: {**TINY, "num_classes": 0, "dynamic_img_size": True},
    SWIN: {"embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4)},
    CONVNEXT: {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
}


def reference(name: str, **arguments):
    model, values = (timm.create_model(name, **{**ARCHITECTURES[name], **arguments}) for _ in range(2))
    model.load_state_dict(randomize(values).state_dict())  # without values of rotary tables, which no file holds
    return model.eval()


def loaded(name: str, checkpoint, **arguments):
    given = {**ARCHITECTURES[name], **arguments}
    return featx.create_model(f"timm/{name}", checkpoint_path=checkpoint, **given).eval()


def renamed(state: dict[str, Tensor], *rules: tuple[str, str]) -> dict[str, Tensor]:
    """The tensors, renamed by patterns in order."""
    new = dict(state)
    for pattern, replacement in rules:
        new = {re.sub(pattern, replacement, name): tensor for name, tensor in new.items()}
    return new


def meta_dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names and additional tensors of Meta's files."""
    new = renamed(state, (r"gamma_([12])$", r"ls\1.gamma"), ("reg_token", "storage_tokens"))
    for block in range(TINY["depth"]):
        new[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(3 * TINY["embed_dim"])
        new[f"blocks.{block}.attn.qkv.bias_mask"] = torch.full((3 * TINY["embed_dim"],), torch.nan)
    return {**new, "mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.ones(6)}


def microsoft_swin(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names and buffers of Microsoft's files, in which a stage ends with its downsampling."""
    new = renamed(state, (r"layers\.1\.downsample", "layers.0.downsample"), (r"head\.fc\.", "head."))
    return {**new, "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.long)}


def facebook_convnext(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return renamed(
        state,
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    )


FOREIGN = {DINOV3: meta_dinov3, SWIN: microsoft_swin, CONVNEXT: facebook_convnext}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}], ids=["plain", "container"])
def test_files_of_the_authors_load_as_timm_converts_them(name, wrap, tmp_path, capsys):
    theirs, x = reference(name), images(1, 3, 224, 224)
    torch.save(wrap(FOREIGN[name](theirs.state_dict())), tmp_path / "w.pth")
    ours = loaded(name, tmp_path / "w.pth")
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    assert ours.load_report.layout == "timm"
    assert set(ours.load_report.loaded) == set(theirs.state_dict())
    assert capsys.readouterr().out == ""


def test_the_report_lists_what_timm_leaves_out(tmp_path):
    torch.save(meta_dinov3(reference(DINOV3).state_dict()), tmp_path / "w.pth")
    skipped = loaded(DINOV3, tmp_path / "w.pth").load_report.skipped
    assert {"mask_token", "rope_embed.periods", "blocks.1.attn.qkv.bias_mask"} <= set(skipped)
    assert set(skipped.values()) == {"left out or merged by timm's conversion"}


@pytest.mark.parametrize("name", [VIT, *FOREIGN])
def test_an_extractor_loads_the_whole_models_file_and_reports_it(name):
    theirs, x = reference(name), images(1, 3, 224, 224)
    state = FOREIGN.get(name, dict)(theirs.state_dict())
    extractor = loaded(name, state, features_only=True, out_indices=[1, 0])
    with torch.no_grad():
        wanted = theirs.forward_intermediates(x, [0, 1], intermediates_only=True, output_fmt="NCHW")
        assert all(map(torch.equal, extractor(x), reversed(wanted)))
    assert set(extractor.load_report.loaded) == set(extractor.state_dict())


@pytest.mark.parametrize("name", [VIT, SWIN])
def test_other_image_sizes_are_resampled_as_timm_does(name, tmp_path):
    theirs, size = reference(name), (160, 192)
    state = theirs.state_dict()
    ours = loaded(name, state, img_size=size)
    timms = timm.create_model(
        name, pretrained=True, img_size=size, pretrained_cfg_overlay={"state_dict": dict(state)}, **ARCHITECTURES[name]
    )
    for key, tensor in timms.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor)
    if name == VIT:
        how = "(1, 197, 48) resampled to (1, 121, 48) by timm's conversion"
        assert ours.load_report.adapted == {"pos_embed": how}


@pytest.mark.parametrize("name", [VIT, SWIN, CONVNEXT])
def test_another_number_of_classes_keeps_the_fresh_classifier(name):
    theirs = reference(name)
    ours = loaded(name, theirs.state_dict(), num_classes=7)
    head = f"{theirs.pretrained_cfg['classifier']}."
    assert set(ours.load_report.fresh) == {f"{head}weight", f"{head}bias"}
    for key, tensor in ours.state_dict().items():
        assert key.startswith(head) or torch.equal(tensor, theirs.state_dict()[key])


def test_a_fine_tuned_classifier_of_the_asked_size_is_loaded():
    theirs = reference(VIT, num_classes=7)
    ours = loaded(VIT, theirs.state_dict(), num_classes=7)
    assert torch.equal(ours.head.weight, theirs.head.weight)
    assert ours.load_report.fresh == ()


def test_a_classifier_of_another_size_is_refused_unless_asked_for():
    with pytest.raises(CheckpointError, match=r"(?s)1 tensors differ|2 tensors differ.*head\.weight"):
        loaded(VIT, reference(VIT, num_classes=7).state_dict())


@pytest.mark.parametrize("in_chans", [1, 6])
def test_input_channels_are_converted(in_chans):
    theirs = reference(CONVNEXT)
    ours = loaded(CONVNEXT, theirs.state_dict(), in_chans=in_chans)
    gray = images(1, 1, 64, 64)
    with torch.no_grad():  # images whose channels are equal give what the RGB model gives
        assert relative_difference(ours(gray.expand(-1, in_chans, -1, -1)), theirs(gray.expand(-1, 3, -1, -1))) <= 1e-5
    assert ours.load_report.adapted == {"stem.0.weight": f"3 input channels converted to {in_chans} by timm's rule"}


def test_what_does_not_fit_is_refused_and_nothing_is_loaded():
    state = reference(DINOV3).state_dict()
    del state["blocks.1.gamma_1"]
    with pytest.raises(CheckpointError, match=r"1 tensors differ and none was loaded.*\n.*blocks\.1\.gamma_1"):
        loaded(DINOV3, state)


def test_auto_mapping_false_takes_timms_names_alone():
    theirs = reference(SWIN)
    ours = loaded(SWIN, theirs.state_dict(), auto_mapping=False)
    assert set(ours.load_report.loaded) == set(theirs.state_dict())
    with pytest.raises(CheckpointError, match="tensors differ"):
        loaded(SWIN, microsoft_swin(theirs.state_dict()), auto_mapping=False)


def test_a_patch_embedding_of_a_huge_patch_is_not_resampled():
    state = reference(VIT).state_dict() | {"patch_embed.proj.weight": torch.zeros(48, 3, 300, 300)}
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight"):
        loaded(VIT, state)


def flax_arrays(vit) -> dict[str, np.ndarray]:
    """The tensors of a ViT under the names and in the shapes of Google's files."""
    state = {name: tensor.numpy() for name, tensor in vit.state_dict().items()}
    heads, dim = TINY["num_heads"], TINY["embed_dim"]
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for number in range(TINY["depth"]):
        ours, theirs = f"blocks.{number}", f"Transformer/encoderblock_{number}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        for i, kind in enumerate(("query", "key", "value")):
            weight = state[f"{ours}.attn.qkv.weight"].reshape(3, heads, dim // heads, dim)[i]
            arrays[f"{attention}/{kind}/kernel"] = weight.transpose(2, 0, 1)
            arrays[f"{attention}/{kind}/bias"] = state[f"{ours}.attn.qkv.bias"].reshape(3, heads, dim // heads)[i]
        out = state[f"{ours}.attn.proj.weight"]
        arrays[f"{attention}/out/kernel"] = out.T.reshape(heads, dim // heads, dim)
        arrays[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for i, norm in enumerate(("LayerNorm_0", "LayerNorm_2")):
            arrays[f"{theirs}/{norm}/scale"] = state[f"{ours}.norm{i + 1}.weight"]
            arrays[f"{theirs}/{norm}/bias"] = state[f"{ours}.norm{i + 1}.bias"]
        for i in (0, 1):
            arrays[f"{theirs}/MlpBlock_3/Dense_{i}/kernel"] = state[f"{ours}.mlp.fc{i + 1}.weight"].T
            arrays[f"{theirs}/MlpBlock_3/Dense_{i}/bias"] = state[f"{ours}.mlp.fc{i + 1}.bias"]
    return arrays


@pytest.mark.parametrize("arguments", [{}, {"num_classes": 5}], ids=["whole", "other classes"])
def test_flax_files_load(arguments, tmp_path):
    theirs, x = reference(VIT), images(1, 3, 224, 224)
    np.savez(tmp_path / "w.npz", **flax_arrays(theirs))
    ours = loaded(VIT, tmp_path / "w.npz", **arguments)
    with torch.no_grad():
        assert torch.equal(ours.forward_features(x), theirs.forward_features(x))
        assert arguments or torch.equal(ours(x), theirs(x))
    assert ours.load_report.fresh == (("head.weight", "head.bias") if arguments else ())


def bit_arrays(resnet) -> dict[str, np.ndarray]:
    """The tensors of a ResNetV2 under the names and in the shapes of BiT's files."""
    arrays = {}
    names = renamed(
        dict.fromkeys(resnet.state_dict(), torch.empty(0)),
        (r"^stem\.conv", "root_block/standardized_conv2d"),
        (r"^norm", "group_norm"),
        (r"^head\.fc", "head/conv2d"),
        (r"^stages\.(\d)\.blocks\.(\d)\.", lambda at: f"block{int(at[1]) + 1}/unit{int(at[2]) + 1:02d}/"),
        (r"downsample\.conv", "a/proj/standardized_conv2d"),
        (r"\bconv([123])\b", lambda at: f"{'abc'[int(at[1]) - 1]}/standardized_conv2d"),
        (r"\bnorm([123])", lambda at: f"{'abc'[int(at[1]) - 1]}/group_norm"),
        (r"group_norm\.weight", "group_norm/gamma"),
        (r"group_norm\.bias", "group_norm/beta"),
        (r"\.weight$", "/kernel"),
        (r"\.bias$", "/bias"),
    )
    for name, tensor in zip(names, resnet.state_dict().values(), strict=True):
        arrays[f"resnet/{name}"] = (tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor).numpy()
    return arrays


def test_flax_files_that_only_timm_knows_load(tmp_path):
    given = {"channels": (128, 128, 128, 128)}
    theirs, x = randomize(timm.create_model("resnetv2_50x1_bit", **given)), images(1, 3, 64, 64)
    np.savez(tmp_path / "w.npz", **bit_arrays(theirs))
    ours = featx.create_model("timm/resnetv2_50x1_bit", checkpoint_path=tmp_path / "w.npz", **given).eval()
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    assert ours.load_report.layout == "timm"


def test_a_flax_file_without_some_tensors_is_refused(tmp_path):
    given = {"channels": (128, 128, 128, 128)}
    arrays = bit_arrays(randomize(timm.create_model("resnetv2_50x1_bit", **given)))
    np.savez(tmp_path / "w.npz", **{name: array for name, array in arrays.items() if "block4" not in name})
    with pytest.raises(CheckpointError, match="tensors differ and none was loaded"):
        featx.create_model("timm/resnetv2_50x1_bit", checkpoint_path=tmp_path / "w.npz", **given)


@pytest.mark.parametrize(
    ("name", "function", "keywords"),
    [
        ("resnet18", "_unchanged", {}),
        ("vit_tiny_patch16_224", "checkpoint_filter_fn", {}),
        ("deit3_small_patch16_224", "checkpoint_filter_fn", {"adapt_layer_scale": True}),
        ("flexivit_small", "checkpoint_filter_fn", {"interpolation": "bilinear", "antialias": False}),
        ("crossvit_tiny_240", "pretrained_filter_fn", {}),
        ("vgg11", "_filter_fn", {}),
    ],
)
def test_the_filter_is_the_one_that_timm_uses(name, function, keywords):
    found = filter_of(SimpleNamespace(pretrained_cfg={"architecture": name}))
    assert getattr(found, "func", found).__name__ == function
    assert getattr(found, "keywords", {}) == keywords


FOR_WEIGHTS = {VIT: dict, **FOREIGN}


@pytest.mark.parametrize("name", FOR_WEIGHTS)
@pytest.mark.parametrize("features_only", [False, True])
def test_load_weights_converts_as_checkpoint_path_does(name, features_only, tmp_path):
    theirs, x = reference(name), images(1, 3, 224, 224)
    torch.save(FOR_WEIGHTS[name](theirs.state_dict()), tmp_path / "w.pth")
    levels = {"features_only": True, "out_indices": [1, 0]} if features_only else {}
    built = loaded(name, tmp_path / "w.pth", **levels)
    model = featx.create_model(f"timm/{name}", **ARCHITECTURES[name], **levels).eval()
    report = featx.load_weights(model, tmp_path / "w.pth")
    assert same_state(model.state_dict(), built.state_dict())
    assert (report.layout, report.loaded) == (built.load_report.layout, built.load_report.loaded)
    with torch.no_grad():
        wanted = theirs.forward_intermediates(x, [0, 1], intermediates_only=True, output_fmt="NCHW")[::-1]
        assert all(map(torch.equal, model(x), wanted)) if features_only else torch.equal(model(x), theirs(x))


@pytest.mark.filterwarnings("ignore:.*searchsorted", "ignore:.*indexing")  # of timm's interpolation
def test_load_weights_resamples_into_an_extractor_of_another_size():
    """Tables of positions of the stages that the extractor left out need the whole model."""
    state = reference(SWIN).state_dict()
    size = {"img_size": (160, 192), "window_size": 5}
    built = loaded(SWIN, microsoft_swin(state), **size)
    extractor = featx.create_model(f"timm/{SWIN}", features_only=True, out_indices=[0], **ARCHITECTURES[SWIN], **size)
    featx.load_weights(extractor, microsoft_swin(state))
    inside = {name: tensor for name, tensor in built.state_dict().items() if name in extractor.state_dict()}
    assert same_state(extractor.state_dict(), inside)


def test_load_weights_keeps_what_it_skips_in_a_model_of_timm():
    theirs, model = reference(SWIN), timm.create_model(SWIN, num_classes=7, **ARCHITECTURES[SWIN])
    fresh = model.head.fc.weight.detach().clone()
    report = featx.load_weights(model, microsoft_swin(theirs.state_dict()), skip=("head.",))
    assert torch.equal(model.head.fc.weight, fresh)
    assert report.fresh == ("head.fc.weight", "head.fc.bias")
    state = theirs.state_dict() | {"norm.bias": torch.full_like(theirs.norm.bias, torch.inf)}
    with pytest.raises(CheckpointError, match="not finite"):
        featx.load_weights(theirs, state)
    featx.load_weights(theirs, state, finite=False)


def test_load_weights_takes_modules_that_timm_create_model_did_not_build():
    layer = timm.layers.Mlp(4, 8)
    state = randomize(timm.layers.Mlp(4, 8)).state_dict()
    featx.load_weights(layer, {"state_dict": state})
    assert same_state(layer.state_dict(), state)


def test_weights_of_another_activation_are_refused_unless_the_model_was_built_with_it():
    """OpenAI's networks compute QuickGELU, and timm's architecture of that name computes GELU."""
    arch = {"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 64, "num_classes": 0}
    name = "timm/vit_base_patch32_clip_224"
    fields = {"dim": 24, "depth": 1, "heads": 2, "image_size": 64, "num_classes": 0}
    native = randomize(featx.create_model("vit_base_patch32_clip_224", **fields))
    state = find_layout("transformers-clip", ["ViT"]).from_native(native.state_dict())
    with pytest.raises(CheckpointError, match="transformers-clip-quickgelu, whose numbers need"):
        featx.create_model(name, checkpoint_path=state, layout="transformers-clip-quickgelu", **arch)
    model = featx.create_model(name, **arch)
    with pytest.raises(CheckpointError, match="transformers-clip-quickgelu, whose numbers need"):
        featx.load_weights(model, state, layout="transformers-clip-quickgelu")
    featx.load_weights(model, state, layout="transformers-clip")
    quick = featx.create_model(
        name, checkpoint_path=state, layout="transformers-clip-quickgelu", act_layer="quick_gelu", **arch
    )
    assert same_state(quick.state_dict(), model.state_dict())
