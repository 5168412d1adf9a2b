"""Validation of JSON from files: each check returns the value, or raises JsonError with the path and the problem."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

MOST_VALUES = 2_000_000  # of one text; a parsed value takes up to about 100 bytes
LONGEST = 80  # characters of a value in a message


class JsonError(ValueError):
    """A JSON text or value is not valid."""


def parsed(text: str | bytes, most: int = MOST_VALUES) -> "Value":
    """The value of a JSON text; JsonError if it is invalid or has more than `most` values."""
    if values_in(text) > most:
        raise JsonError(f"it holds more than {most} values")
    try:
        return Value(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise JsonError(f"it is not valid JSON ({error})") from error


def values_in(text: str | bytes) -> int:
    """An upper bound of the number of values in a JSON text."""
    content = text.encode(errors="replace") if isinstance(text, str) else text
    return sum(map(content.count, (b"[", b"{", b",", b":")))


@dataclass(frozen=True, slots=True)
class Value:
    """A JSON value, with its path from the root for error messages."""

    held: Any
    path: str = ""

    def __getitem__(self, key: str) -> "Value":
        """The entry of an object; JsonError if it has none."""
        entries = self.object()
        if key not in entries:
            raise JsonError(f"{self._where()} has no {brief(key)}")
        return Value(entries[key], f"{self.path}.{key}".lstrip("."))

    def get(self, key: str) -> "Value | None":
        """The entry of an object; None if it has none, or if that is null."""
        return self[key] if self.object().get(key) is not None else None

    def object(self) -> dict[str, Any]:
        if not isinstance(self.held, dict):
            raise self.mismatch("an object")
        return self.held

    def array(self) -> list[Any]:
        if not isinstance(self.held, list):
            raise self.mismatch("an array")
        return self.held

    def each(self) -> "Iterator[Value]":
        """The values of an array."""
        return (Value(held, f"{self.path}[{number}]") for number, held in enumerate(self.array()))

    def text(self, among: Collection[str] | None = None) -> str:
        """A string that UTF-8 can encode; one of `among` if that is not None."""
        if among is not None and (not isinstance(self.held, str) or self.held not in among):
            raise self.mismatch(f"one of {', '.join(among)}")
        return self._encodable([self.held], "a text")[0]

    def texts(self) -> list[str]:
        """An array of strings that UTF-8 can encode."""
        return self._encodable(self.array(), "an array of texts")

    def number(self, least: int = 0, most: int = 2**63 - 1) -> int:
        """An int in the range."""
        if type(self.held) is not int or not least <= self.held <= most:
            raise self.mismatch(f"an int from {least} to {most}")
        return self.held

    def numbers(self, least: int = 0, most: int = 2**63 - 1, count: int | None = None) -> list[int]:
        """An array of ints in the range, `count` of them if that is not None."""
        if not _are_ints(self.array(), least, most) or count not in (None, len(self.held)):
            raise self.mismatch(f"an array of {'' if count is None else f'{count} '}ints from {least} to {most}")
        return self.held

    def real(self) -> float:
        """A finite number."""
        if type(self.held) not in (int, float) or not abs(self.held) < 1e300:
            raise self.mismatch("a number")
        return self.held

    def flag(self) -> bool:
        if not isinstance(self.held, bool):
            raise self.mismatch("true or false")
        return self.held

    def pairs(self, least: int, most: int) -> list[tuple[int, int]]:
        """An array of pairs of ints in the range."""
        wanted = f"an array of pairs of ints from {least} to {most}"
        if not all(type(pair) is list and len(pair) == 2 for pair in self.array()):
            raise self.mismatch(wanted)
        if not _are_ints([number for pair in self.held for number in pair], least, most):
            raise self.mismatch(wanted)
        return [(first, second) for first, second in self.held]

    def mismatch(self, expected: str) -> JsonError:
        """The error for a value that is not as expected."""
        return JsonError(f"{self._where()} is {brief(self.held)[:LONGEST]}, expected {expected}")

    def _where(self) -> str:
        return self.path[: 2 * LONGEST] or "it"

    def _encodable(self, texts: list[Any], expected: str) -> list[str]:
        try:
            "".join(texts).encode()
        except (TypeError, UnicodeEncodeError):
            raise self.mismatch(expected) from None
        return texts


def _are_ints(values: list[Any], least: int, most: int) -> bool:
    return all(type(value) is int for value in values) and (
        not values or (least <= min(values) and max(values) <= most)
    )
