"""Photographs that are uploaded to the local page."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.webui import closed_loops as closed_loops
from support.webui import coffee as coffee

import featx
from featx.webui.guard import Limits, open_upload

# gradio leaves its look at a port that is taken to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed.*socket:ResourceWarning")


@pytest.fixture
def upload(tmp_path):
    """Puts bytes or a picture where gradio puts an upload: in a folder of its own."""

    def upload(content, name: str = "photograph.png") -> Path:
        path = tmp_path / "gradio" / "0123" / name
        path.parent.mkdir(parents=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path)
        return path

    return upload


def test_an_upload_is_decoded_and_deleted(upload, coffee):
    path = upload(coffee)
    assert np.array_equal(open_upload(path, Limits()), coffee)
    assert not path.parent.exists()


def test_a_photograph_stands_upright(upload, coffee):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    written = BytesIO()
    coffee.save(written, format="jpeg", exif=exif)
    assert open_upload(upload(written.getvalue(), "photograph.jpg"), Limits()).size == (96, 144)


def test_an_upload_that_was_deleted_for_later_ones_is_reported(tmp_path):
    with pytest.raises(featx.ImageError, match="the file is not there any more: drop it again"):
        open_upload(tmp_path / "0123" / "photograph.png", Limits())


def png_of_size(width: int, height: int) -> bytes:
    """A head that promises pixels, and no pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT"


@pytest.mark.parametrize(
    ("content", "limits", "message"),
    [
        (b"a letter", Limits(), "not an image in any format that Pillow reads"),
        (b"", Limits(), "not an image in any format that Pillow reads"),
        (png_of_size(9, 9), Limits(), "."),
        (bytes(3 * 2**20), Limits(nbytes=2**20), r"the file has 3\.0 MiB, and this page takes up to 1 MiB: make"),
        (png_of_size(8000, 7000), Limits(), "8000x7000 pixels, 56 million, and this page takes up to 50 million: make"),
        (png_of_size(11000, 10000), Limits(), "11000x10000 pixels, 110 million"),
        (png_of_size(60000, 60000), Limits(), "60000x60000 pixels, 3600 million"),
        (png_of_size(900, 200), Limits(), "900x200 pixels: one side is more than 4 times the other; crop it"),
    ],
    ids=["text", "empty", "cut short", "bytes", "pixels", "where Pillow warns", "where Pillow refuses", "aspect"],
)
def test_what_is_refused_is_deleted_too(upload, content, limits, message):
    path = upload(content)
    with pytest.raises(featx.ImageError, match=message):
        open_upload(path, limits)
    assert not path.parent.exists()
