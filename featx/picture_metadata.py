"""Copies of image files without metadata, which may be damaged and break decoding although the pixels are intact."""

import struct
from collections.abc import Container, Iterator
from zlib import crc32

PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
# Application segments and comments, except those that define the color encoding: APP0 (JFIF) and APP14 (Adobe).
JPEG_METADATA = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
START_OF_SCAN = 0xDA


def without_metadata(content: bytes) -> Iterator[bytes]:
    """Copies of a PNG or JPEG file, each with less metadata; none for other files or without removable metadata."""
    if content.startswith(PNG_START):
        copies = (_png(content, PNG_PIXELS | {b"iCCP", b"eXIf"}), _png(content, PNG_PIXELS | {b"eXIf"}))
    elif content.startswith(JPEG_START):
        copies = (_jpeg(content),)
    else:
        return
    before = content
    for copy in copies:
        if len(copy) < len(before):
            yield (before := copy)


def _png(content: bytes, kept: Container[bytes]) -> bytes:
    """The file with these kinds of chunks only. Chunks without pixels must have a valid checksum."""
    parts, start = [PNG_START], len(PNG_START)
    while start + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        chunk = content[start : start + 12 + length]
        if kind in kept and (kind in PNG_PIXELS or crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])):
            parts.append(chunk)
        start += 12 + length
    return b"".join(parts)


def _jpeg(content: bytes) -> bytes:
    """The file without metadata segments before its first scan."""
    parts, start = [JPEG_START], len(JPEG_START)
    while start + 4 <= len(content) and content[start] == 0xFF and content[start + 1] != START_OF_SCAN:
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4])
        if content[start + 1] not in JPEG_METADATA:
            parts.append(content[start:end])
        start = end
    return b"".join([*parts, content[start:]])
