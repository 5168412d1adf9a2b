"""`upsample`: cells stay where the levels state, at any size, with any upsampler."""

import pytest
import torch
import torch.nn.functional as F
from conftest import images, random_extractor, relative_difference
from torch import Tensor, nn

import featx
from featx import ArgumentError, ContractError, FeatureInfo, InputError
from featx.upsampling import Bilinear, JointBilateral, MapFirst

LEVEL = [FeatureInfo(2, 16, "blocks.0")]


def ramp(cells: int, reduction: int) -> Tensor:
    """(1, 2, cells, cells): the row and column in pixels of the center of each cell."""
    centers = (torch.arange(cells) + 0.5) * reduction
    return torch.stack(torch.meshgrid(centers, centers, indexing="ij"))[None]


@pytest.mark.parametrize("side", [64, 63, 65, 70, 79])
@pytest.mark.parametrize("rounding", ["up", "down"])
def test_a_position_is_interpolated_to_the_positions_of_pixels(side, rounding):
    """A map of positions, bilinear, is the position of each pixel: also where the last cell covers padding."""
    cells = -(-side // 16) if rounding == "up" else side // 16
    (dense,) = featx.upsample([ramp(cells, 16)], torch.zeros(1, 3, side, side), LEVEL, Bilinear())
    last = min(side, 16 * cells - 8)  # beyond the centers of cells there is nothing to interpolate between
    pixels = torch.arange(8, last) + 0.5
    assert dense.shape == (1, 2, side, side)
    torch.testing.assert_close(dense[0, 0, 8:last, 20], pixels, rtol=1e-6, atol=0)
    torch.testing.assert_close(dense[0, 1, 20, 8:last], pixels, rtol=1e-6, atol=0)


def test_maps_of_all_levels_have_the_size_of_the_image():
    extractor, x = random_extractor("resnet18", out_indices=[3, 0]), images(2, 3, 75, 97)
    with torch.no_grad():
        dense = featx.upsample(extractor(x), x, extractor.feature_info)
    assert [tuple(map_.shape) for map_ in dense] == [(2, 256, 75, 97), (2, 64, 75, 97)]


def test_guided_maps_are_those_of_joint_bilateral_upsampling_on_whole_cells():
    x, map_ = images(2, 3, 70, 65), images(2, 2, 5, 5, seed=1)
    (dense,) = featx.upsample([map_], x, LEVEL)
    whole = F.pad(x, (0, 15, 0, 10), mode="replicate")
    assert torch.equal(dense, JointBilateral()(whole, map_, (80, 80))[:, :, :70, :65])


@pytest.mark.parametrize("size", [(32, 48), (70, 65), (111, 90)])
def test_another_size_is_possible(size):
    x, map_ = images(2, 3, 70, 65), ramp(5, 16).expand(2, -1, -1, -1)
    (dense,) = featx.upsample([map_], x, LEVEL, Bilinear(), size=size)
    assert dense.shape == (2, 2, *size)
    # pixels of the result in those of the image; a side of whole cells is rounded to pixels of the result
    middle = (size[0] // 2 + 0.5) * 70 / size[0]
    assert abs(dense[0, 0, size[0] // 2, 10].item() - middle) <= 0.5 * 70 / size[0]


class Trained(nn.Module):
    """As AnyUp and JAFAR: called with image, map and size."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(3.0))

    def forward(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> Tensor:
        assert image.shape[2] % features.shape[2] == image.shape[3] % features.shape[3] == 0
        return self.gain * F.interpolate(features, output_size)


def test_a_trained_upsampler_is_called_with_whole_cells():
    x, map_ = images(1, 3, 70, 65), images(1, 2, 5, 5, seed=1)
    (dense,) = featx.upsample([map_], x, LEVEL, Trained())
    nearest = map_.repeat_interleave(16, 2).repeat_interleave(16, 3)
    assert torch.equal(dense, 3 * nearest[:, :, :70, :65])


def test_a_module_that_takes_the_map_first_is_adapted():
    """As FeatUp, which returns 16 times the map's size whatever the patches, and LoftUp, which returns the image's."""

    def sixteenfold(map_: Tensor, images: Tensor) -> Tensor:
        assert images.shape[1] == 3
        return F.interpolate(map_, scale_factor=16)

    map_ = images(1, 2, 5, 5, seed=1)
    (dense,) = featx.upsample([map_], images(1, 3, 70, 70), [FeatureInfo(2, 14, "blocks.0")], MapFirst(sixteenfold))
    expected = F.interpolate(sixteenfold(map_, images(1, 3, 8, 8)), (70, 70), mode="bilinear", antialias=True)
    assert torch.equal(dense, expected)


def test_gradients_reach_the_weights_of_the_extractor():
    extractor, x = random_extractor("vit_tiny_patch16_224", out_indices=[0], depth=1), images(1, 3, 40, 50)
    (dense,) = featx.upsample(extractor(x), x, extractor.feature_info)
    dense.square().mean().backward()
    gradient = extractor.get_parameter("patch_embed.proj.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_a_map_is_not_changed_where_one_cell_is_one_pixel():
    x, map_ = images(1, 3, 9, 7), images(1, 2, 9, 7, seed=1)
    (dense,) = featx.upsample([map_], x, [FeatureInfo(2, 1, "conv")], JointBilateral(0))
    assert relative_difference(dense, map_) == 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x: featx.upsample([m, m], x, LEVEL), InputError, "2 maps for 1 levels: pass the extractor's"),
        (lambda m, x: featx.upsample([m], x[0], LEVEL), InputError, r"expected images \(N, C, H, W\)"),
        (lambda m, x: featx.upsample([m[:, :1]], x, LEVEL), InputError, r"got a map \(1, 1, 4, 4\) for 1 images"),
        (lambda m, x: featx.upsample([m], x[:, :, :40], LEVEL), InputError, r"expected \(1, 2, 3, 4\) at 1/16"),
        (lambda m, x: featx.upsample([None], x, LEVEL), InputError, "got a map NoneType"),
        (lambda m, x: featx.upsample([m], x, LEVEL, size=(0, 4)), ArgumentError, r"expected \(height, width\)"),
        (
            lambda m, x: featx.upsample([m], x, LEVEL, lambda image, map_, size: map_),
            ContractError,
            r"returned \(1, 2, 4, 4\), expected \(1, 2, 64, 64\): .* needs MapFirst",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(images(1, 2, 4, 4), images(1, 3, 64, 64))
