"""Messages of protobuf's wire format (https://protobuf.dev/programming-guides/encoding/), found but not copied.

A message is fields; a field is a key, which holds its number and how it is written, and a value. Every length is
checked against the message it is in. What is wrong is a CheckpointError.
"""

from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader, BytesIO

from ..errors import CheckpointError

VARINT, BYTES = 0, 2  # the two ways to write a field that files of weights need
LONGEST_TEXT = 4096

Span = tuple[int, int]


class Data:
    """The bytes of a file, each read when it is asked for; CheckpointError for those that are no longer there."""

    def __init__(self, file: BufferedReader | BytesIO) -> None:
        self._file, self.size = file, file.seek(0, 2)

    def byte(self, position: int) -> int:
        return self.span(position, position + 1)[0]

    def span(self, start: int, stop: int) -> bytes:
        self._file.seek(start)
        found = self._file.read(stop - start)
        if len(found) < stop - start:
            raise damaged(f"it ends at byte {start + len(found)}")
        return found

    def copy(self, start: int, room: memoryview) -> None:
        """Fill the room with the bytes from `start`."""
        self._file.seek(start)
        if self._file.readinto(room) < len(room):
            raise damaged(f"it ends before byte {start + len(room)}")


def fields(data: Data, message: Span, known: Mapping[int, tuple[int, ...]]) -> Iterator[tuple[int, Span]]:
    """Number and place of each field of the message. `known`: the ways in which a number may be written."""
    position, end = message
    while position < end:
        start = position
        key, position = varint(data, position, end)
        number, way = key >> 3, key & 7
        if way not in known.get(number, ()):
            raise damaged(f"a field {number} of kind {way} at byte {start} is unknown")
        value, after = varint(data, position, end)
        if way == BYTES:
            position, after = after, after + value
        if after > end:
            raise damaged(f"{value} bytes are announced at byte {start}, {end - position} are left")
        yield number, (position, after)
        position = after


def once(found: Iterable[tuple[int, Span]], message: Span) -> dict[int, Span]:
    """The fields of the message by number; CheckpointError if one is there twice."""
    parts: dict[int, Span] = {}
    for number, span in found:
        if number in parts:
            raise damaged(f"the message at byte {message[0]} has field {number} twice")
        parts[number] = span
    return parts


def integers(data: Data, span: Span) -> Iterator[int]:
    """The signed integers that fill the span."""
    position, end = span
    while position < end:
        value, position = varint(data, position, end)
        yield value - (value >> 63 << 64)


def varint(data: Data, position: int, end: int) -> tuple[int, int]:
    """The unsigned integer that begins at `position`, seven bits per byte, and the position after it."""
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


def text(data: Data, span: Span) -> str:
    """The text in the span, which must not be longer than a name."""
    start, end = span
    if end - start > LONGEST_TEXT:
        raise damaged(f"the name at byte {start} has {end - start} bytes")
    try:
        return data.span(start, end).decode()
    except UnicodeDecodeError as error:
        raise damaged(f"the name at byte {start} is no UTF-8") from error


def damaged(how: str) -> CheckpointError:
    return CheckpointError(f"not a whole checkpoint ({how}): fetch or save it again")
