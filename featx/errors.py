"""Exceptions of featx, which subclass the built-in exceptions that they resemble, and escaping of text in messages."""

import re
from collections.abc import Iterable, Mapping
from typing import Self

MOST_LISTED = 8
LONGEST = 160  # characters of a third-party message
LONGEST_ITEM = 300  # characters per item of a list
# Terminal control characters (C0, C1), bidirectional controls, line separators and surrogates.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class FeatxError(Exception):
    """Base class of the exceptions of featx. The message says what happened, what was expected and what to do.

    Control characters in the message, which come from untrusted names, are escaped.
    """

    def __str__(self) -> str:
        return escaped_lines(super().__str__())


class UnknownModelError(FeatxError, ValueError):
    """The model name is not registered."""


class ArgumentError(FeatxError, TypeError, ValueError):
    """An argument is unknown, conflicts with another argument, or has a value that the model does not support.

    It is a TypeError, which Python raises for unknown arguments, and a ValueError, so that callers can catch either.
    """


class OutIndicesError(FeatxError, ValueError):
    """`out_indices` or `out_names` do not select levels of the model."""


class ContractError(FeatxError, ValueError):
    """The maps of a model do not match its `feature_info`, or cannot be extracted as it states."""


class InputError(FeatxError, ValueError):
    """The model does not support this batch of images."""


class CheckpointError(FeatxError, ValueError):
    """A checkpoint cannot be read or does not fit the model."""


class CheckpointMismatchError(CheckpointError):
    """The tensors of a checkpoint are not those of the model; none was loaded.

    Attributes:
        differences: the kind of difference and its description, by name of the tensor. Kinds are "missing",
            "unexpected", "misshaped", "mistyped", "no values" and "not finite".
    """

    def __init__(self, message: str, differences: Mapping[str, tuple[str, str]] | None = None) -> None:
        super().__init__(message)
        self.differences = dict(differences or {})

    def __reduce__(self) -> tuple[type[Self], tuple[str, dict[str, tuple[str, str]]]]:
        return type(self), (self.args[0], self.differences)


class WeightsNotFoundError(FeatxError, FileNotFoundError):
    """Weights are neither on disk nor reachable on the Hub."""


class ImageError(FeatxError, ValueError):
    """A file is not an image, or cannot be decoded completely."""


class OutputError(FeatxError, OSError):
    """Results cannot be written to the requested place."""


class MissingPackageError(FeatxError, ImportError):
    """An optional package that this function needs is not installed."""


def escaped(name: object) -> str:
    r"""The text of an untrusted name with control characters escaped, such as \x1b or \u202e."""
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), str(name))


def escaped_lines(text: str) -> str:
    """Multi-line text with each line escaped; line breaks are kept."""
    return "\n".join(map(escaped, text.split("\n")))


def shortened(items: Iterable[object], most: int = MOST_LISTED) -> list[str]:
    """The first `most` items as escaped, truncated text for a message, followed by the number of the others."""
    listed = [*items]
    texts = [text if len(text) <= LONGEST_ITEM else f"{text[:LONGEST_ITEM]}…" for text in map(escaped, listed[:most])]
    more = len(listed) - most
    return texts if more < 1 else [*texts, f"… and {more} more"]


def names_in(items: Iterable[object], most: int = MOST_LISTED) -> str:
    """The first `most` items as a comma-separated list of their reprs, and the number of the others."""
    return ", ".join(shortened(map(repr, items), most))


def in_short(error: BaseException) -> str:
    """Class and first line of the message of a third-party exception."""
    first = escaped((str(error).strip().splitlines() or [""])[0])
    cut = first if len(first) <= LONGEST else f"{first[:LONGEST]}…"
    return f"{type(error).__name__}: {cut}" if cut else type(error).__name__
