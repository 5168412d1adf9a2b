"""Images with any number of channels, such as those of satellites, for models with as many input channels."""

import io
import sys

import numpy as np
import pytest
import tifffile
import torch
from conftest import relative_difference
from PIL import Image
from support.extraction import CLOSE, stored

import featx
from featx import ArgumentError, DataConfig, FeatxError, ImageError
from featx.bulk.decoder import bands

RNG = np.random.default_rng(0)
MEAN, STD = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.4, 0.3, 0.2, 0.1)
PIXELS = RNG.integers(0, 65536, (48, 80, 5), dtype=np.uint16)


def extractor(count: int = 5, **config: object) -> featx.FeatureExtractWrapper:
    torch.manual_seed(0)
    model = featx.create_model("mobilenetv3_small_050", in_chans=count)
    model.data_config = DataConfig(
        (32, 32), MEAN[:count], STD[:count], **{"crop": 1.0, "interpolation": "bilinear", **config}
    )
    return featx.FeatureExtractWrapper(model, [1, 3]).eval()


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **{"photometric": "minisblack", **options})
    return file.getvalue()


def resized(pixels: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """(1, chs, h, w) of (h, w, chs) from 0 to 1, by PyTorch's own filter, normalized."""
    images = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    images = torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
    count = images.shape[1]
    mean, std = (torch.tensor(values[:count])[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (tiff(PIXELS, planarconfig="contig"), PIXELS / 65535),
        (tiff(PIXELS.transpose(2, 0, 1).copy(), planarconfig="separate"), PIXELS / 65535),
        (tiff(PIXELS.transpose(2, 0, 1).copy(), metadata=None), PIXELS / 65535),
        (tiff(PIXELS, planarconfig="contig", tile=(16, 16), compression="zlib"), PIXELS / 65535),
        (tiff((PIXELS >> 8).astype(np.uint8), planarconfig="contig"), (PIXELS >> 8) / 255),
        (tiff((PIXELS / 1e4).astype(np.float32), planarconfig="contig"), PIXELS / 1e4),
        (tiff(PIXELS, planarconfig="contig", bigtiff=True, byteorder=">"), PIXELS / 65535),
    ],
    ids=["interleaved", "planes", "pages", "tiles", "8 bits", "floats", "large"],
)
def test_bands_are_read_from_0_to_1_however_they_are_stored(content, values):
    assert np.abs(bands(content, 5, None) / 255 - values).max() < 1e-5


def test_maps_are_those_of_the_bands_resized_and_normalized(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(PIXELS, planarconfig="contig"))
    net = extractor(crop_mode="squash")
    summary = featx.extract(tmp_path / "a.tif", net, tmp_path / "out", batch_size=2)
    assert (summary.written, summary.failed) == (1, {})
    assert featx.FeatureDataset(tmp_path / "out")[0].size == (80, 48)
    with torch.inference_mode():
        expected = net(resized(PIXELS / 65535, (32, 32)))
    for ours, map_ in zip(stored(tmp_path / "out")["a.tif"], expected, strict=True):
        assert relative_difference(ours, map_[0]) < 10 * CLOSE  # the filters of Pillow and PyTorch add otherwise


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_bands_keep_their_aspect_and_are_cropped_as_pictures_are(tmp_path, keep_aspect):
    (tmp_path / "a.tif").write_bytes(tiff(PIXELS, planarconfig="contig"))
    net = extractor()
    featx.extract(tmp_path / "a.tif", net, tmp_path / "out", keep_aspect=keep_aspect)
    whole = resized(PIXELS / 65535, (32, 53))
    with torch.inference_mode():
        expected = net(whole if keep_aspect else whole[..., 10:42].contiguous())
    for ours, map_ in zip(stored(tmp_path / "out")["a.tif"], expected, strict=True):
        assert relative_difference(ours, map_[0]) < 10 * CLOSE


@pytest.mark.parametrize(("count", "mode"), [(4, "RGBA"), (2, "LA")])
def test_pictures_of_as_many_channels_are_read_as_they_are_stored(count, mode):
    pixels = (PIXELS[..., :count] >> 8).astype(np.uint8)
    file = io.BytesIO()
    Image.frombytes(mode, (80, 48), pixels.tobytes()).save(file, "PNG")
    assert np.array_equal(bands(file.getvalue(), count, None), pixels.astype(np.float32))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(PIXELS[..., :4], planarconfig="contig"), "it has 4 channels, and the model takes 5"),
        (tiff(PIXELS[..., 0]), "it has 1 channels, and the model takes 5"),
        (tiff(PIXELS.astype(np.int32), planarconfig="contig"), "pixels of int32 have no agreed range: convert them"),
        (
            tiff(np.zeros((3, 5, 16, 16), np.uint8)),
            r"its axes are \w+, of \(3, 5, 16, 16\): expected rows, columns and",
        ),
        (tiff(PIXELS, planarconfig="contig")[:300], "tifffile cannot decode it: "),
        (tiff(np.zeros((100, 100, 5), np.uint8), planarconfig="contig"), "100x100 pixels are more than 9999"),
        (b"a letter", "not an image in any format"),
    ],
)
def test_bands_that_cannot_be_taken_are_refused_with_the_reason(content, reason):
    with pytest.raises(ImageError, match=reason):
        bands(content, 5, 9999)


def test_without_tifffile_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImageError, match=r"pip install 'featx\[bands\]'"):
        bands(b"II*\0" + bytes(20), 5, None)


def test_a_model_whose_statistics_are_of_other_channels_is_refused_with_what_to_do(tmp_path):
    PIXELS[..., 0].tofile(tmp_path / "a.tif")
    net = featx.create_model("mobilenetv3_small_050", in_chans=5, features_only=True).eval()
    with pytest.raises(
        ArgumentError, match="takes 5 channels and its data_config has 3 means: give the model a DataConf"
    ):
        featx.extract(tmp_path / "a.tif", net, tmp_path / "out")
    with pytest.raises(
        FeatxError, match="takes 5 channels: a PIL image has 3, or 1 if it is gray; featx extract takes"
    ):
        featx.transform(extractor())


def test_the_picture_of_a_folder_of_bands_is_gray(tmp_path):
    from featx.bulk.preview import GONE, _model_view

    (tmp_path / "a.tif").write_bytes(tiff(PIXELS, planarconfig="contig"))
    featx.extract(tmp_path / "a.tif", extractor(), tmp_path / "out")
    dataset = featx.FeatureDataset(tmp_path / "out")
    seen = _model_view(str(tmp_path / "a.tif"), dataset[0], dataset.meta["decided"])
    assert seen.getcolors() == [(80 * 48, tuple(bytes.fromhex(GONE[1:])))]
