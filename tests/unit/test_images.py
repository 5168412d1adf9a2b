"""Image files are found and opened as viewers show them."""

import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from featx import ArgumentError, ImageError
from featx.images import as_image, find_images, open_image


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(data.astronaut()[:96, 160:288])


def pixels(image: Image.Image) -> np.ndarray:
    """(height, width, 3) as signed numbers, so that differences do not wrap around."""
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def gray(height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (height, width), dtype=np.uint16)


def write_png_of_16_bits(path: Path, colors: np.ndarray) -> None:
    """(height, width, 3) of uint16 as a PNG file, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = colors.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in colors)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_image_files_are_found_in_nested_folders_in_sorted_order(tmp_path):
    touch(tmp_path, "b.png", "a/z.jpg", "a/b/c.tiff", "c.webp")
    assert find_images([tmp_path]) == [tmp_path / name for name in ("a/b/c.tiff", "a/z.jpg", "b.png", "c.webp")]


def test_endings_are_known_in_capitals_too(tmp_path):
    touch(tmp_path, "A.JPG", "b.Png")
    assert [path.name for path in find_images([tmp_path])] == ["A.JPG", "b.Png"]


@pytest.mark.parametrize("name", ["notes.txt", "jpg", ".png", "a.jpg.bak", "paper.pdf", "maps.h5", "film.mpg"])
def test_a_file_that_is_not_image_by_its_ending_is_ignored_in_a_folder(tmp_path, name):
    touch(tmp_path, name, "a.png")
    assert find_images([tmp_path]) == [tmp_path / "a.png"]


def test_a_folder_whose_name_ends_like_an_image_is_searched_but_is_none(tmp_path):
    touch(tmp_path, "album.jpg/a.png")
    assert find_images([tmp_path]) == [tmp_path / "album.jpg/a.png"]


def test_a_file_that_is_named_is_taken_whatever_its_ending(tmp_path):
    touch(tmp_path, "scan.dat")
    assert find_images([tmp_path / "scan.dat"]) == [tmp_path / "scan.dat"]


def test_inputs_come_in_the_order_given(tmp_path):
    touch(tmp_path, "b/1.png", "a/2.png", "c.png")
    given = [tmp_path / "c.png", tmp_path / "b", tmp_path / "a"]
    assert [path.name for path in find_images(given)] == ["c.png", "1.png", "2.png"]


def test_an_image_named_twice_comes_once(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    assert find_images([tmp_path / "b.png", tmp_path, str(tmp_path)]) == [tmp_path / "b.png", tmp_path / "a.png"]


def test_every_input_that_does_not_exist_is_named(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(ArgumentError, match=r"no such file or folder: .*lost\.png, .*gone$"):
        find_images([tmp_path / "lost.png", tmp_path, tmp_path / "gone"])


def test_a_folder_without_images_is_an_error_that_names_it(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ArgumentError, match=rf"no image files in {tmp_path}; images are known by endings"):
        find_images([tmp_path])


def test_a_folder_that_cannot_be_read_is_an_error_that_names_it(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "locked/b.png")
    scandir = os.scandir

    def locked(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(ArgumentError, match=r"cannot look into .*locked: Permission denied"):
        find_images([tmp_path])


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "ppm"])
def test_a_lossless_file_opens_as_what_was_saved(tmp_path, photograph, ending):
    photograph.save(tmp_path / f"a.{ending}")
    assert np.array_equal(pixels(open_image(tmp_path / f"a.{ending}")), pixels(photograph))


def test_a_jpeg_file_opens_as_pillow_decodes_it(tmp_path, photograph):
    photograph.save(tmp_path / "a.jpg")
    assert np.array_equal(pixels(open_image(tmp_path / "a.jpg")), pixels(Image.open(tmp_path / "a.jpg")))


def test_a_path_may_be_text_and_an_open_file_is_read_from_its_start(tmp_path, photograph):
    photograph.save(tmp_path / "a.png")
    assert np.array_equal(pixels(open_image(str(tmp_path / "a.png"))), pixels(photograph))
    with (tmp_path / "a.png").open("rb") as file:
        file.seek(100)
        assert np.array_equal(pixels(open_image(file)), pixels(photograph))


def test_a_file_is_known_by_its_content_not_by_its_ending(tmp_path, photograph):
    photograph.save(tmp_path / "a.jpg", format="PNG")
    assert np.array_equal(pixels(open_image(tmp_path / "a.jpg")), pixels(photograph))


def test_a_file_name_may_hold_any_letters(tmp_path, photograph):
    photograph.save(tmp_path / "фото 写真 é.png")
    assert np.array_equal(pixels(open_image(tmp_path / "фото 写真 é.png")), pixels(photograph))


def test_gray_has_three_equal_channels(tmp_path):
    Image.fromarray(data.camera()).save(tmp_path / "a.png")
    opened = pixels(open_image(tmp_path / "a.png"))
    assert all(np.array_equal(opened[..., channel], data.camera()) for channel in range(3))


def test_one_bit_is_black_and_white(tmp_path):
    Image.fromarray(data.horse()).convert("1").save(tmp_path / "a.png")
    opened = pixels(open_image(tmp_path / "a.png"))
    assert np.array_equal(opened[..., 0], np.where(data.horse(), 255, 0))


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_gray_of_16_bits_is_divided_by_257(tmp_path, ending):
    Image.fromarray(gray()).save(tmp_path / f"a.{ending}")
    opened = pixels(open_image(tmp_path / f"a.{ending}"))
    assert all(np.array_equal(opened[..., channel], np.rint(gray() / 257)) for channel in range(3))


def test_gray_of_16_bits_with_the_high_byte_first_is_divided_by_257(tmp_path):
    Image.frombytes("I;16B", (5, 6), gray().astype(">u2").tobytes()).save(tmp_path / "a.tiff")
    assert np.array_equal(pixels(open_image(tmp_path / "a.tiff"))[..., 0], np.rint(gray() / 257))


def test_colors_of_16_bits_are_divided_by_257(tmp_path):
    colors = np.random.default_rng(0).integers(0, 65536, (6, 5, 3), dtype=np.uint16)
    write_png_of_16_bits(tmp_path / "a.png", colors)
    difference = pixels(open_image(tmp_path / "a.png")) - colors / 257
    assert np.abs(difference).max() < 1  # Pillow keeps the high byte of each


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match="floating-point pixels have no agreed range: convert the file to 8 or 16"):
        open_image(tmp_path / "a.tiff")


def test_a_cmyk_jpeg_has_the_colors_it_was_made_from(tmp_path, photograph):
    photograph.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    difference = pixels(open_image(tmp_path / "a.jpg")) - pixels(photograph)
    assert np.abs(difference).mean() < 4  # what the compression loses; inverted colors differ by 100


def test_transparent_colors_are_laid_over_white(tmp_path, photograph):
    share = np.linspace(0, 255, photograph.width).astype(np.uint8)
    alpha = np.broadcast_to(share, (photograph.height, photograph.width))
    Image.fromarray(np.dstack([np.asarray(photograph), alpha])).save(tmp_path / "a.png")
    over_white = pixels(photograph) * (share / 255)[:, None] + 255 * (1 - share / 255)[:, None]
    difference = pixels(open_image(tmp_path / "a.png")) - over_white
    assert np.abs(difference).max() <= 1  # rounding


def test_transparent_gray_is_laid_over_white(tmp_path):
    Image.new("LA", (3, 2), (100, 51)).save(tmp_path / "a.png")
    assert np.abs(pixels(open_image(tmp_path / "a.png")) - (100 * 0.2 + 255 * 0.8)).max() <= 1  # rounding


def test_the_transparent_color_of_a_palette_is_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png", transparency=1)
    assert pixels(open_image(tmp_path / "a.png")).tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]


def test_half_transparent_colors_of_a_palette_are_laid_over_white(tmp_path):
    image = Image.new("P", (2, 2), 0)
    image.putpalette([0, 100, 200])
    image.save(tmp_path / "a.png", transparency=bytes([51]))
    expected = np.array([0, 100, 200]) * 0.2 + 255 * 0.8
    assert np.abs(pixels(open_image(tmp_path / "a.png")) - expected).max() <= 1  # rounding


def test_the_transparent_color_of_a_true_color_file_is_white(tmp_path):
    Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)).save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert pixels(open_image(tmp_path / "a.png")).tolist() == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_picture_taken_with_the_camera_on_its_side_is_upright(tmp_path, photograph, ending):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is the right side of what is stored
    path = tmp_path / f"a.{ending}"
    photograph.save(path, exif=exif)
    stored = pixels(Image.open(path))
    assert np.array_equal(pixels(open_image(path)), np.rot90(stored, -1))


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 3
    assert np.array_equal(pixels(open_image(tmp_path / "a.gif")), np.broadcast_to([255, 0, 0], (8, 8, 3)))


def test_one_pixel_is_an_image(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert pixels(open_image(tmp_path / "a.png")).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("size", [(1, 100), (300, 3)])
def test_a_side_may_be_100_times_the_other(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").size == size


@pytest.mark.parametrize("size", [(1, 101), (301, 3)])
def test_a_strip_is_refused(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    reason = rf"{size[0]}x{size[1]} pixels: one side is more than 100 times the other"
    with pytest.raises(ImageError, match=reason):
        open_image(tmp_path / "a.png")


def test_a_file_that_is_cut_short_is_refused(tmp_path, photograph):
    photograph.save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="truncated"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff"], ids=["empty", "text", "start only"])
def test_a_file_that_holds_no_image_is_refused(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match="not an image in any format that Pillow reads"):
        open_image(tmp_path / "a.jpg")


def test_a_damaged_file_is_refused_whatever_the_decoder_raises(tmp_path, photograph):
    photograph.save(tmp_path / "a.png")
    damaged = bytearray((tmp_path / "a.png").read_bytes())
    damaged[60:200] = bytes(140)
    (tmp_path / "a.png").write_bytes(damaged)
    with pytest.raises(ImageError):
        open_image(tmp_path / "a.png")


def test_a_file_that_does_not_exist_is_refused_by_name(tmp_path):
    with pytest.raises(ImageError, match=r"No such file.*lost\.png"):
        open_image(tmp_path / "lost.png")


def test_what_pillow_takes_for_an_attack_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 799)
    with pytest.raises(ImageError, match="decompression bomb"):
        open_image(tmp_path / "a.png")


def test_large_images_open_in_many_threads_without_a_warning(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns above it and refuses twice as many
    before = list(warnings.filters)
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(open_image, [tmp_path / "a.png"] * 500))
    assert {image.size for image in opened} == {(40, 40)}
    assert warnings.filters == before


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "LAB", "HSV"])
def test_a_pil_image_of_any_mode_is_a_picture(mode):
    gray = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    made = {"I;16": lambda: Image.fromarray(np.asarray(gray, np.uint16) * 257), "P": lambda: gray.convert("P")}
    image = made.get(mode, lambda: gray.convert("RGB").convert(mode))()
    shown = as_image(image)
    assert shown.mode in ("RGB", "L")
    expected = gray.convert("1").convert("L") if mode == "1" else gray
    difference = np.asarray(shown.convert("L"), int) - np.asarray(expected, int)
    assert abs(difference).max() <= 2  # conversions between color models round


def test_transparency_is_blended_with_white():
    image = Image.new("RGBA", (2, 2), (0, 0, 255, 0))
    assert as_image(image).getpixel((0, 0)) == (255, 255, 255)


def test_arrays_and_paths_are_pictures(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for picture in (pixels, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(as_image(picture), pixels)
    for gray in (pixels[:, :, 0], pixels[:, :, :1]):
        assert np.array_equal(as_image(gray), pixels[:, :, 0])


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"array \(H, W\) or .* of uint8, got float32 of shape \(4, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), r"got uint8 of shape \(4, 4, 2\)"),
        (torch.zeros(3, 4, 4), r"got Tensor: torchvision's to_pil_image"),
        (None, r"expected a PIL image, an array \(H, W, 3\) of uint8 or a path, got NoneType"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message):
    with pytest.raises(ArgumentError, match=message):
        as_image(picture)
