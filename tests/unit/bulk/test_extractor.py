"""Models, recipes and resources that `extract` accepts; norms and pre-logits compared with timm's."""

import copy
import json
import pickle
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import timm
import torch
from conftest import randomize, relative_difference
from PIL import Image
from support.extraction import CLOSE, paint
from torch import Tensor, nn

import featx
from featx import ArgumentError, ContractError, FeatureDataset, FeatureExtractWrapper, extract
from featx.bulk import Recipe, Resources
from featx.bulk.config import RecipeFields, ResourcesFields
from featx.bulk.extractor import create_extractor, wrap_classifier

SIZE = 64


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(draw.integers(0, 255, (72, 80, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    return randomize(featx.create_model("test_efficientnet"))


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    return randomize(featx.create_model("vit_tiny_patch16_224", depth=2))


def timms(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return randomize(timm.create_model(name, **arguments))


def seen(model: nn.Module, images: Path) -> Tensor:
    """The images as the model takes them."""
    prepare = featx.transform(FeatureExtractWrapper(model), size=SIZE)
    return torch.stack([prepare(Image.open(path)) for path in sorted(images.iterdir())])


def rows(folder: Path, level: str) -> Tensor:
    return torch.stack([features.maps[level] for features in FeatureDataset(folder)])


def decided(folder: Path) -> dict:
    return json.loads((folder / "meta.json").read_text())["decided"]


# models


def test_a_classifier_is_stored_like_its_extractor(tmp_path, images, classifier):
    extract(images, FeatureExtractWrapper(classifier, [1, -1]).eval(), tmp_path / "extractor", size=SIZE)
    extract(images, classifier, tmp_path / "classifier", size=SIZE, out_indices=[1, -1])
    shard, meta = "maps-000000.safetensors", decided(tmp_path / "classifier")
    assert (tmp_path / "classifier" / shard).read_bytes() == (tmp_path / "extractor" / shard).read_bytes()
    assert meta == decided(tmp_path / "extractor")
    assert meta["model"] == "EfficientNet"


def test_a_classifier_in_training_mode_is_refused(tmp_path, images, classifier):
    with pytest.raises(ArgumentError, match=r"in training mode.*call model\.eval\(\) first"):
        extract(images, copy.deepcopy(classifier).train(), tmp_path / "out")


def test_a_module_that_gives_no_maps_is_refused_with_what_to_do(tmp_path, images):
    with pytest.raises(ContractError, match=r"Linear has no feature_info.*features_only=True\) or featx\.tap"):
        extract(images, nn.Linear(2, 2).eval(), tmp_path / "out")


def test_what_is_not_a_model_is_refused(tmp_path, images):
    with pytest.raises(
        ArgumentError, match=r"model=3: expected the name of a model, an extractor, .*features_only=True"
    ):
        extract(images, 3, tmp_path / "out")


def test_levels_of_an_extractor_are_its_own(tmp_path, images, classifier):
    with pytest.raises(ArgumentError, match=r"out_indices chooses levels of a model.*; this extractor has its own"):
        extract(images, FeatureExtractWrapper(classifier), tmp_path / "out", out_indices=[1])


# recipes and resources


def test_a_recipe_and_resources_do_what_their_fields_do(tmp_path, images, classifier):
    asked = {"pooling": ["mean", "max"], "dtype": torch.float16, "size": SIZE}
    used = {"batch_size": 2, "workers": 1, "streams": 1, "device": "cpu"}
    extract(images, classifier, tmp_path / "fields", out_indices=[0, 1], **asked, **used)
    extract(
        images,
        classifier,
        tmp_path / "objects",
        out_indices=[0, 1],
        recipe=Recipe(**asked),
        resources=Resources(**used),
    )
    shard = "maps-000000.safetensors"
    assert (tmp_path / "objects" / shard).read_bytes() == (tmp_path / "fields" / shard).read_bytes()
    recorded = json.loads((tmp_path / "objects/meta.json").read_text())["recorded"]
    assert recorded.items() >= used.items()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"recipe": Recipe(), "size": 64},
            r"size beside recipe=, .*: pass recipe=dataclasses\.replace\(recipe, size=64",
        ),
        ({"resources": Resources(), "device": "cpu"}, r"device beside resources=.*replace\(resources, device='cpu'"),
        ({"recipe": {"size": 64}}, r"recipe=\{'size': 64\}: expected a featx\.bulk\.Recipe"),
        ({"sise": 64}, "there is no argument 'sise': did you mean size"),
        ({"max_error": 1}, "there is no argument 'max_error': did you mean max_errors"),
        ({"nothing_like_it": 1}, "there is no argument 'nothing_like_it'$"),
        ({"progress": "bars"}, r"progress='bars': expected a function of a featx\.bulk\.Progress, or 'bar'"),
        ({"pooling": ["pre_logits", "mean"]}, "'pre_logits' is of the whole model and stands alone"),
        ({"pooling": "pre_logits", "norm": True}, "norm=True: the model's own head decides what is normed"),
        ({"pooling": "pre_logits", "out_indices": [1]}, "out_indices chooses levels, and pooling 'pre_logits' is of"),
        ({"norm": True}, "norm=True: this model has no last norm of tokens"),
        ({"pooling": "cls"}, "pooling 'cls' takes a transformer's class token as its last norm.*: this model has no"),
        (
            {"pooling": "cls", "norm": False},
            "pooling 'cls' takes a transformer's class token, and this extractor returns",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, images, classifier, options, problem):
    with pytest.raises(ArgumentError, match=problem):
        extract(images, classifier, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "keywords"), [(Recipe, RecipeFields), (Resources, ResourcesFields)])
def test_type_checkers_know_every_field_as_a_keyword(kind, keywords):
    declared = get_type_hints(kind)
    assert get_type_hints(keywords) == {field.name: declared[field.name] for field in fields(kind)}


def test_only_what_was_chosen_is_shown():
    assert repr(Recipe()) == "Recipe()"
    assert repr(Recipe(["cls", "mean"], torch.float16)) == "Recipe(pooling=('cls', 'mean'), dtype='float16')"
    assert repr(Resources(device="cpu")) == "Resources(device='cpu')"


# norms and pre-logits


def test_maps_and_class_tokens_are_normed_as_timms_are(tmp_path, images):
    model = timms("vit_tiny_patch16_224", img_size=SIZE, depth=2)
    ours = featx.create_model("vit_tiny_patch16_224", depth=2, image_size=SIZE).eval()
    ours.load_state_dict(model.state_dict())
    with torch.inference_mode():
        x = seen(ours, images)
        plain = model.forward_intermediates(x, indices=[0, 1], norm=False, intermediates_only=True)
        normed = model.forward_intermediates(x, indices=[0, 1], norm=True, intermediates_only=True)
        token = model.forward_features(x)[:, 0]
    for number, made in enumerate((ours, model)):
        for norm, expected in ((None, plain), (False, plain), (True, normed)):
            out = tmp_path / f"{number}-{norm}"
            extract(images, made, out, size=SIZE, norm=norm)
            for level, maps in zip(("blocks.0", "blocks.1"), expected, strict=True):
                assert relative_difference(rows(out, level), maps) < CLOSE
            assert decided(out).get("norm") == (True if norm else None)
        extract(images, made, tmp_path / f"{number}-cls", size=SIZE, pooling="cls", out_indices=[-1])
        assert relative_difference(rows(tmp_path / f"{number}-cls", "blocks.1"), token) < CLOSE
        assert decided(tmp_path / f"{number}-cls")["norm"] is True


def test_folders_made_before_norms_and_colors_could_be_chosen_are_resumed(tmp_path, images, classifier):
    extract(images, classifier, tmp_path, size=SIZE, color_management="none")
    known = {"model", "weights", "levels", "dtype", "size", "keep_aspect", "scaled_decode", "runtime", "preprocessing"}
    assert set(decided(tmp_path)) == known


def test_a_class_token_of_before_the_norm_is_not_resumed_as_one_of_behind_it(tmp_path, images, vit):
    extract(images, vit, tmp_path, size=SIZE, pooling="cls", norm=False)
    with pytest.raises(featx.OutputError, match="norm: null there, true now"):
        extract(images, vit, tmp_path, size=SIZE, pooling="cls")
    assert extract(images, vit, tmp_path, size=SIZE, pooling="cls", norm=False).made == 0


@pytest.mark.parametrize("options", [{"norm": True}, {"pooling": "cls"}, {"pooling": "pre_logits"}])
def test_an_extractor_that_has_left_out_what_is_needed_is_refused(tmp_path, images, vit, options):
    extractor = FeatureExtractWrapper(vit, output="tokens")
    with pytest.raises(ArgumentError, match=r"pass the (classifier|model that create_model\(name\) returns)"):
        extract(images, extractor, tmp_path / "out", **options)


def test_an_extractor_whose_maps_are_normed_is_taken(tmp_path, images):
    torch.manual_seed(0)
    model = randomize(featx.create_model("vit_tiny_patch16_224", depth=2, norm_maps=True))
    extract(images, FeatureExtractWrapper(model, [-1], output="tokens"), tmp_path, size=SIZE, pooling="cls")
    with torch.inference_mode():
        assert (
            relative_difference(rows(tmp_path, "blocks.1"), model.forward_features(seen(model, images))[:, 0]) < CLOSE
        )


def test_a_vit_that_norms_behind_its_pool_has_no_norm_of_tokens(tmp_path, images):
    model = featx.create_model("vit_wee_patch16_reg1_gap_256", depth=1).eval()
    with pytest.raises(ArgumentError, match="norm=True: this ViT has no norm after its blocks"):
        extract(images, model, tmp_path / "out", norm=True)


def test_the_model_itself_is_left_without_normed_maps(vit):
    wrap_classifier(vit, None, Recipe(norm=True))
    assert not vit.maps_are_normed


@pytest.mark.parametrize(
    "name",
    [
        "test_efficientnet",
        "mobilenetv3_small_050",
        "convnext_atto",
        "vit_tiny_patch16_224",
        "timm/test_vit",
        "timm/test_byobnet",
    ],
)
@pytest.mark.parametrize("runtime", ["plain", "eager"])
def test_pre_logits_are_those_of_forward_head(tmp_path, images, name, runtime):
    torch.manual_seed(0)
    small = {"depth": 2} if name.startswith("vit") else {"image_size": SIZE} if name == "timm/test_vit" else {}
    model = randomize(featx.create_model(name, **small))
    extract(images, model, tmp_path, size=SIZE, pooling="pre_logits", runtime=runtime)
    with torch.inference_mode():
        x = seen(model, images)
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
    assert relative_difference(rows(tmp_path, "pre_logits"), expected) < (CLOSE if runtime == "plain" else 1e-4)


def test_pre_logits_do_not_depend_on_the_classes(tmp_path, images, classifier):
    create = partial(featx.create_model, "test_efficientnet", checkpoint_path=classifier.state_dict())
    named = create_extractor(create, None, Recipe("pre_logits"))
    assert not [name for name in named.state_dict() if name.startswith("classifier")]
    extract(images, named, tmp_path / "named", size=SIZE, pooling="pre_logits", name="EfficientNet")
    extract(images, classifier, tmp_path / "classifier", size=SIZE, pooling="pre_logits")
    assert decided(tmp_path / "named") == decided(tmp_path / "classifier")
    assert torch.equal(rows(tmp_path / "named", "pre_logits"), rows(tmp_path / "classifier", "pre_logits"))


def test_pre_logits_extractors_travel_to_other_processes(vit):
    extractor = wrap_classifier(vit, None, Recipe("pre_logits"))
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        assert torch.equal(pickle.loads(pickle.dumps(extractor))(x)[0], extractor(x)[0])


def test_a_model_without_pre_logits_is_refused(tmp_path, images):
    model = featx.create_model("torchvision/resnet18").eval()
    with pytest.raises(ArgumentError, match="pooling 'pre_logits': ResNet has no forward_features and forward_head"):
        extract(images, model, tmp_path / "out", pooling="pre_logits")


# devices


def test_the_device_is_chosen_by_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert Resources().settled().device == "cpu"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for kind, streams in (("cuda", 2), ("xpu", 2), ("mps", 1)):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda kind=kind: torch.device(kind))
        settled = Resources().settled()
        assert (settled.device, settled.streams) == (kind, streams)
    assert Resources(device="mps:1").device == "mps:1"
    with pytest.raises(ArgumentError, match="device='mps:2': there are 2, counted from 0"):
        Resources(device="mps:2")
    with pytest.raises(ArgumentError, match="device='cuda': there is no GPU that PyTorch can use here"):
        Resources(device="cuda")


# the bar


def test_a_progress_bar_counts_the_images(tmp_path, classifier, capsys):
    images = paint(tmp_path / "in", 5)
    (images / "1.png").write_text("no image")
    extract(images, classifier, tmp_path / "out", size=SIZE, out_indices=[0], progress="bar")
    assert "100%" in (told := capsys.readouterr().err)
    assert "5/5" in told
    assert "failed=1" in told
