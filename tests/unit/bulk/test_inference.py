"""Pooling, sizes, streams, decoders and runtimes do not change the maps."""

from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import random_extractor, randomize, relative_difference
from PIL import Image
from skimage import data
from support.tap_models import Branches
from torch import Tensor

import featx
from featx import ArgumentError, FeatureDataset, FeatureExtractWrapper, InputError, extract
from featx.bulk.config import Resources

SIZE = 48
# Convolutions of one image and of a batch may add in another order.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return random_extractor("mobilenetv3_small_050", out_indices=[1, 4])


@pytest.fixture(scope="module")
def vit() -> FeatureExtractWrapper:
    return random_extractor("vit_tiny_patch16_224", out_indices=[3, 0], output="tokens")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    scenes = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), data.immunohistochemistry()]
    for number, scene in enumerate(scenes):
        Image.fromarray(scene).resize((300 + 40 * number, 320)).save(folder / f"{number}.jpg", quality=95)
    return folder


def direct(model: FeatureExtractWrapper, path: Path, size: int = SIZE) -> list:
    with Image.open(path) as image, torch.inference_mode():
        return list(model(featx.transform(model, size=size)(image)[None]))


def stored(out: Path) -> dict[str, list[Tensor]]:
    """The maps of all images by their ids."""
    dataset = FeatureDataset(out)
    assert dataset.ids
    assert dataset.failed == []
    return {features.id: list(features.maps.values()) for features in dataset}


POOLED = {
    "none": lambda map_: map_,
    "mean": lambda map_: map_.flatten(1).mean(1),
    "max": lambda map_: map_.flatten(1).max(1).values,
    "gem": lambda map_: map_.flatten(1).double().clamp(1e-6).pow(3).mean(1).pow(1 / 3).float(),
}


@pytest.mark.parametrize("pooling", POOLED)
def test_pooling_is_what_its_formula_says(tmp_path, images, extractor, pooling):
    extract(images, extractor, tmp_path, size=SIZE, pooling=pooling)
    for id_, maps in stored(tmp_path).items():
        for ours, map_ in zip(maps, direct(extractor, images / id_), strict=True):
            assert relative_difference(ours, POOLED[pooling](map_[0])) < CLOSE


def test_each_level_has_its_own_pooling(tmp_path, images, extractor):
    extract(images, extractor, tmp_path, size=SIZE, pooling=["max", "none"])
    for id_, (first, last) in stored(tmp_path).items():
        maps = direct(extractor, images / id_)
        assert relative_difference(first, POOLED["max"](maps[0][0])) < CLOSE
        assert relative_difference(last, maps[1][0]) < CLOSE


def test_the_class_token_is_the_first_of_the_prefix_tokens(tmp_path, images, vit):
    extract(images, vit, tmp_path, size=SIZE, pooling=["cls", "mean"], norm=False)
    for id_, (token, mean) in stored(tmp_path).items():
        (tokens, _), (_, map_) = direct(vit, images / id_)
        assert relative_difference(token, tokens[0, 0]) < CLOSE
        assert relative_difference(mean, map_[0].mean((1, 2))) < CLOSE


def test_models_of_other_packages_are_extracted(tmp_path, images):
    model = randomize(featx.create_model("timm/resnet18", features_only=True, out_indices=[2]))
    extract(images, model, tmp_path, size=SIZE)
    for id_, (map_,) in stored(tmp_path).items():
        assert relative_difference(map_, direct(model, images / id_)[0][0]) < CLOSE


def test_a_single_image_has_the_bits_of_a_direct_call(tmp_path, images, extractor):
    extract(images / "0.jpg", extractor, tmp_path, size=SIZE)
    (maps,) = stored(tmp_path).values()
    assert all(
        torch.equal(*pair) for pair in zip(maps, [m[0] for m in direct(extractor, images / "0.jpg")], strict=True)
    )


def tapped() -> FeatureExtractWrapper:
    model = randomize(Branches())
    model.data_config = featx.DataConfig()
    return featx.tap(model, ["deep", "stem"])


def created(name: str, **arch: object) -> FeatureExtractWrapper:
    return randomize(featx.create_model(name, features_only=True, out_indices=[0, 2], **arch))


@pytest.mark.parametrize(
    "made",
    [
        tapped,
        partial(created, "torchvision/resnet18"),
        partial(created, "timm/test_vit", image_size=SIZE),
        partial(created, "transformers/resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    ],
    ids=["tap", "torchvision", "timm", "transformers"],
)
def test_as_many_streams_as_by_default_give_every_image_its_own_maps(tmp_path, images, made):
    model = made()
    assert Resources().settled().streams == 3
    extract(images, model, tmp_path, size=SIZE, batch_size=1)
    for id_, maps in stored(tmp_path).items():
        for ours, map_ in zip(maps, direct(model, images / id_), strict=True):
            assert relative_difference(ours, map_[0]) < CLOSE  # streams share PyTorch's threads, which add up otherwise


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 3])
def test_streams_and_workers_change_no_bit(tmp_path, images, extractor, streams, workers):
    torch.set_num_threads(1)  # for every stream: several threads in one add up in another order
    for name, options in {
        "one": {"streams": 1, "workers": 1},
        "some": {"streams": streams, "workers": workers},
    }.items():
        extract(images, extractor, tmp_path / name, size=SIZE, batch_size=2, rows_per_shard=4, **options)
    one, some = ([path.read_bytes() for path in sorted((tmp_path / n).glob("maps-*"))] for n in ("one", "some"))
    assert one == some
    assert len(one) == 2


def test_the_number_of_threads_is_as_before(tmp_path, images, extractor):
    before = torch.get_num_threads()
    extract(images, extractor, tmp_path, size=SIZE, streams=2)
    assert torch.get_num_threads() == before


@pytest.mark.sweep
def test_processes_change_no_bit(tmp_path, images, extractor):
    for decoders in ("threads", "processes"):
        extract(images, extractor, tmp_path / decoders, size=SIZE, batch_size=2, decoders=decoders, workers=2)
    one, other = ((tmp_path / d / "maps-000000.safetensors").read_bytes() for d in ("threads", "processes"))
    assert one == other


@pytest.mark.parametrize("runtime", ["eager", pytest.param("onnxruntime", marks=pytest.mark.sweep)])
def test_runtimes_give_the_same_maps(tmp_path, images, extractor, runtime):
    extract(images, extractor, tmp_path, size=SIZE, batch_size=2, runtime=runtime, streams=2)
    for id_, maps in stored(tmp_path).items():
        for ours, map_ in zip(maps, direct(extractor, images / id_), strict=True):
            assert relative_difference(ours, map_[0]) < 1e-4  # folded norms multiply in another order


# sizes


@pytest.mark.parametrize(
    ("runtime", "tolerance"), [("eager", CLOSE), pytest.param("openvino", 1e-4, marks=pytest.mark.sweep)]
)
def test_whole_images_keep_their_aspect(tmp_path, images, extractor, runtime, tolerance):
    extract(images, extractor, tmp_path, size=SIZE, keep_aspect=True, batch_size=2, runtime=runtime)
    for id_, maps in stored(tmp_path).items():
        with Image.open(images / id_) as image, torch.inference_mode():
            expected = extractor(featx.transform_whole(extractor, size=SIZE)(image)[None])
        for ours, map_ in zip(maps, expected, strict=True):
            assert relative_difference(ours, map_[0]) < tolerance


def test_whole_images_have_sides_that_the_model_takes(tmp_path, images):
    arch = {"features_only": True, "out_indices": [0], "dynamic_img_size": False}
    model = randomize(featx.create_model("timm/vit_tiny_patch16_224", **arch))
    with pytest.raises(ArgumentError, match="keep_aspect: this model takes images of 224x224 pixels alone"):
        extract(images, model, tmp_path / "out", keep_aspect=True)


def test_whole_images_are_refused_where_a_runtime_takes_one_size(tmp_path, images):
    model = randomize(featx.create_model("mobilevit_xxs", features_only=True, out_indices=[0, 3]))
    with pytest.raises(
        ArgumentError, match="keep_aspect: runtime='onnxruntime' runs this model on images of one size alone"
    ):
        extract(images, model, tmp_path / "out", size=64, keep_aspect=True, runtime="onnxruntime")
    extract(images, model, tmp_path / "out", size=64, keep_aspect=True, runtime="eager")  # nothing was left there


@pytest.mark.parametrize("scaled", [False, True])
def test_jpegs_decoded_at_a_fraction_are_close_and_known_by_their_own_size(tmp_path, extractor, scaled):
    (tmp_path / "in").mkdir()
    Image.fromarray(data.coffee()).resize((1200, 800)).save(tmp_path / "in/a.jpg", quality=95)
    extract(tmp_path / "in", extractor, tmp_path / "out", size=64, pooling="mean", scaled_decode=scaled)
    features = FeatureDataset(tmp_path / "out")[0]
    assert features.size == (1200, 800)
    expected = [map_[0].mean((1, 2)) for map_ in direct(extractor, tmp_path / "in/a.jpg", 64)]
    for ours, mean in zip(features.maps.values(), expected, strict=True):
        cosine = torch.cosine_similarity(ours, mean, 0).item()
        assert cosine > 0.995
        assert (relative_difference(ours, mean) > CLOSE) is scaled


def test_a_size_the_model_does_not_take_is_refused_before_anything_is_written(tmp_path, images, extractor):
    with pytest.raises(InputError, match="smaller than one cell"):
        extract(images, extractor, tmp_path / "out", size=16)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"size": 0}, "size=0: expected a positive number of pixels"),
        ({"dtype": torch.int8}, "dtype='int8': choose one of"),
        ({"batch_size": 0}, "batch_size=0: expected a positive number"),
        ({"workers": 0}, "workers=0: expected a positive number"),
        ({"streams": 0}, "streams=0: expected a positive number"),
        ({"rows_per_shard": 0}, "rows_per_shard=0: expected a positive number"),
        ({"runtime": "fast"}, "runtime='fast': choose one of"),
        ({"decoders": "fibres"}, "decoders='fibres': choose 'threads' or 'processes'"),
        ({"out_indices": [1]}, "out_indices chooses levels of a model given by name"),
        ({"pooling": ["mean"]}, r"pooling=\('mean',\): expected one for all levels, or one for each of 2"),
    ],
)
def test_arguments_that_are_none_are_refused(tmp_path, images, extractor, options, problem):
    with pytest.raises(ArgumentError, match=problem):
        extract(images, extractor, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path, images, extractor):
    with pytest.raises(ArgumentError, match="device='cuda': there is no GPU that PyTorch can use here"):
        extract(images, extractor, tmp_path / "out", device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_maps(tmp_path, images, extractor):
    extract(images, extractor, tmp_path, size=SIZE, device="cuda", batch_size=2)
    assert next(extractor.parameters()).device.type == "cpu"  # the caller's model stays where it is
    for id_, maps in stored(tmp_path).items():
        for ours, map_ in zip(maps, direct(extractor, images / id_), strict=True):
            assert relative_difference(ours, map_[0]) < 1e-2  # TF32 rounds to ten bits


def test_a_name_takes_its_published_weights(tmp_path, images, monkeypatch, extractor):
    from featx.bulk import extractor as made

    asked = []
    monkeypatch.setattr(made, "create_model", lambda *words, **options: asked.append((words, options)) or extractor)
    extract(images, "mobilenetv3_small_050", tmp_path, size=SIZE, out_indices=[1, 4])
    assert asked == [
        (("mobilenetv3_small_050", True), {"features_only": True, "out_indices": [1, 4], "output": "list"})
    ]
