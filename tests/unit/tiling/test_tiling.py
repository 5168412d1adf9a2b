"""Maps of tiles: equal to those of the whole image where cells depend on a part of it, and never without a border."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import randomize
from PIL import Image
from torch import Tensor, nn

import featx
from featx import ArgumentError, FeatureExtractWrapper, InputError
from featx.tiling import ArrayWindows, receptive_margins, tiled

# by model: levels with a small receptive field
LOCAL = {
    "resnet18": [0, 1, 2],
    "resnest14d": [0],
    "resnext50_32x4d": [1],
    "mobilenetv2_035": [0, 1, 2],
    "tf_efficientnet_lite0": [1, 2],
    "convnext_atto": [0, 1],
    "regnetx_002": [0, 1],
    "repvgg_a0": [0, 1],
    "hrnet_w18_small": [0, 1],
    "torchvision/resnet18": [1, 2],
    "timm/test_resnet": [0, 1],
}
GLOBAL = {
    "mobilenetv3_small_050": [0, 1, 2],
    "convnextv2_atto": [0, 1],
    "vit_tiny_patch16_224": [3],
    "regnety_002": [1],
}


def extractor_of(name: str, levels: list[int]) -> FeatureExtractWrapper:
    return randomize(featx.create_model(name, features_only=True, out_indices=levels)).eval()


def image_of(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def differences(extractor: FeatureExtractWrapper, stitched: list[Tensor], image: Tensor) -> list[float]:
    maps = extractor(image)
    assert [m.shape for m in stitched] == [m.shape for m in maps]
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(stitched, maps, strict=True)]


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("rest", [0, 1, 7])
def test_stitched_maps_equal_those_of_the_whole_image(name, rest):
    extractor = extractor_of(name, LOCAL[name])
    margins = receptive_margins(extractor)
    assert margins is not None
    side = max(margins.top + margins.bottom, margins.left + margins.right) + 160
    model = tiled(extractor, tile=side)
    assert model.is_exact
    image = image_of(side + 32 + rest, 2 * side - 16 + rest)
    assert max(differences(extractor, model(image), image)) <= 1e-5


@pytest.mark.parametrize("name", GLOBAL)
def test_cells_that_depend_on_the_whole_image_are_blended(name):
    extractor = extractor_of(name, GLOBAL[name])
    assert receptive_margins(extractor) is None
    model = tiled(extractor, tile=192)
    image = image_of(389, 250)
    assert not model.is_exact
    assert all(0 < difference < 1 for difference in differences(extractor, model(image), image))


def test_windows_of_a_swin_are_not_taken_for_a_receptive_field():
    """Its shifted windows have margins, but tiles would have to start at windows."""
    extractor = extractor_of("torchvision/swin_t", [0])
    model = tiled(extractor, tile=256)
    image = image_of(300, 400)
    assert [m.shape[2:] for m in model(image)] == [(75, 100)]
    assert not model.is_exact


class Net(nn.Module):
    """Two convolutions with a known receptive field."""

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d, reduction: int):
        super().__init__()
        self.first, self.second = first, second
        self.feature_info = [{"chs": 4, "reduction": reduction, "name": "second"}]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize(
    ("first", "second", "reduction", "expected"),
    [
        # (before, after) its own pixels; a kernel k with padding p reads from -p to k - p
        (nn.Conv2d(3, 4, 5, 1, 2), nn.Conv2d(4, 4, 3, 1, 1), 1, (3, 3)),
        (nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), 4, (4, 0)),
        (nn.Conv2d(3, 4, 7, 2, 3), nn.Conv2d(4, 4, 3, 1, 1, dilation=1), 2, (6, 4)),
        (nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 1), 4, (0, 0)),
        (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=12, dilation=12), 1, (12, 12)),
    ],
)
def test_margins_are_those_of_the_kernels(first, second, reduction, expected):
    extractor = FeatureExtractWrapper(Net(first, second, reduction)).eval()
    margins = receptive_margins(extractor)
    assert margins is not None
    assert (margins.top, margins.bottom) == (margins.left, margins.right) == expected


def test_every_cell_of_a_blend_has_weights_of_one():
    """Maps that do not depend on the tile are unchanged, at the borders of the image and of the tiles."""
    conv = nn.Conv2d(3, 4, 8, 8)
    conv.feature_info = [{"chs": 4, "reduction": 8, "name": ""}]
    net = nn.Sequential(conv)
    net.feature_info = [{"chs": 4, "reduction": 8, "name": "0"}]
    extractor = FeatureExtractWrapper(net).eval()
    image = image_of(200, 328)
    for overlap in (0, 8, 20, 24):
        model = tiled(extractor, tile=64, overlap=overlap)
        assert not model.is_exact
        assert max(differences(extractor, model(image), image)) <= 1e-6


def test_an_image_that_fits_into_a_tile_is_extracted_as_a_whole():
    extractor = extractor_of("vit_tiny_patch16_224", [3])
    for size in [(100, 130), (512, 512), (97, 512)]:
        image = image_of(*size)
        assert max(differences(extractor, tiled(extractor)(image), image)) <= 1e-6


def test_pixels_are_normalized_as_the_weights_expect_and_only_windows_are_read():
    extractor = extractor_of("resnet18", [0, 1])
    photo = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    transform = featx.transform_whole(extractor)
    expected = transform(Image.fromarray(photo))

    class Watched:
        shape, dtype, largest = photo.shape, photo.dtype, 0

        def __getitem__(self, window):
            pixels = photo[window]
            Watched.largest = max(Watched.largest, pixels.shape[0] * pixels.shape[1])
            return pixels

    windows = ArrayWindows(Watched(), extractor.data_config)
    assert torch.equal(ArrayWindows(photo, extractor.data_config).read(0, 0, 300, 420), _normalized(photo, extractor))
    stitched = tiled(extractor, tile=160)(windows)
    assert Watched.largest <= 160 * 160
    assert expected.shape[0] == 3
    assert max(differences(extractor, stitched, _normalized(photo, extractor)[None])) <= 1e-5


def _normalized(photo: np.ndarray, extractor: FeatureExtractWrapper) -> Tensor:
    config = extractor.data_config
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    return (torch.from_numpy(photo).permute(2, 0, 1).float() / 255 - mean) / std


def test_bgr_models_get_their_order():
    config = featx.DataConfig(channel_order="bgr", mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert torch.allclose(ArrayWindows(pixels, config).read(0, 0, 1, 1).flatten(), torch.tensor([-0.3, -0.2, -0.1]))


def test_maps_are_written_to_a_folder_and_mapped(tmp_path):
    extractor = extractor_of("resnet18", [2, 0])
    image = image_of(333, 210)
    model = tiled(extractor, tile=224)
    maps = model(image, tmp_path / "maps")
    assert max(differences(extractor, maps, image)) <= 1e-5
    stored = [np.load(tmp_path / "maps" / f"level_{i}.npy", mmap_mode="r") for i in range(2)]
    for array, map_ in zip(stored, maps, strict=True):
        assert np.array_equal(array, map_.numpy())


def test_threads_share_a_tiled_extractor():
    extractor = extractor_of("resnet18", [0, 1])
    model = tiled(extractor, tile=160)
    images = [image_of(200 + 8 * i, 180, seed=i) for i in range(6)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(model, images))
    for image, maps in zip(images, results, strict=True):
        assert max(differences(extractor, maps, image)) <= 1e-5


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda e: tiled(e, tile=64), ArgumentError, r"nothing is left: choose tile=\d+ or more"),
        (lambda e: tiled(e, tile=0), ArgumentError, "expected the side of a tile in pixels"),
        (lambda e: tiled(e, overlap=-1), ArgumentError, "expected 'auto' or a number of pixels"),
        (lambda e: tiled(e, 64, overlap=40)(image_of(99, 99)), ArgumentError, "at most half of the tile"),
        (lambda e: tiled(e.train()), ArgumentError, r"call \.eval\(\) first"),
        (lambda e: tiled(featx.create_model("resnet18")), ArgumentError, "features_only=True builds one"),
        (lambda e: tiled(e)(torch.zeros(2, 3, 64, 64)), InputError, r"expected one image \(1, C, H, W\)"),
        (
            lambda e: ArrayWindows(np.zeros((4, 4), np.uint8), e.data_config),
            InputError,
            r"expected an array \(height, width, 3\) of uint8",
        ),
    ],
)
def test_what_cannot_be_tiled_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(extractor_of("resnet18", [0, 1, 2]))


def test_the_advised_tile_works():
    extractor = extractor_of("resnet18", [0, 1, 2])
    with pytest.raises(ArgumentError) as refused:
        tiled(extractor, tile=64)
    side = int(str(refused.value).partition("choose tile=")[2].split()[0])
    image = image_of(side + 40, side + 100)
    assert max(differences(extractor, tiled(extractor, tile=side)(image), image)) <= 1e-5


MEMORY = """
import sys, tempfile
import numpy as np, torch, featx
from featx.tiling import ArrayWindows
torch.set_num_threads(1)
side = int(sys.argv[1])
folder = tempfile.mkdtemp()
pixels = np.lib.format.open_memmap(f"{folder}/image.npy", mode="w+", dtype=np.uint8, shape=(side, side, 3))
extractor = featx.create_model("resnet18", features_only=True, out_indices=[1]).eval()
model = featx.tiled(extractor, tile=256)
(map_,) = model(ArrayWindows(pixels, extractor.data_config), f"{folder}/maps")
assert map_.shape[2:] == (-(-side // 4),) * 2
anonymous = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")][0]
print(anonymous)
"""


@pytest.mark.sweep
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_image():
    """Pages of mapped files can be dropped at any time; anonymous memory cannot."""
    used = [
        int(
            subprocess.run([sys.executable, "-c", MEMORY, str(side)], check=True, capture_output=True, text=True).stdout
        )
        for side in (1024, 4096)
    ]
    assert used[1] < used[0] + 64 * 1024  # KiB; the larger image has 48 MiB of pixels, its map 256 MiB
