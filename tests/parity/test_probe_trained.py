"""Probes rank trained weights over random ones, at every task that has a right answer."""

import pytest
import torch
from support.probe_images import save_crops, save_mosaics
from support.trained_networks import dinov2_small, lite0

import featx
from featx.probe import ComputedMaps, ProbeOptions, measure

pytestmark = pytest.mark.trained

NAMES = {"dinov2": "vit_small_patch14_dinov2", "lite0": "tf_efficientnet_lite0"}
TRAINED = {"dinov2": dinov2_small, "lite0": lambda **arguments: lite0(features_only=True, **arguments)}
LEVELS, SIZES = {"dinov2": [5], "lite0": [3]}, {"dinov2": 126, "lite0": 128}


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    return save_crops(tmp_path_factory.mktemp("crops"), per_class=5)


@pytest.fixture(scope="module")
def mosaics(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mosaics")
    save_mosaics(folder / "images", folder / "masks", 14)
    return folder


def both(network, images):
    """The maps of trained and of random weights."""
    torch.manual_seed(0)
    random = featx.create_model(NAMES[network], features_only=True, out_indices=LEVELS[network]).eval()
    trained = TRAINED[network](out_indices=LEVELS[network])
    return [ComputedMaps(images, model, size=SIZES[network], device="cpu") for model in (trained, random)]


@pytest.mark.parametrize("network", NAMES)
def test_trained_weights_score_above_random_ones_on_photographs(network, crops):
    report = measure(both(network, crops), tasks=["knn", "linear", "correspondence"], options=ProbeOptions(pairs=12))
    trained, random = (row.scores for row in report.rows)
    for task in report.tasks:
        assert trained[task].low > random[task].high, task


@pytest.mark.parametrize("network", NAMES)
def test_trained_weights_score_above_random_ones_on_mosaics_of_textures(network, mosaics):
    report = measure(both(network, mosaics / "images"), masks=mosaics / "masks", tasks=["segmentation"])
    trained, random = (row.scores["segmentation"] for row in report.rows)
    assert trained.low > random.high
