"""Unusual image files: other depths, color models and containers, damaged metadata, scripts."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from support.photographs import ADOBE, COLORS, GRAY, PHOTOGRAPH, SRGB, encoded, to_srgb

from featx import ImageError
from featx.images import Opening, image_suffixes, open_image, open_sized, stated_size
from featx.picture_formats import FORMATS


def opened(content: bytes, opening: Opening = Opening()) -> np.ndarray:
    """(h, w, 3) as signed numbers."""
    image = open_image(io.BytesIO(content), opening)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **{"photometric": "minisblack", **options})
    return file.getvalue()


def tiff_of_12_bits(pixels: np.ndarray, photometric: int) -> bytes:
    """A TIFF whose gray pixels have 12 bits, two of them in three bytes."""
    height, width = pixels.shape
    pairs = pixels.reshape(height, -1, 2).astype(int)
    packed = np.stack([pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], -1)
    body = packed.astype(np.uint8).tobytes()
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(body)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4)


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    known = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", known)


def png(lines: bytes, size: tuple[int, int], bits: int, kind: int, *chunks: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def over_white(gray: np.ndarray, clear: np.ndarray) -> np.ndarray:
    return np.where(clear, 255, gray)


# depths


def test_gray_of_12_bits_fills_the_range():
    shades = GRAY >> 4
    assert np.array_equal(opened(tiff_of_12_bits(shades, 1))[..., 1], np.rint(shades / 4095 * 255))


def test_gray_of_12_bits_whose_zero_is_white_is_refused_because_pillow_does_not_decode_it():
    with pytest.raises(ImageError, match=r"\(TIFF: SyntaxError: unknown pixel mode\)"):
        opened(tiff_of_12_bits(GRAY >> 4, 0))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_gray_of_16_bits_whose_zero_is_white_is_inverted(compression):
    content = tiff(GRAY, photometric="miniswhite", compression=compression)
    assert np.array_equal(opened(content)[..., 0], 255 - np.rint(GRAY / 257))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_gray_of_16_bits_is_the_same_in_tiles_and_in_any_order_of_bytes(order, tile):
    content = tiff(GRAY.astype(f"{order}u2"), byteorder=order, tile=tile)
    assert np.array_equal(opened(content)[..., 2], np.rint(GRAY / 257))


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_colors_in_tiles_and_planes_are_those_that_were_written_or_refused(bits, planes, compression, tile):
    """The expected pixels are those that tifffile was given."""
    pixels = COLORS if bits == 16 else (COLORS >> 8).astype(np.uint8)
    options = {"photometric": "rgb", "tile": tile, "compression": compression}
    given = np.ascontiguousarray(pixels.transpose(2, 0, 1)) if planes else pixels
    content = tiff(given, planarconfig="separate" if planes else "contig", **options)
    if bits == 16 and planes and compression is None:
        with pytest.raises(ImageError, match="planes of 16 bits without compression cannot be decoded: store pixels"):
            opened(content)
    else:
        assert np.abs(opened(content) - (COLORS >> 8)).max() == 0


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.uint32])
def test_pixels_without_an_agreed_range_are_refused(kind):
    bits = 8 * np.dtype(kind).itemsize
    word = "signed" if np.dtype(kind).kind == "i" else "unsigned"
    with pytest.raises(ImageError, match=rf"^{word} pixels of {bits} bits have no agreed range: convert"):
        opened(tiff((GRAY >> 9).astype(kind)))


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.uint64])
def test_a_tiff_that_pillow_does_not_decode_is_refused_with_what_pillow_says(kind):
    with pytest.raises(
        ImageError, match=r"not an image in any format that Pillow reads \(TIFF: SyntaxError: unknown pi"
    ):
        opened(tiff(GRAY.astype(kind)))


def test_gray_of_a_netpbm_file_of_any_range_fills_the_range():
    content = b"P5 48 32 1000\n" + (GRAY % 1001).astype(">u2").tobytes()
    assert np.abs(opened(content)[..., 0] - (GRAY % 1001) / 1000 * 255).max() <= 0.51  # rounded twice


# transparent colors of PNG


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_gray_of_a_png_is_white_at_every_depth(bits):
    levels = 2**bits
    shades = (np.arange(64) % levels if bits < 16 else GRAY.ravel()[:64]).reshape(2, 32)
    clear = int(shades[0, 1])
    if bits == 16:
        lines = [shade.astype(">u2").tobytes() for shade in shades]
    else:
        spread = (shades[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        lines = [np.packbits(line.ravel().astype(np.uint8)).tobytes() for line in spread]
    body = b"".join(b"\0" + line for line in lines)
    content = png(body, (32, 2), bits, 0, chunk(b"tRNS", struct.pack(">H", clear)))
    expected = over_white(np.rint(shades / (levels - 1) * 255), shades == clear)
    assert np.array_equal(opened(content)[..., 0], expected)


def test_the_transparent_color_of_a_png_of_16_bits_is_compared_in_all_bits():
    """Two colors that differ in their low bytes alone: only one of them is transparent."""
    colors = np.array([[[500, 600, 700], [501, 600, 700], [60000, 5, 30000]]], dtype=np.uint16)
    lines = b"\0" + colors.astype(">u2").tobytes()
    content = png(lines, (3, 1), 16, 2, chunk(b"tRNS", struct.pack(">HHH", 500, 600, 700)))
    assert opened(content).tolist() == [[[255, 255, 255], [1, 2, 2], [234, 0, 117]]]


# colors


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
def test_colors_of_a_profile_are_converted_to_srgb(kind):
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "JPEG": {"quality": 100, "subsampling": 0}}
    content = encoded(PHOTOGRAPH, kind, icc_profile=ADOBE, **options.get(kind, {}))
    expected = to_srgb(np.asarray(PHOTOGRAPH))
    assert np.abs(expected - np.asarray(PHOTOGRAPH)).max() > 30
    difference = np.abs(opened(content) - expected)
    assert difference.mean() < (0.6 if kind in ("PNG", "TIFF", "WEBP") else 2)  # rounding; what compression loses
    assert np.array_equal(opened(content, Opening("none")), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_transparency_stays_where_colors_are_converted():
    alpha = Image.fromarray(np.where(np.arange(120)[None] < 60, 255, 0).astype(np.uint8).repeat(80, 0))
    clear = PHOTOGRAPH.copy()
    clear.putalpha(alpha)
    found = opened(encoded(clear, "PNG", icc_profile=ADOBE))
    assert np.abs(found[:, :60] - to_srgb(np.asarray(PHOTOGRAPH)[:, :60])).mean() < 0.6
    assert (found[:, 60:] == 255).all()


def test_the_colors_of_a_palette_are_converted():
    palette = PHOTOGRAPH.quantize(16)
    expected = to_srgb(np.asarray(palette.convert("RGB")))
    assert np.abs(opened(encoded(palette, "PNG", icc_profile=ADOBE)) - expected).mean() < 0.6


def test_a_picture_whose_profile_is_srgb_keeps_its_numbers():
    assert np.array_equal(opened(encoded(PHOTOGRAPH, "PNG", icc_profile=SRGB)), np.asarray(PHOTOGRAPH))


@pytest.mark.parametrize("given", [b"junk" * 40, ADOBE[:200], ADOBE[:130] + bytes(400)], ids=["junk", "cut", "zeros"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_broken_profile_leaves_the_pixels_as_they_are(kind, given):
    content = encoded(PHOTOGRAPH, kind, icc_profile=given, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(opened(content), np.asarray(PHOTOGRAPH))


def test_a_profile_of_other_channels_than_the_picture_is_not_applied():
    content = encoded(PHOTOGRAPH.convert("L"), "PNG", icc_profile=ADOBE)
    assert np.array_equal(opened(content)[..., 0], np.asarray(PHOTOGRAPH.convert("L")))


def test_lab_is_shown_in_the_colors_that_it_measures():
    lab = ImageCms.profileToProfile(
        PHOTOGRAPH, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    difference = np.abs(opened(encoded(lab, "TIFF")) - np.asarray(PHOTOGRAPH))
    assert difference.mean() < 3  # Lab has 8 bits, too


# metadata


def in_png(*chunks: bytes) -> bytes:
    whole = encoded(PHOTOGRAPH, "PNG")
    return whole[:33] + b"".join(chunks) + whole[33:]


XMP = b"XML:com.adobe.xmp\0\1\0\0\0"
DAMAGED_CHUNKS = {
    "exif": chunk(b"eXIf", b"garbage"),
    "exif of another sum": chunk(b"eXIf", b"garbage", 1),
    "profile of an unknown method": chunk(b"iCCP", b"n\0\7junk"),
    "empty profile": chunk(b"iCCP", b""),
    "huge profile": chunk(b"iCCP", b"n\0\0" + zlib.compress(bytes(2**27))),
    "huge xmp": chunk(b"iTXt", XMP + zlib.compress(bytes(2**23))),
    "text of an unknown method": chunk(b"zTXt", b"k\0\5junk"),
    "gamma": chunk(b"gAMA", b"1"),
    "resolution": chunk(b"pHYs", b"1"),
    "intent": chunk(b"sRGB", b""),
}


@pytest.mark.parametrize("name", DAMAGED_CHUNKS)
def test_damaged_metadata_of_a_png_loses_no_pixels(name):
    assert np.array_equal(opened(in_png(DAMAGED_CHUNKS[name])), np.asarray(PHOTOGRAPH))


def test_damaged_text_loses_neither_the_orientation_nor_the_profile():
    exif = Image.Exif()
    exif[0x0112] = 3
    whole = encoded(PHOTOGRAPH, "PNG", exif=exif, icc_profile=ADOBE)
    content = whole[:33] + DAMAGED_CHUNKS["huge xmp"] + whole[33:]
    assert np.array_equal(opened(content), opened(whole))
    assert np.abs(opened(content) - to_srgb(np.asarray(PHOTOGRAPH))[::-1, ::-1]).mean() < 0.6


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


DAMAGED_SEGMENTS = {
    "exif": segment(0xE1, b"Exif\0\0garbage"),
    "exif that ends": segment(0xE1, b"Exif\0\0MM\0*\0\0\xff\xff"),
    "xmp": segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>\xff\xfe"9'),
    "profile": segment(0xE2, b"ICC_PROFILE\0"),
    "part of a profile": segment(0xE2, b"ICC_PROFILE\0\1\3junk"),
    "several pictures": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0"),
    "photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\0"),
}


@pytest.mark.parametrize("name", DAMAGED_SEGMENTS)
def test_damaged_metadata_of_a_jpeg_loses_no_pixels(name):
    whole = encoded(PHOTOGRAPH, "JPEG")
    content = whole[:2] + DAMAGED_SEGMENTS[name] + whole[2:]
    assert np.array_equal(opened(content), np.asarray(Image.open(io.BytesIO(whole))))


@pytest.mark.parametrize("name", ["exif that ends", "several pictures"])
def test_what_pillow_warns_of_is_neither_shown_nor_an_error(name, recwarn):
    whole = encoded(PHOTOGRAPH, "JPEG")
    content = whole[:2] + DAMAGED_SEGMENTS[name] + whole[2:]
    with pytest.warns(UserWarning, match="EXIF|MPO"):
        Image.open(io.BytesIO(content)).getexif()
    opened(content)
    assert not recwarn.list


# programs and other formats


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n",
            "it holds PostScript, a program",
        ),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "it holds PostScript, a program"),
        (b"\xd7\xcd\xc6\x9a" + bytes(40), "it holds a Windows metafile, a program"),
        (b"%PDF-1.7\n", "it holds PDF"),
        (b"SIMPLE  =                    T", "not an image in any format"),
        (b"GRIB\0\0\0\1" + bytes(20), "not an image in any format"),
    ],
)
def test_a_file_that_is_no_raster_picture_is_refused_whatever_its_ending(tmp_path, content, reason):
    (tmp_path / "photograph.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        open_image(tmp_path / "photograph.jpg")
    with pytest.raises(ImageError, match=reason):
        stated_size(tmp_path / "photograph.jpg")


def test_no_format_is_tried_that_runs_programs_or_opens_others():
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)
    assert not {"EPS", "WMF", "IPTC", "PDF", "FITS", "SPIDER"} & set(FORMATS)
    assert not {".eps", ".ps", ".wmf", ".emf", ".iim", ".pdf", ".mpg"} & image_suffixes()
    assert {".jpg", ".png", ".tif", ".webp", ".heic", ".mpo", ".avif"} <= image_suffixes()


def test_heic_is_decoded_by_its_package():
    pytest.importorskip("pillow_heif").register_heif_opener()
    content = encoded(PHOTOGRAPH, "HEIF", quality=100, chroma=444)
    assert np.abs(opened(content) - np.asarray(PHOTOGRAPH)).mean() < 2  # what compression loses
    assert stated_size(io.BytesIO(content)) == PHOTOGRAPH.size


def test_without_its_package_heic_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"HEIF \(\.heic\), which needs another package: pip install 'featx\[heic\]'"):
        opened(struct.pack(">I", 24) + b"ftypheic" + bytes(20))


# limits


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded():
    content = png(b"", (20_000, 20_000), 8, 2)
    with pytest.raises(
        ImageError, match="20000x20000 pixels are more than 178956970, which may be a decompression bomb"
    ):
        opened(content)
    with pytest.raises(ImageError, match="120x80 pixels are more than 9599"):
        opened(encoded(PHOTOGRAPH, "PNG"), Opening(max_pixels=9599))


def test_more_pixels_than_pillow_opens_can_be_allowed(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="are more than 2000"):
        opened(encoded(PHOTOGRAPH, "PNG"))
    assert np.array_equal(opened(encoded(PHOTOGRAPH, "PNG"), Opening(max_pixels=9600)), np.asarray(PHOTOGRAPH))
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_is_cut_short_is_what_is_there_if_that_is_allowed(progressive):
    whole = encoded(PHOTOGRAPH.resize((480, 320)), "JPEG", progressive=progressive)
    content, there = whole[: len(whole) * 2 // 3], np.asarray(Image.open(io.BytesIO(whole))).astype(int)
    with pytest.raises(ImageError, match="truncated"):
        opened(content)
    found = opened(content, Opening(allow_truncated=True))
    assert found.shape == there.shape
    if progressive:
        assert np.abs(found - there).mean() < 20  # all of it, without its last scans
    else:
        assert np.array_equal(found[:160], there[:160])
        assert (found[-8:] == 128).all()


def test_a_whole_jpeg_is_the_same_if_one_that_is_cut_short_is_allowed():
    content = encoded(PHOTOGRAPH, "JPEG")
    assert np.array_equal(opened(content, Opening(allow_truncated=True)), opened(content))


# decoding at a fraction


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(203, 150), (200, 157), (199, 153)])
def test_what_is_decoded_at_a_fraction_says_where_the_picture_lies(size, orientation):
    """The picture resized from its box is the whole one resized, wherever the orientation puts its edges."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(PHOTOGRAPH.resize(size, Image.Resampling.BICUBIC), "JPEG", exif=exif, quality=95)
    whole, part = (open_sized(io.BytesIO(content), Opening(shorter=shorter)) for shorter in (None, 16))
    assert part.size == whole.size == whole.image.size
    assert max(part.image.size) < 60
    assert part.box[2] - part.box[0] == whole.size[0] / 4
    target = (whole.size[0] // 8, whole.size[1] // 8)
    resized = [one.image.resize(target, Image.Resampling.BICUBIC, one.box) for one in (whole, part)]
    difference = np.abs(np.subtract(*(np.asarray(image).astype(float) for image in resized)))
    assert difference.mean() < 1.5
