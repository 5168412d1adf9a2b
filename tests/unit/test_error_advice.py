"""The advice of an error works: each row makes a mistake and follows the advice."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import featx
from featx.heads import AuxiliaryHead, Segmenter
from featx.necks import FPN, Resample, SimpleFeaturePyramid
from featx.training import freeze

NAME = "mobilenetv3_small_050"
X = torch.zeros(1, 3, 64, 64)


def extractor(**choice: Any) -> featx.FeatureExtractWrapper:
    return featx.create_model(NAME, features_only=True, **choice).eval()


class Pair(nn.Module):
    """One of its parts returns a tuple of a number and a map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.both = nn.Conv2d(3, 8, 1), Both()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.both(self.conv(x))[1]


class Both(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[int, torch.Tensor]:
        return 0, x


class Plain(nn.Module):
    """A user's model, without what featx reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def with_levels() -> nn.Module:
    model: Any = Plain()
    model.feature_info = [{"chs": 4, "reduction": 1, "name": "conv"}]
    return model


def with_data_config() -> nn.Module:
    model: Any = Plain()
    model.data_config = featx.DataConfig()
    return model


def broken() -> dict[str, torch.Tensor]:
    """Weights with a value that is infinite."""
    state = featx.create_model(NAME).state_dict()
    state["classifier.bias"] = torch.full_like(state["classifier.bias"], torch.inf)
    return state


def nested() -> dict[str, Any]:
    state = featx.create_model(NAME).state_dict()
    return {"teacher": state, "student": state, "epoch": 3}


def vit(**choice: Any) -> featx.FeatureExtractWrapper:
    return featx.create_model("vit_tiny_patch16_224", features_only=True, depth=2, **choice)


def patches_14() -> featx.FeatureExtractWrapper:
    return featx.create_model("vit_small_patch14_dinov2", features_only=True, depth=1)


def fixed() -> featx.FeatureExtractWrapper:
    return featx.create_model("timm/test_vit", features_only=True, dynamic_img_size=False)


def neck(out_indices: list[int] | None = None) -> FPN:
    return FPN(extractor(out_indices=out_indices).feature_info, 8)


def segmenting(backbone: nn.Module) -> nn.Module:
    return AuxiliaryHead(backbone.feature_info, 2)


Row = tuple[Callable[[], Any], str, Callable[[], Any]]

ROWS: dict[str, Row] = {
    "levels of a classifier": (
        lambda: featx.create_model(NAME, out_indices=[1]),
        r"pass features_only=True too",
        lambda: featx.create_model(NAME, out_indices=[1], features_only=True),
    ),
    "another library's word": (
        lambda: featx.create_model(NAME, feature_only=True),
        r"did you mean 'features_only'",
        lambda: featx.create_model(NAME, features_only=True),
    ),
    "a misspelt argument": (
        lambda: featx.create_model(NAME, num_clases=2),
        r"did you mean 'num_classes'",
        lambda: featx.create_model(NAME, num_classes=2),
    ),
    "a misspelt name": (
        lambda: featx.create_model("mobilenetv3_smal_050"),
        r"did you mean mobilenetv3_small_050 ",
        lambda: featx.create_model("mobilenetv3_small_050"),
    ),
    "a name of another package": (
        lambda: featx.create_model("test_resnet"),
        r"ask for timm/test_resnet",
        lambda: featx.create_model("timm/test_resnet"),
    ),
    "an image without a batch": (lambda: extractor()(X[0]), r"with x.unsqueeze\(0\)", lambda: extractor()(X)),
    "channels last": (
        lambda: extractor()(X.permute(0, 2, 3, 1)),
        r"use x.permute\(0, 3, 1, 2\)",
        lambda: extractor()(X.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
    ),
    "other channels": (
        lambda: extractor()(X[:, :1]),
        r"build the model with in_chans=1",
        lambda: extractor(in_chans=1)(X[:, :1]),
    ),
    "small images": (
        lambda: extractor()(X[..., :16, :16]),
        r"ask for shallower levels with out_indices",
        lambda: extractor(out_indices=[0, 1])(X[..., :16, :16]),
    ),
    "an extractor of an extractor": (
        lambda: featx.FeatureExtractWrapper(extractor()),
        r"wrap the model it was made from",
        lambda: featx.FeatureExtractWrapper(featx.create_model(NAME)),
    ),
    "a model without levels": (
        lambda: featx.FeatureExtractWrapper(Plain()),
        r"list the levels as dictionaries with chs, reduction and name",
        lambda: featx.FeatureExtractWrapper(with_levels())(X),
    ),
    "a level that is none": (
        lambda: extractor(out_names=["blocks.2"]),
        r"Choose distinct levels among:\n.*act1",
        lambda: extractor(out_names=["act1"]),
    ),
    "a level to freeze": (
        lambda: freeze(featx.create_model(NAME), "block.3"),
        r"did you mean 'blocks.3'",
        lambda: freeze(featx.create_model(NAME), "blocks.3"),
    ),
    "no backbone to freeze": (
        lambda: freeze(Plain(), "conv"),
        r"pass a model with feature_info",
        lambda: freeze(with_levels(), "conv"),
    ),
    "one tap": (lambda: featx.tap(Pair(), "conv"), r"such as \['conv'\]", lambda: featx.tap(Pair(), ["conv"])(X)),
    "a tap of a tuple": (
        lambda: featx.tap(Pair(), ["both"]),
        r"choose one of its tensors with Tap\('both', key=1\)",
        lambda: featx.tap(Pair(), [featx.Tap("both", key=1)])(X),
    ),
    "a misspelt module": (
        lambda: featx.tap(Pair(), ["convv"]),
        r"the closest are \['conv'\]",
        lambda: featx.tap(Pair(), ["conv"])(X),
    ),
    "no preprocessing": (
        lambda: featx.transform(Plain()),
        r"set model.data_config = featx.DataConfig\(...\)",
        lambda: featx.transform(with_data_config()),
    ),
    "infinite weights": (
        lambda: featx.load_weights(featx.create_model(NAME), broken()),
        r"load_weights\(..., finite=False\) takes them",
        lambda: featx.load_weights(featx.create_model(NAME), broken(), finite=False),
    ),
    "a checkpoint with several entries": (
        lambda: featx.load_weights(featx.create_model(NAME), nested()),
        r"its tensors are under one of \['teacher', 'student'\], say which with container=",
        lambda: featx.load_weights(featx.create_model(NAME), nested(), container="teacher"),
    ),
    "a layout that is not to be recognized": (
        lambda: featx.load_weights(featx.create_model(NAME), broken(), auto_mapping=False, layout="torchvision"),
        r"leave layout='torchvision' out",
        lambda: featx.load_weights(featx.create_model(NAME), broken(), auto_mapping=False, finite=False),
    ),
    "a stride of a model that has none": (
        lambda: featx.create_model("vit_tiny_patch16_224", output_stride=8),
        r"leave output_stride out",
        lambda: featx.create_model("vit_tiny_patch16_224"),
    ),
    "maps that a neck was not built for": (
        lambda: neck([1, 2])(extractor()(X)),
        r"build it from the feature_info of what returned these",
        lambda: neck()(extractor()(X)),
    ),
    "a single map": (
        lambda: neck([1])(extractor(out_indices=[1])(X)[0]),
        r"wrap a single map in a list",
        lambda: neck([1])([extractor(out_indices=[1])(X)[0]]),
    ),
    "a neck of a backbone": (
        lambda: FPN(extractor(), 8),
        r"built from the feature_info of FeatureExtractWrapper: pass that",
        lambda: FPN(extractor().feature_info, 8),
    ),
    "several maps for one": (
        lambda: SimpleFeaturePyramid(vit().feature_info, 8),
        r"Choose the last: out_indices=\[-1\]",
        lambda: SimpleFeaturePyramid(vit(out_indices=[-1]).feature_info, 8),
    ),
    "a pyramid of a pyramid": (
        lambda: SimpleFeaturePyramid(extractor(out_indices=[-1]).feature_info, 8),
        r"take them with out_indices and use FPN",
        lambda: FPN(extractor(out_indices=[1, 2, 3, 4]).feature_info, 8),
    ),
    "patches of 14 pixels": (
        lambda: SimpleFeaturePyramid(patches_14().feature_info, 8),
        r"choose other scale_factors, as \(2.0, 1.0, 0.5, 0.25\), or put featx.necks.Resample\(feature_info, 16\)",
        lambda: (
            SimpleFeaturePyramid(patches_14().feature_info, 8, scale_factors=(2, 1, 0.5, 0.25)),
            SimpleFeaturePyramid(Resample(patches_14().feature_info, 16).feature_info, 8),
        ),
    ),
    "a head of other levels": (
        lambda: Segmenter(extractor(), segmenting(extractor(out_indices=[1, 2]))),
        r"build it from backbone.feature_info:",
        lambda: Segmenter(extractor(), segmenting(extractor()))(X),
    ),
    "an architecture of one size": (
        lambda: fixed()(X),
        r"resize them to 160x160, or build it with create_model\('timm/test_vit', image_size=\(64, 64\)\)",
        lambda: (
            fixed()(torch.zeros(1, 3, 160, 160)),
            featx.create_model("timm/test_vit", features_only=True, image_size=(64, 64))(X),
        ),
    ),
    "a size that cannot be built": (
        lambda: featx.create_model("timm/coatnet_pico_rw_224", features_only=True, image_size=(100, 132)),
        r"build it with image_size=\(96, 128\) and resize the images to 96x128",
        lambda: featx.create_model("timm/coatnet_pico_rw_224", features_only=True, image_size=(96, 128))(
            torch.zeros(1, 3, 96, 128)
        ),
    ),
    "one size of transformers": (
        lambda: featx.create_model("transformers/pvt", features_only=True)(X),
        r"resize them to 224x224",
        lambda: featx.create_model("transformers/pvt", features_only=True)(torch.zeros(1, 3, 224, 224)),
    ),
    "sides that lose cells": (
        lambda: featx.create_model("transformers/mobilevitv2", features_only=True)(X[..., :40]),
        r"choose sides that are multiples of 64",
        lambda: featx.create_model("transformers/mobilevitv2", features_only=True)(X),
    ),
    "a changed pool": (
        lambda: featx.create_model(NAME).reset_classifier(3, "catavgmax"),
        r"build the model with create_model\('mobilenetv3_small_050', global_pool='catavgmax'\)",
        lambda: featx.create_model("mobilenetv3_small_050", global_pool="catavgmax"),
    ),
    "a class token that there is not": (
        lambda: featx.create_model("vit_wee_patch16_reg1_gap_256", global_pool="token"),
        r"without it choose 'avg', 'max', 'avgmax' or ''",
        lambda: featx.create_model("vit_wee_patch16_reg1_gap_256", global_pool="avgmax"),
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_following_the_advice_of_an_error_works(row):
    mistake, advice, follow = ROWS[row]
    with pytest.raises(featx.FeatxError) as error:
        mistake()
    assert re.search(advice, str(error.value)), str(error.value)
    assert len(str(error.value).splitlines()) <= 12
    follow()
