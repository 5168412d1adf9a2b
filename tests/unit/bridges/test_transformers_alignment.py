"""Spatial alignment of the maps of transformers' models at all accepted sizes, and refusals of the other sizes."""

import pytest
import torch
from conftest import images, randomize
from support.transformers_types import EVERY, VIT, assert_same, bridge, extracted, model_of, pyramid_of, transformers

import featx
from featx import FeatureExtractWrapper, InputError
from featx.place_proof import misplaced, proof_sizes

FEW = ["hiera", "swin", "dinov2", "segformer", "rf_detr_dinov2"]

# Further settings of types whose code depends on them.
WINDOWS = {
    "rf_detr_dinov2": {"num_windows": 2},
    "vitdet": {"window_size": 3, "window_block_indices": [0]},
    "sam_vision_model": {"window_size": 3},
    "lw_detr_vit": {"window_block_indices": [0]},
    "swin": {"window_size": 3},
    "swinv2": {"window_size": 3},
}
CASES = [(kind, {}) for kind in EVERY] + list(WINDOWS.items())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param(kind, settings, marks=[] if kind in FEW else [pytest.mark.bridges], id=f"{kind} {settings}")
        for kind, settings in CASES
    ],
)
def test_cells_of_every_type_lie_as_the_pixels_do(kind, settings):
    torch.manual_seed(0)
    extractor = FeatureExtractWrapper(bridge.build(kind, **{**EVERY[kind][0], **settings}))
    sizes = proof_sizes(extractor)
    assert sizes
    assert misplaced(extractor, sizes) == []


def test_a_backbone_of_hiera_gives_the_maps_of_the_model_it_is_made_of():
    assert "scrambled" in featx.verify(model_of("hiera")).corrections[-1]
    model, x = transformers.HieraForImageClassification(model_of("hiera").config), images(2, 3, 64, 64)
    randomize(model)
    with torch.no_grad():
        states = model(x, output_hidden_states=True).reshaped_hidden_states
    assert_same(extracted(model, x), [state.permute(0, 3, 1, 2) for state in states[1:]])


def test_images_whose_last_cells_mobilevitv2_would_lose_are_refused():
    pyramid = pyramid_of("mobilevitv2")
    assert FeatureExtractWrapper(pyramid).size_divisor == 64
    with pytest.raises(InputError, match=r"takes no images of 64x96 pixels: .* choose sides that are multiples of 64"):
        extracted(pyramid, images(1, 3, 64, 96))
    assert len(extracted(pyramid, images(1, 3, 64, 128))) == 5


def test_images_that_are_not_square_are_refused_by_rf_detr_with_windows():
    model = randomize(bridge.build("rf_detr_dinov2", **VIT, num_windows=2))
    with pytest.raises(InputError, match=r"takes no images of 32x64 pixels: .* choose square images, or num_windows=1"):
        extracted(model, images(1, 3, 32, 64))
    assert extracted(model, images(1, 3, 64, 64))[0].shape == (1, 16, 8, 8)
    assert extracted(pyramid_of("rf_detr_dinov2"), images(1, 3, 32, 64))[0].shape == (1, 16, 4, 8)
