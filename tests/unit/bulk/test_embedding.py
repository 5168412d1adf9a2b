"""`embed` returns in memory, in the order of its inputs, what `extract` stores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_extractor, randomize
from PIL import Image

import featx
from featx import ArgumentError, FeatureDataset, FeatureExtractWrapper, ImageError, embed
from featx.bulk import find_items

SIZE = 64
SAME = {"size": SIZE, "batch_size": 4, "streams": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(draw.integers(0, 255, (72, 80, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def classifier():
    return randomize(featx.create_model("test_efficientnet"))


def loaded(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


@pytest.mark.parametrize("pool", ["mean", "max", "gem", "pre_logits"])
def test_vectors_are_those_that_extract_stores(tmp_path, images, classifier, pool):
    chosen = {} if pool == "pre_logits" else {"out_indices": [-1]}
    featx.extract(images, classifier, tmp_path, pooling=pool, **chosen, **SAME)
    made = embed(images, classifier, pool, **SAME)
    assert made.dtype == np.float32
    assert np.array_equal(made, FeatureDataset(tmp_path).to_numpy())
    assert made.shape == (6, 256 if pool == "pre_logits" else 64)
    assert len(np.unique(made, axis=0)) == 6


def test_class_tokens_are_those_that_the_classifier_sees(images):
    torch.manual_seed(0)
    model = randomize(featx.create_model("vit_tiny_patch16_224", depth=2))
    made = embed(images / "3.png", model, "cls", size=SIZE)
    x = featx.transform(model, size=SIZE)(loaded(images / "3.png"))[None]
    with torch.inference_mode():
        assert np.array_equal(made, model.forward_features(x)[:, 0].numpy())


def test_rows_are_in_the_order_given_however_images_are_given(images, classifier):
    whole = embed(images, classifier, **SAME)
    assert np.array_equal(embed(find_items(images), classifier, **SAME), whole)
    paths = [images / f"{number}.png" for number in (5, 0, 0, 3)]
    mixed = [str(paths[0]), loaded(paths[1]), paths[2], loaded(paths[3])]
    expected = whole[[5, 0, 0, 3]]
    for given in (paths, iter(mixed), mixed):
        assert np.allclose(embed(given, classifier, **SAME), expected, rtol=1e-5, atol=1e-6)
    with_folder = embed([paths[0], images], classifier, **SAME)
    assert np.allclose(with_folder, whole[[5, *range(6)]], rtol=1e-5, atol=1e-6)
    assert embed([], classifier).shape == (0, 64)


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    return Image.merge("LAB", image.split()) if mode == "LAB" else image.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "LAB"])
def test_a_picture_in_memory_is_seen_like_its_file(tmp_path, classifier, mode):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (72, 80, 3), np.uint8))
    picture = noise.convert("L").convert("I").convert("I;16") if mode == "I;16" else as_mode(noise, mode)
    path = tmp_path / ("picture.tif" if mode in ("CMYK", "LAB") else "picture.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.save(path, **({} if path.suffix == ".tif" else {"exif": exif}))
    with Image.open(path) as opened:
        opened.load()
        assert opened.mode == mode
        before = opened.tobytes()
        assert np.array_equal(embed(opened, classifier, size=SIZE), embed(path, classifier, size=SIZE))
        assert opened.tobytes() == before
    is_turned = not np.allclose(embed(path, classifier, size=SIZE), embed(picture, classifier, size=SIZE), rtol=1e-2)
    assert is_turned is (path.suffix == ".png")


@pytest.mark.parametrize("mode", ["HSV", "YCbCr", "RGBX"])
def test_a_picture_in_a_rare_mode_is_seen_in_rgb(images, classifier, mode):
    picture = loaded(images / "0.png").convert(mode)
    expected = embed(picture.convert("RGB"), classifier, size=SIZE)
    assert np.array_equal(embed(picture, classifier, size=SIZE), expected)


def test_images_that_cannot_be_decoded_are_all_named(tmp_path, images, classifier):
    bad = tmp_path / "bad\x1b.png"
    bad.write_text("no image")
    whole = (images / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with (
        Image.open(tmp_path / "cut.png") as cut,
        pytest.raises(ImageError, match=r"2 of 4 images have no vector \(errors='nan' gives rows of NaN\)") as raised,
    ):
        embed([images / "1.png", bad, cut, images / "2.png"], classifier, size=SIZE)
    assert r"bad\x1b.png: not an image" in str(raised.value)
    assert "\n  images[2]: " in str(raised.value)
    made = embed([images / "1.png", bad, images / "2.png"], classifier, errors="nan", **SAME)
    assert np.isnan(made[1]).all()
    assert np.allclose(made[[0, 2]], embed(images, classifier, **SAME)[[1, 2]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"pooling": "none"},
            "pooling='none': expected one that gives a vector, such as 'mean'; featx.extract keeps maps",
        ),
        ({"pooling": ["mean"]}, "expected one that gives a vector"),
        ({"pooling": "middle"}, "pooling='middle': choose one of"),
        ({"errors": "skip"}, "errors='skip': choose 'raise' or 'nan'"),
        ({"pool": "mean"}, "there is no argument 'pool': did you mean pooling"),
        ({"dtype": "float16"}, "embed has no argument dtype: vectors are in float32"),
        ({"sise": 64}, "there is no argument 'sise': did you mean size"),
        (
            {"out_indices": [0, 1]},
            r"one vector per image, and this extractor has the levels \['blocks\.0', 'blocks\.1'\]",
        ),
    ],
)
def test_what_gives_no_vector_is_refused(images, classifier, options, problem):
    with pytest.raises(ArgumentError, match=problem):
        embed(images, classifier, **options)


def test_other_inputs_and_models_are_refused(tmp_path, images, classifier):
    with pytest.raises(ArgumentError, match="images has a int: expected paths and PIL images"):
        embed([3], classifier)
    with pytest.raises(ArgumentError, match="no such file or folder"):
        embed([images / "0.png", tmp_path / "lost.png"], classifier)
    with pytest.raises(ArgumentError, match=r"in training mode.*call model\.eval"):
        embed(images, featx.create_model("test_efficientnet").train())
    with pytest.raises(ArgumentError, match="this extractor has the levels"):
        embed(images, random_extractor("mobilenetv3_small_050"))


def test_an_extractor_of_one_level_is_taken_as_it_is(images, classifier):
    extractor = FeatureExtractWrapper(classifier, [1])
    assert embed(images, extractor, size=SIZE).shape == (6, extractor.feature_info[0].chs)


def test_a_batch_size_that_is_none_is_measured(images, classifier):
    assert np.allclose(
        embed(images, classifier, size=SIZE, batch_size=None),
        embed(images, classifier, size=SIZE),
        rtol=1e-4,
        atol=1e-5,
    )
