"""Parse protobuf's wire format (https://protobuf.dev/programming-guides/encoding/) without copying the contents.

A message is a sequence of fields; a field is a key, with its number and wire type, and a value. Every length is checked
against the enclosing message. Malformed data raises CheckpointError.
"""

from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader, BytesIO

from ..errors import CheckpointError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
FIXED = {FIXED64: 8, FIXED32: 4}  # bytes of a value
LONGEST_TEXT = 4096

Span = tuple[int, int]


class ByteReader:
    """Random access to the bytes of a file; CheckpointError for positions after its end."""

    def __init__(self, file: BufferedReader | BytesIO) -> None:
        self._file, self.size = file, file.seek(0, 2)

    def byte(self, position: int) -> int:
        return self.span(position, position + 1)[0]

    def span(self, start: int, stop: int) -> bytes:
        self._file.seek(start)
        content = self._file.read(stop - start)
        if len(content) < stop - start:
            raise damaged(f"it ends at byte {start + len(content)}")
        return content

    def copy(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `start`."""
        self._file.seek(start)
        if self._file.readinto(buffer) < len(buffer):
            raise damaged(f"it ends before byte {start + len(buffer)}")


def fields(data: ByteReader, message: Span, known: Mapping[int, tuple[int, ...]]) -> Iterator[tuple[int, Span]]:
    """Number and span of each field of a message. known: the allowed wire types of each field number."""
    for number, _, span in all_fields(data, message, known):
        yield number, span


def all_fields(
    data: ByteReader, message: Span, known: Mapping[int, tuple[int, ...]] | None = None
) -> Iterator[tuple[int, int, Span]]:
    """Number, wire type and span of each field of a message. known: as in `fields`; None allows every field."""
    position, end = message
    while position < end:
        start = position
        key, position = varint(data, position, end)
        number, wire_type = key >> 3, key & 7
        allowed = (VARINT, BYTES, *FIXED) if known is None else known.get(number, ())
        if wire_type not in allowed:
            raise damaged(f"a field {number} of kind {wire_type} at byte {start} is unknown")
        value, after = (0, position + FIXED[wire_type]) if wire_type in FIXED else varint(data, position, end)
        if wire_type == BYTES:
            position, after = after, after + value
        if after > end:
            raise damaged(f"{after - position} bytes are declared at byte {start}, {end - position} are left")
        yield number, wire_type, (position, after)
        position = after


def unique_fields(numbered: Iterable[tuple[int, Span]], message: Span) -> dict[int, Span]:
    """The fields of a message by number; CheckpointError if a number is repeated."""
    parts: dict[int, Span] = {}
    for number, span in numbered:
        if number in parts:
            raise damaged(f"the message at byte {message[0]} has field {number} twice")
        parts[number] = span
    return parts


def integers(data: ByteReader, span: Span) -> Iterator[int]:
    """The packed signed integers in a span."""
    position, end = span
    while position < end:
        value, position = varint(data, position, end)
        yield value - (value >> 63 << 64)


def varint(data: ByteReader, position: int, end: int) -> tuple[int, int]:
    """The unsigned integer at `position`, seven bits per byte, and the position after it."""
    value = byte = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise damaged(f"a number is cut short at byte {end}")
        byte = data.byte(position)
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    if byte >= 0x80 or value >> 64:
        raise damaged(f"the number before byte {position} has more than 64 bits")
    return value, position


def text(data: ByteReader, span: Span) -> str:
    """The text of a span; CheckpointError if it is longer than a name or is not UTF-8."""
    start, end = span
    if end - start > LONGEST_TEXT:
        raise damaged(f"the name at byte {start} has {end - start} bytes")
    try:
        return data.span(start, end).decode()
    except UnicodeDecodeError as error:
        raise damaged(f"the name at byte {start} is not UTF-8") from error


def damaged(how: str) -> CheckpointError:
    return CheckpointError(f"not a whole checkpoint ({how}): fetch or save it again")
