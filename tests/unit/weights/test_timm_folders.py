"""Folders that timm and transformers write: arguments of native families, and architectures that only timm has."""

import json
from pathlib import Path

import pytest
import timm
import torch
from conftest import images, randomize
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from torch import nn

import featx
from featx import CheckpointError, UnknownModelError, WeightsNotFoundError

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 2}
SWIN = {"embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4), "num_classes": 5}
GATED = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
# Architecture, model_args as published, and where featx builds it, for the sizes in SMALL.
PATHOLOGY = {
    "UNI": ("vit_large_patch16_224", {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True}, "featx"),
    "UNI2-h": (
        "vit_giant_patch14_224",
        {"patch_size": 14, "init_values": 1e-5, "mlp_ratio": 5.33334, "no_embed_class": True, "reg_tokens": 8, **GATED},
        "timm",
    ),
    "Virchow": ("vit_huge_patch14_224", {"init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, **GATED}, "featx"),
    "H-optimus-0": (
        "vit_giant_patch14_reg4_dinov2",
        {"init_values": 1e-5, "dynamic_img_size": False, "global_pool": "token", "img_size": [224, 224]},
        "featx",
    ),
    "Prov-GigaPath": (
        "vit_giant_patch14_dinov2",
        {"patch_size": 16, "in_chans": 3, "init_values": 1e-5, "global_pool": "token", "img_size": 224},
        "featx",
    ),
}


def package(model: nn.Module) -> str:
    return type(model).__module__.partition(".")[0]


def placed(folder: Path, config: dict, model: nn.Module) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return f"local-dir:{folder}"


def saved_by_timm(folder: Path, name: str, safe: bool = True, **arguments) -> nn.Module:
    model, values = (timm.create_model(name, **arguments) for _ in range(2))
    model.load_state_dict(randomize(values).state_dict())
    timm.models.save_for_hf(model, folder, safe_serialization=safe)
    return model.eval()


def assert_equal(folder: str, theirs: nn.Module, x: torch.Tensor) -> nn.Module:
    """The model in the folder and its extractor compute what timm's model does, bit for bit."""
    ours = featx.create_model(folder, pretrained=True).eval()
    extractor = featx.create_model(folder, pretrained=True, features_only=True, out_indices=[1, 0]).eval()
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
        normed = getattr(extractor.source, "maps_are_normed", False)
        wanted = theirs.forward_intermediates(x, [0, 1], norm=normed, intermediates_only=True, output_fmt="NCHW")
        assert all(map(torch.equal, extractor(x), reversed(wanted)))
    assert set(extractor.load_report.loaded) == set(extractor.state_dict())
    return ours


@pytest.mark.parametrize("name", PATHOLOGY)
def test_published_pathology_models_are_built_as_their_config_says(name, tmp_path):
    architecture, model_args, where = PATHOLOGY[name]
    classes = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if "mlp_layer" in model_args else {}
    theirs = randomize(timm.create_model(architecture, num_classes=0, **{**SMALL, **model_args, **classes}))
    config = {"architecture": architecture, "num_classes": 0, "model_args": {**model_args, **SMALL}}
    folder = placed(tmp_path / "model", config, theirs)
    size = theirs.patch_embed.img_size
    model = assert_equal(folder, theirs, images(1, 3, *size))
    assert package(model) == where
    assert getattr(model, "maps_are_normed", False) == ("dinov2" in architecture)


@pytest.mark.parametrize(
    ("name", "arguments", "where"),
    [
        ("vit_tiny_patch16_224", {}, "featx"),
        ("vit_tiny_patch16_224", {"img_size": (96, 128), "no_embed_class": True, "reg_tokens": 2}, "featx"),
        ("vit_tiny_patch16_224", {"qk_norm": True}, "timm"),
        ("resnet18", {}, "featx"),
        ("resnet18", {"act_layer": "silu"}, "timm"),
        ("swin_tiny_patch4_window7_224", SWIN, "timm"),
    ],
)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_what_timm_saves_is_read(tmp_path, name, arguments, where, safe):
    theirs = saved_by_timm(tmp_path / "model", name, safe, **arguments)
    x = images(1, 3, *arguments.get("img_size", (224, 224)))
    assert package(assert_equal(f"local-dir:{tmp_path / 'model'}", theirs, x)) == where
    assert package(featx.create_model(f"timm/local-dir:{tmp_path / 'model'}")) == "timm"


def test_a_repository_of_an_architecture_that_only_timm_has_is_read(hub, tmp_path):
    from support.hub_server import Repository

    theirs = saved_by_timm(tmp_path / "model", "swin_tiny_patch4_window7_224", **SWIN)
    hub.repositories["someone/swin"] = Repository({f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()})
    for name in ("hf-hub:someone/swin", "timm/hf-hub:someone/swin@main"):
        assert_equal(name, theirs, images(1, 3, 224, 224))


def test_arguments_of_the_caller_precede_those_of_the_file(tmp_path):
    saved_by_timm(tmp_path, "swin_tiny_patch4_window7_224", **SWIN)
    model = featx.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, image_size=(128, 192)).eval()
    assert model(images(1, 3, 128, 192)).shape == (1, 3)
    assert set(model.load_report.fresh) == {"head.fc.weight", "head.fc.bias"}


def test_preprocessing_and_labels_of_the_file_are_used(tmp_path):
    theirs = timm.create_model("swin_tiny_patch4_window7_224", **SWIN)
    timm.models.save_for_hf(theirs, tmp_path, model_config={"label_names": list("abcde")})
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.75, "crop_mode": "squash"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    data = featx.create_model(f"local-dir:{tmp_path}", features_only=True).data_config
    assert (data.mean, data.crop, data.crop_mode) == ((0.1, 0.2, 0.3), 0.75, "squash")
    assert featx.create_model(f"local-dir:{tmp_path}").label_names == tuple("abcde")


@pytest.mark.parametrize("kind", ["TimmWrapperModel", "TimmWrapperForImageClassification"])
@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_transformers_wrapped_timm_models_are_read(tmp_path, kind, name):
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(architecture=name, num_labels=5)
    wrapped = randomize(getattr(transformers, kind)(config))
    wrapped.save_pretrained(tmp_path)
    ours, x = featx.create_model(f"local-dir:{tmp_path}", pretrained=True).eval(), images(1, 3, 224, 224)
    assert ours.state_dict().keys() == wrapped.timm_model.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in wrapped.timm_model.state_dict().items())
    assert ours(x).shape == wrapped.timm_model(x).shape


@pytest.mark.parametrize("file", ["weights.pth", "best.bin"])
def test_a_folder_with_one_file_of_weights_of_any_name_is_read(tmp_path, file):
    theirs = saved_by_timm(tmp_path, "resnet18", False, num_classes=5)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / file)
    assert_equal(f"local-dir:{tmp_path}", theirs, images(1, 3, 64, 64))
    model = featx.create_model("resnet18", num_classes=5, checkpoint_path=tmp_path)
    assert torch.equal(model.fc.weight, theirs.fc.weight)


def test_a_folder_with_several_files_of_weights_asks_for_one(tmp_path):
    saved_by_timm(tmp_path, "resnet18", False)
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes((tmp_path / "pytorch_model.bin").read_bytes())
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsNotFoundError, match=r"several files of weights: pass one of them, \['a.pth', 'b.pth'\]"):
        featx.create_model(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"model_args": {"depths": [10**9]}}, r"not the numbers and words of a network: depths=\[1000000000\]"),
        ({"model_args": {"drop_rate": float("nan")}}, "drop_rate=nan"),
        ({"model_args": {"norm_layer": {"path": "os.system"}}}, "norm_layer="),
        ({"model_args": {"embed_dim": 60_000}}, "more than 4 times those of the published|cannot be built"),
        ({"model_args": {"depths": [2000, 2000, 2000, 2000]}}, "more than 20000 modules"),
        ({"model_args": {"pretrained_cfg_overlay": "x", "checkpoint_path": "/etc/passwd"}}, "this family lacks"),
        ({"model_args": {"features_only": True}}, r"this family lacks: \['features_only'\]"),
        ({"model_args": {"norm_layer": "os.system"}}, "cannot be built or run"),
        ({"model_args": {"mlp_layer": "create_model", "depths": [1, 1, 1, 1]}}, "this family lacks|cannot be built"),
        ({"pretrained_cfg": {"crop_pct": 0}}, "crop=0: expected"),
        ({"pretrained_cfg": {"input_size": [10**9, 224, 224]}}, "input_size is a list"),
        ({"pretrained_cfg": {"first_conv": 5}}, "first_conv is a word"),
        ({"pretrained_cfg": {"num_classes": -5}}, "num_classes is a number"),
        ({"num_classes": 16_000_000}, r"describes a model of \d+ bytes"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_config_that_describes_no_model_of_timm_is_refused(tmp_path, wrong, problem):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "swin_tiny_patch4_window7_224", **wrong}))
    with pytest.raises(CheckpointError, match=problem) as refused:
        featx.create_model(f"local-dir:{tmp_path}")
    assert len(str(refused.value).splitlines()) <= 12


def test_sources_of_weights_in_a_config_are_ignored(tmp_path):
    cfg = {"file": "/etc/passwd", "url": "http://127.0.0.1:9/x.pth", "hf_hub_id": "a/b", "custom_load": True}
    config = {"architecture": "swin_tiny_patch4_window7_224", "model_args": {"depths": [1, 1, 1, 1]}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": cfg}))
    read = featx.create_model(f"local-dir:{tmp_path}").pretrained_cfg
    assert not {"file", "url", "hf_hub_id"} & read.keys()
    assert read["custom_load"] is False


def test_an_architecture_that_nobody_has_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "swim_tiny"}))
    with pytest.raises(UnknownModelError, match=r"names a model that neither featx nor timm has: .*'swim_tiny'"):
        featx.create_model(f"local-dir:{tmp_path}")
