"""Saving models and uploading them."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from conftest import images, randomize, relative_difference, same_state
from support.hub_server import Repository
from support.saved_model import NAME
from support.saved_model import trained as trained
from torch import nn

import featx
import featx.cli
from featx import ArgumentError, CheckpointError, DataConfig, OutputError
from featx.models.hrnet import resized
from featx.models.layers.mobile import MobileStyle, as_tensorflow
from featx.models.layers.residual import Residual
from featx.models.layers.transformer import TANH_GELU, QuickGELU, TransformerStyle
from featx.models.repvgg import reparameterize
from featx.weights.serialization import write_checkpoint

QUICK, CLIP = TransformerStyle(act=QuickGELU), TransformerStyle(act=QuickGELU, eps=1e-5)
TANH = TransformerStyle(act=TANH_GELU)


def again(folder: Path, **how) -> nn.Module:
    return featx.create_model(f"local-dir:{folder}", pretrained=True, **how).eval()


# classifiers


@pytest.mark.parametrize(
    ("name", "fields", "shape"),
    [
        ("resnet18", {"num_classes": 7}, (1, 3, 64, 64)),
        ("vit_tiny_patch16_224", {"image_size": 96, "num_classes": 4}, (1, 3, 96, 96)),
        ("convnext_atto", {"in_chans": 1, "num_classes": 5}, (1, 1, 64, 64)),
        ("vit_tiny_patch16_224", {"style": QUICK, "num_classes": 4}, (1, 3, 224, 224)),
        ("vit_tiny_patch16_224", {"style": TANH, "num_classes": 4}, (1, 3, 224, 224)),
        ("vit_base_patch16_clip_224", {"style": CLIP, "depth": 1, "num_classes": 4}, (1, 3, 224, 224)),
    ],
)
def test_timm_reads_what_is_saved_and_computes_the_same(tmp_path, name, fields, shape):
    model = randomize(featx.create_model(name, **fields))
    featx.save(model, tmp_path / "saved")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    x = images(*shape)
    with torch.no_grad():
        ours, reference, read = model(x), theirs(x), again(tmp_path / "saved")(x)
    assert ours.shape == (1, fields["num_classes"])
    assert relative_difference(ours, reference) <= 1e-5
    assert relative_difference(read, reference) <= 1e-5
    assert theirs.default_cfg["num_classes"] == fields["num_classes"]


@pytest.mark.parametrize(
    ("name", "fields", "argument"),
    [
        ("resnet26", {"style": Residual(stride_in_1x1=True)}, "style"),
        ("vit_tiny_patch16_224", {"style": TransformerStyle(act=QuickGELU, eps=1e-5), "depth": 1}, "style"),
        ("mobilenetv2_035", {"style": as_tensorflow(MobileStyle(nn.ReLU6))}, "style"),
        ("convnext_atto", {"act": QuickGELU}, "act"),
        ("hrnet_w18_small", {"fit": resized}, "fit"),
    ],
)
def test_timm_refuses_settings_that_it_lacks_instead_of_ignoring_them(tmp_path, name, fields, argument):
    model = randomize(featx.create_model(name, num_classes=3, **fields))
    featx.save(model, tmp_path)
    with pytest.raises(TypeError, match=rf"unexpected keyword argument.*'{argument}'"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    x = images(1, 3, *model.data_config.size)
    with torch.no_grad():
        assert torch.equal(again(tmp_path)(x), model(x))


def test_what_timm_saves_is_read(tmp_path):
    theirs = randomize(timm.create_model(NAME, num_classes=6))
    timm.models.save_for_hf(theirs, tmp_path / "saved", model_args={"num_classes": 6})
    model, x = again(tmp_path / "saved"), images(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_difference(model(x), theirs(x)) <= 1e-5


def test_a_saved_model_is_built_again_with_its_labels_and_preprocessing(trained, tmp_path):
    model = featx.create_model(NAME, num_classes=3, checkpoint_path=trained.state_dict())
    model.label_names, model.data_config = ("a", "b", "c"), DataConfig((64, 96), crop=0.5, interpolation="bilinear")
    featx.save(model, tmp_path)
    read = again(tmp_path)
    assert same_state(read.state_dict(), trained.state_dict())
    assert read.label_names == ("a", "b", "c")
    assert read.data_config == model.data_config


def test_labels_of_other_classes_are_not_saved(trained, tmp_path):
    model = featx.create_model(NAME, num_classes=3, checkpoint_path=trained.state_dict())
    model.label_names = ("a", "b", "c")
    model.reset_classifier(2)
    featx.save(model, tmp_path)
    assert again(tmp_path).label_names == ()
    assert again(tmp_path).classifier.out_features == 2


@pytest.mark.parametrize("classes", [0, 5])
def test_a_model_is_saved_with_the_classes_it_has_now(trained, tmp_path, classes):
    model = featx.create_model(NAME, num_classes=3, checkpoint_path=trained.state_dict())
    model.reset_classifier(classes)
    featx.save(model, tmp_path)
    assert same_state(again(tmp_path).state_dict(), model.state_dict())
    assert json.loads((tmp_path / "config.json").read_text())["num_classes"] == classes


def test_what_is_asked_for_goes_before_what_was_saved(trained, tmp_path):
    featx.save(trained, tmp_path)
    other = again(tmp_path, num_classes=8, in_chans=1)
    assert other(images(1, 1, 32, 32)).shape == (1, 8)


def test_weights_in_half_precision_are_saved_as_they_are(trained, tmp_path):
    featx.save(
        featx.create_model(NAME, num_classes=3, checkpoint_path=trained.state_dict(), dtype=torch.bfloat16), tmp_path
    )
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert saved["conv_stem.weight"].dtype is torch.bfloat16
    assert again(tmp_path).conv_stem.weight.dtype is torch.float32


# extractors


def test_an_extractor_is_saved_with_its_levels_in_their_order(trained, tmp_path):
    extractor, x = featx.FeatureExtractWrapper(trained, [3, 1]), images(1, 3, 64, 64)
    featx.save(extractor, tmp_path)
    read = again(tmp_path, features_only=True)
    assert same_state(read.state_dict(), extractor.state_dict())
    assert read.feature_info.out_indices == extractor.feature_info.out_indices == (3, 1)
    with torch.no_grad():
        for ours, theirs in zip(read(x), extractor(x), strict=True):
            assert relative_difference(ours, theirs) <= 1e-5


def test_a_saved_extractor_gives_any_level_it_holds(trained, tmp_path):
    featx.save(featx.FeatureExtractWrapper(trained, [3, 1]), tmp_path)
    assert again(tmp_path, features_only=True, out_indices=[0, 2]).feature_info.out_indices == (0, 2)


def test_a_level_deeper_than_those_saved_says_what_is_lacking(trained, tmp_path):
    featx.save(featx.FeatureExtractWrapper(trained, [1]), tmp_path)
    with pytest.raises(CheckpointError, match=r"missing    blocks\.1\.0\.conv_pw\.weight"):
        again(tmp_path, features_only=True, out_indices=[2])
    with pytest.raises(CheckpointError, match=r"220 tensors differ .*\n(.*\n)*  missing    … and 217 more"):
        again(tmp_path)


def test_an_extractors_folder_fills_the_full_model_but_for_the_rest(trained, tmp_path):
    featx.save(featx.FeatureExtractWrapper(trained), tmp_path)
    full = featx.create_model(NAME, num_classes=3)
    report = featx.load_weights(full, tmp_path, skip=("conv_head.", "classifier."))
    assert set(report.fresh) == {
        f"{module}.{kind}" for module in ("conv_head", "classifier") for kind in ("weight", "bias")
    }
    assert torch.equal(full.conv_stem.weight, trained.conv_stem.weight)


# what cannot be saved


def test_a_reparameterized_model_is_refused_with_what_changed(tmp_path):
    model = featx.create_model("repvgg_a0").eval()
    reparameterize(model)
    with pytest.raises(ArgumentError, match=r"changed after it was built.*reparam.*Save its state_dict\(\) instead"):
        featx.save(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_model_with_a_layer_exchanged_is_refused(tmp_path):
    model = featx.create_model(NAME)
    model.conv_stem = nn.Conv2d(3, 16, 5)
    with pytest.raises(ArgumentError, match=r"changed after it was built.*another shape \['conv_stem.weight', "):
        featx.save(model, tmp_path)


def test_a_module_of_ones_own_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"Linear was not built by create_model: save its state_dict\(\) instead"):
        featx.save(nn.Linear(2, 2), tmp_path)


def test_a_model_without_values_is_refused(tmp_path):
    with torch.device("meta"):
        model = featx.create_model(NAME)
    with pytest.raises(ArgumentError, match=f"{NAME} is on the meta device, without values"):
        featx.save(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# places


def test_saving_over_the_file_that_the_model_is_mapped_from_keeps_it(trained, tmp_path):
    featx.save(trained, tmp_path)
    mapped = again(tmp_path)
    for _ in range(2):
        featx.save(mapped, tmp_path)
    assert same_state(mapped.state_dict(), trained.state_dict())
    assert same_state(again(tmp_path).state_dict(), trained.state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_process_that_changes_and_saves_its_own_file_leaves_it_whole(trained, tmp_path):
    featx.save(trained, tmp_path)
    script = (
        "import sys, torch, featx\n"
        "model = featx.create_model('local-dir:' + sys.argv[1], pretrained=True)\n"
        "with torch.no_grad(): model.classifier.bias.fill_(7)\n"
        "featx.save(model, sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", script, f"{tmp_path}"], check=True, timeout=120)
    read = again(tmp_path).state_dict()
    assert (read.pop("classifier.bias") == 7).all()
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in read.items())


def test_training_a_mapped_model_leaves_its_file_alone(trained, tmp_path):
    featx.save(trained, tmp_path)
    model = again(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert same_state(again(tmp_path).state_dict(), trained.state_dict())


def test_both_files_are_as_readable_as_any(trained, tmp_path):
    featx.save(trained, tmp_path / "saved")
    (tmp_path / "any").touch()
    modes = {path.stat().st_mode for path in [tmp_path / "any", *(tmp_path / "saved").iterdir()]}
    assert len(modes) == 1


def test_a_folder_that_cannot_be_written_is_an_error(trained, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inside", Path("/proc/nowhere")):
        with pytest.raises(OutputError, match=f"cannot write {folder}/model"):
            featx.save(trained, folder)


@pytest.fixture
def full_disk():
    """No file may grow beyond 100 kB, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_an_error_and_leaves_what_was_there(trained, tmp_path, request):
    featx.save(trained, tmp_path / "saved")
    write_checkpoint(trained.state_dict(), tmp_path / "saved" / "w.pt")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    request.getfixturevalue("full_disk")
    other = randomize(featx.create_model(NAME, num_classes=3), seed=9)
    with pytest.raises(OutputError, match=r"cannot write .*model.safetensors: .*too large"):
        featx.save(other, tmp_path / "saved")
    with pytest.raises(OutputError, match=r"cannot write .*w\.pt"):
        write_checkpoint(other.state_dict(), tmp_path / "saved" / "w.pt")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before


# the Hub


def test_an_upload_makes_the_repository_and_comes_back_the_same(hub, trained, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    address = featx.push_to_hub(trained, "someone/mine", message="First")
    assert address.startswith(f"{hub.endpoint}/someone/mine/commit/")
    assert hub.repositories["someone/mine"].files.keys() == {"config.json", "model.safetensors"}
    assert same_state(featx.create_model("hf-hub:someone/mine", pretrained=True).state_dict(), trained.state_dict())


def test_an_upload_goes_into_a_repository_that_is_there(hub, trained):
    hub.repositories["someone/mine"] = Repository({"README.md": b"words"})
    featx.push_to_hub(featx.FeatureExtractWrapper(trained, [2, 0]), "someone/mine", token="hf_mine")
    assert hub.repositories["someone/mine"].files["README.md"] == b"words"
    read = featx.create_model("hf-hub:someone/mine", pretrained=True, features_only=True)
    assert read.feature_info.out_indices == (2, 0)


def test_what_cannot_be_saved_makes_no_repository(hub):
    with pytest.raises(ArgumentError, match="was not built by create_model"):
        featx.push_to_hub(nn.Linear(2, 2), "someone/mine", token="hf_mine")
    assert hub.requests == []
