"""`featx.save` of timm, torchvision and registered models, and its refusals."""

import json

import pytest
import timm
import torch
from conftest import images, randomize
from timm.layers import SwiGLUPacked
from torch import nn

import featx
from featx import ArgumentError, CheckpointError, FeatureExtractWrapper, heads, registry
from featx.necks import FPN, Pipeline

CASES = [
    ("timm/swin_tiny_patch4_window7_224", {"num_classes": 5, "embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4)}),
    ("timm/resnet18", {"in_chans": 1}),
    ("timm/vit_tiny_patch16_224", {"image_size": (96, 128), "num_classes": 3, "depth": 2}),
    ("torchvision/resnet18", {"num_classes": 3, "in_chans": 1}),
    ("torchvision/mobilenet_v3_small", {"num_classes": 0}),
    ("tiny_net", {"width": 6}),
]


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.feature_info = [
            {"chs": width, "reduction": 2, "name": "a"},
            {"chs": 2 * width, "reduction": 4, "name": "b"},
        ]

    def forward(self, x):
        return self.b(self.a(x))


@pytest.fixture(autouse=True)
def tiny_net(monkeypatch):
    def tiny_net(pretrained=False, width=8, **kwargs):
        return featx.build_model_with_cfg(Net, pretrained, width=width, **kwargs)

    monkeypatch.setattr(registry, "_models", dict(registry._models))
    featx.register_model(tiny_net)


def sized(arguments: dict) -> torch.Tensor:
    return images(1, arguments.get("in_chans", 3), *arguments.get("image_size", (224, 224)))


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_model_comes_back_as_it_was(tmp_path, name, arguments):
    model, x = randomize(featx.create_model(name, **arguments)), sized(arguments)
    featx.save(model, tmp_path)
    read = featx.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert type(read) is type(model)
    assert read.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(read(x), model(x))


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_an_extractor_comes_back_with_its_levels_and_preprocessing(tmp_path, name, arguments):
    extractor = randomize(featx.create_model(name, features_only=True, out_indices=[1, 0], **arguments))
    x = sized(arguments)
    featx.save(extractor, tmp_path)
    read = featx.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    assert read.state_dict().keys() == extractor.state_dict().keys()
    assert read.feature_info == extractor.feature_info
    assert read.feature_info.out_indices == (1, 0)
    assert read.data_config == extractor.data_config
    with torch.no_grad():
        assert all(map(torch.equal, read(x), extractor(x)))


def test_a_model_that_timm_created_is_saved_with_its_layers(tmp_path):
    given = {"embed_dim": 48, "depth": 2, "num_heads": 2, "qk_norm": True}
    model = randomize(timm.create_model("vit_tiny_patch16_224", mlp_layer=SwiGLUPacked, **given))
    featx.save(model, tmp_path)
    x = images(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(featx.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), model(x))


def test_an_argument_that_json_cannot_hold_is_named(tmp_path):
    with pytest.raises(ArgumentError, match=r"timm/resnet18 was created with arguments .*act_layer=<class"):
        featx.save(timm.create_model("resnet18", act_layer=nn.SiLU), tmp_path)
    with pytest.raises(ArgumentError, match=r"tiny_net was created with arguments .*width=tensor\(4\)"):
        featx.save(featx.create_model("tiny_net", width=torch.tensor(4)), tmp_path)


def test_a_model_of_transformers_is_saved_by_transformers(tmp_path):
    pytest.importorskip("transformers")
    model = featx.create_model("transformers/convnext", depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8])
    with pytest.raises(ArgumentError, match=r"with model\.save_pretrained\(folder\)"):
        featx.save(FeatureExtractWrapper(model), tmp_path)


def test_a_pipeline_and_a_segmenter_say_what_to_save(tmp_path):
    backbone = featx.create_model("mobilenetv3_small_050", features_only=True)
    for model in (
        Pipeline(backbone, FPN(backbone.feature_info, 8)),
        heads.create_segmenter("linear", "mobilenetv3_small_050", num_classes=3),
    ):
        with pytest.raises(ArgumentError, match=r"save its state_dict\(\).*featx\.load_weights.*your own code"):
            featx.save(model, tmp_path)


@pytest.mark.parametrize(
    ("featx_block", "problem"),
    [
        ({"package": "os"}, "names the unknown package 'os'"),
        ({"package": "torchvision", "arguments": {"weights": "DEFAULT"}}, r"this family lacks: \['weights'\]"),
        ({"package": "torchvision", "arguments": {"num_classes": 10**9}}, "num_classes=1000000000"),
        ({"package": "torchvision", "arguments": {"num_classes": {"path": "x"}}}, "num_classes={"),
        ({"package": 5}, "featx.package is a word"),
    ],
)
def test_a_config_made_to_do_harm_is_refused(tmp_path, featx_block, problem):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "featx": featx_block}))
    with pytest.raises(CheckpointError, match=problem):
        featx.create_model(f"local-dir:{tmp_path}")


def test_a_registered_model_that_is_not_registered_here_is_named(tmp_path, monkeypatch):
    featx.save(featx.create_model("tiny_net"), tmp_path)
    monkeypatch.setattr(registry, "_models", {k: v for k, v in registry._models.items() if k != "tiny_net"})
    with pytest.raises(featx.UnknownModelError, match="tiny_net"):
        featx.create_model(f"local-dir:{tmp_path}", pretrained=True)
