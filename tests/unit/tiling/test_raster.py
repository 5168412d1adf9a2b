"""Windows of raster files, compared with their pixels, and their coordinates."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import featx
from featx import ArgumentError, DataConfig, ImageError, MissingPackageError
from featx.tiling import ArrayWindows, RasterWindows

rasterio = pytest.importorskip("rasterio")
from rasterio.transform import Affine  # noqa: E402

CONFIG = DataConfig()
TRANSFORM = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 4_000_000.0)  # 10 m pixels, north up


def raster(path, pixels, **profile):
    """Write bands (bands, height, width) as a tiled GeoTIFF."""
    count, height, width = pixels.shape
    profile = {"crs": "EPSG:32633", "transform": TRANSFORM, "tiled": True, "blockxsize": 64, "blockysize": 64} | profile
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype, **profile
    ) as file:
        file.write(pixels)
    return path


def pixels_of(bands, high=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, high, (bands, 200, 300), dtype=dtype)


def test_windows_are_those_of_the_array(tmp_path):
    pixels = pixels_of(3)
    windows = RasterWindows(raster(tmp_path / "a.tif", pixels), CONFIG)
    array = ArrayWindows(pixels.transpose(1, 2, 0), CONFIG)
    assert windows.size == array.size == (200, 300)
    for window in [(0, 0, 200, 300), (17, 101, 60, 90), (150, 250, 100, 100)]:
        torch.testing.assert_close(windows.read(*window), array.read(*window))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_photographs_are_read_as_pillow_decodes_them(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    smooth = np.linspace(0, 255, 200 * 300 * 3).reshape(200, 300, 3).astype(np.uint8)
    Image.fromarray(smooth).save(path)
    expected = ArrayWindows(np.asarray(Image.open(path)), CONFIG).read(0, 0, 200, 300)
    found = RasterWindows(path, CONFIG).read(0, 0, 200, 300)
    assert (found - expected).abs().max() <= 3 / 255 / min(CONFIG.std)  # two decoders of JPEG round differently


def test_a_fresh_process_reads_files(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    code = f"import featx; print(featx.tiling.RasterWindows({str(tmp_path / 'a.png')!r}, featx.DataConfig()).size)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "(20, 30)\n"
    )


def test_bands_are_chosen_and_scaled(tmp_path):
    pixels = pixels_of(5, 10_000, np.uint16)
    path = raster(tmp_path / "a.tif", pixels)
    config = DataConfig(mean=(0.0, 0.1), std=(1.0, 0.5))
    found = RasterWindows(path, config, bands=(4, 2), scale=10_000).read(3, 5, 20, 30)
    expected = [pixels[3] / 10_000, (pixels[1] / 10_000 - 0.1) / 0.5]
    torch.testing.assert_close(found, torch.tensor(np.stack(expected)[:, 3:23, 5:35], dtype=torch.float32))
    whole = RasterWindows(path, config).read(0, 0, 1, 1)[0, 0, 0]
    torch.testing.assert_close(float(whole), pixels[0, 0, 0] / 65535, check_dtype=False)


def test_maps_keep_their_coordinates(tmp_path):
    windows = RasterWindows(raster(tmp_path / "a.tif", pixels_of(3)), CONFIG)
    assert windows.transform == TRANSFORM[:6]
    assert rasterio.crs.CRS.from_wkt(windows.crs).to_epsg() == 32633
    a, b, c, d, e, f = windows.transform_of(8)
    for column, row in [(0, 0), (3, 5)]:
        assert (a * column + b * row + c, d * column + e * row + f) == TRANSFORM @ (8 * column, 8 * row)


def test_a_photograph_has_pixels_as_coordinates(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    windows = RasterWindows(tmp_path / "a.png", CONFIG)
    assert (windows.crs, windows.transform_of(4)) == ("", (4.0, 0.0, 0.0, 0.0, 4.0, 0.0))


def test_maps_of_a_file_are_those_of_its_pixels(tmp_path):
    extractor = featx.create_model("resnet18", features_only=True, out_indices=[0, 1]).eval()
    pixels = pixels_of(3)
    windows = RasterWindows(raster(tmp_path / "a.tif", pixels), extractor.data_config)
    maps = featx.tiled(extractor, tile=160)(windows)
    with torch.no_grad():
        expected = extractor(ArrayWindows(pixels.transpose(1, 2, 0), extractor.data_config).read(0, 0, 200, 300)[None])
    for found, true in zip(maps, expected, strict=True):
        assert (found - true).abs().max() <= 1e-5 * true.abs().max()


def test_threads_read_their_own_windows(tmp_path):
    windows = RasterWindows(raster(tmp_path / "a.tif", pixels_of(3)), CONFIG)
    places = [(row, column, 40, 50) for row in range(0, 160, 20) for column in range(0, 250, 25)]
    expected = [windows.read(*place) for place in places]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(lambda place: windows.read(*place), places), expected))


def test_only_the_blocks_of_a_window_are_read(tmp_path):
    """The other blocks are overwritten with bytes that cannot be decompressed."""
    path = raster(tmp_path / "a.tif", pixels_of(3), compress="deflate")
    expected = RasterWindows(path, CONFIG).read(0, 0, 60, 60)
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4 :] = bytes(len(content) - len(content) * 3 // 4)
    path.write_bytes(content)
    windows = RasterWindows(path, CONFIG)
    assert torch.equal(windows.read(0, 0, 60, 60), expected)
    with pytest.raises(ImageError, match=r"a\.tif cannot be read at row 150, column 250: "):
        windows.read(150, 250, 50, 50)


def test_bands_that_do_not_fit_are_refused_with_those_that_do(tmp_path):
    path = raster(tmp_path / "a.tif", pixels_of(1))
    with pytest.raises(ArgumentError, match=r"3 channels, and .* has 1 bands, got bands=\[1, 2, 3\].*\[1, 1, 1\]"):
        RasterWindows(path, CONFIG)
    gray = RasterWindows(path, CONFIG, bands=[1, 1, 1]).read(0, 0, 2, 2)
    assert gray.shape == (3, 2, 2)


def test_other_dtypes_need_a_scale(tmp_path):
    path = raster(tmp_path / "a.tif", pixels_of(3).astype(np.float32))
    with pytest.raises(ArgumentError, match=r"has pixels of float32: pass scale="):
        RasterWindows(path, CONFIG)
    assert RasterWindows(path, CONFIG, scale=255).size == (200, 300)


def test_what_is_not_a_raster_of_its_own_is_refused(tmp_path):
    (tmp_path / "text.tif").write_text("no image")
    inner = raster(tmp_path / "a.tif", pixels_of(3))
    (tmp_path / "b.vrt").write_text(
        f'<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{inner}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    for name in ("text.tif", "b.vrt"):
        with pytest.raises(ImageError, match=rf"{name} cannot be read as GTiff, PNG, JPEG, JP2OpenJPEG: "):
            RasterWindows(tmp_path / name, CONFIG)
    for address in ("/vsicurl/http://127.0.0.1:9/a.tif", "http://127.0.0.1:9/a.tif", tmp_path):
        with pytest.raises(ImageError, match="is not a file"):
            RasterWindows(address, CONFIG)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(MissingPackageError, match=r"rasterio: pip install 'featx\[geo\]'"):
        RasterWindows(tmp_path / "a.tif", CONFIG)


def test_a_truncated_file_is_reported(tmp_path):
    path = raster(tmp_path / "a.tif", pixels_of(3))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"a\.tif cannot be read"):
        RasterWindows(path, CONFIG).read(150, 250, 50, 50)
