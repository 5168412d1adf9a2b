"""The raster image formats that are decoded, and detection of a file's format."""

import struct
from collections.abc import Callable, Mapping
from io import BytesIO

from PIL import Image, ImageFile

from .errors import ImageError, in_short

# Formats of Pillow with a defined range of pixel values that are decoded within this process; common ones first, those
# without a signature last. Excluded: EPS and WMF, which are programs for an interpreter; IPTC, which may contain them;
# BUFR, FITS, GRIB, HDF5, McIdas and Spider, which hold measurements; MPEG and PDF.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "ICO", "PSD", "QOI", "DDS", "SGI", "DIB"),
    *(
        "CUR",
        "ICNS",
        "BLP",
        "DCX",
        "FLI",
        "FTEX",
        "GBR",
        "MSP",
        "PCX",
        "PIXAR",
        "SUN",
        "XBM",
        "XPM",
        "IM",
        "PCD",
        "TGA",
    ),
)
MPO = "MPO"  # opened as JPEG
HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
# Signatures of other files that users may mistake for images, and why they are refused.
NOT_RASTER: Mapping[bytes, str] = {
    b"%!PS": "it holds PostScript, a program that is not run: convert it to PNG first",
    b"\xc5\xd0\xd3\xc6": "it holds PostScript, a program that is not run: convert it to PNG first",
    b"%PDF": "it holds PDF, which is not a raster image: convert its pages to PNG first",
    b"\xd7\xcd\xc6\x9a": "it holds a Windows metafile, a program that is not run: convert it to PNG first",
}
# Exceptions that Pillow's plug-ins raise for files of other formats.
REFUSALS = (SyntaxError, IndexError, TypeError, struct.error)


def image_suffixes() -> set[str]:
    """Lower-case suffixes of image files, with dots."""
    suffixes = Image.registered_extensions().items()
    return {suffix for suffix, name in suffixes if name in FORMATS or name == MPO} | HEIF_SUFFIXES


def identified(content: bytes) -> ImageFile.ImageFile:
    """The image with its size, before its pixels are decoded. ImageError if its format is not in FORMATS.

    Unlike `PIL.Image.open`, this does not check the size against the process-wide limit.
    """
    prefix, file = content[:16], BytesIO(content)
    if prefix[4:8] == b"ftyp" and prefix[8:12] in HEIF_BRANDS:
        return _heif(file)
    Image.init()
    problems = []
    for name in FORMATS:
        factory, accepts = Image.OPEN[name]
        fits = accepts is None or _fits(accepts, prefix)
        if isinstance(fits, str):  # a message, such as that Pillow was built without this decoder
            problems.append(fits)
        elif fits:
            file.seek(0)
            try:
                return factory(file, "")
            except REFUSALS as error:
                problems += [] if accepts is None else [f"{name}: {in_short(error)}"]
    for start, reason in NOT_RASTER.items():
        if prefix.startswith(start):
            raise ImageError(reason)
    details = f" ({'; '.join(problems)})" if problems else ""
    raise ImageError(f"not an image in any format that Pillow reads{details}")


def _fits(accepts: Callable[[bytes], bool | str], prefix: bytes) -> bool | str:
    try:
        return accepts(prefix)
    except REFUSALS:  # a file shorter than a signature
        return False


def _heif(file: BytesIO) -> ImageFile.ImageFile:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise ImageError("it holds HEIF (.heic), which needs another package: pip install 'featx[heic]'") from error
    return HeifImageFile(file)
