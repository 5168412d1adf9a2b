"""What can go wrong, one class per kind; each is also the built-in error it resembles."""

import re
from collections.abc import Iterable

MOST_LISTED = 8
LONGEST = 160  # characters of another package's message
LONGEST_ITEM = 300  # characters of one item of a list
# What a terminal obeys or shows in another order (C0, C1, directions, ends of lines), and halves of characters.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class FeatxError(Exception):
    """Base of every error featx raises on purpose: what happened, what was expected, what to do.

    Control characters in its text, which are of foreign names, are escaped.
    """

    def __str__(self) -> str:
        return escaped_lines(super().__str__())


class UnknownModelError(FeatxError, ValueError):
    """No model has that name."""


class ArgumentError(FeatxError, TypeError, ValueError):
    """An argument that does not exist, does not fit the others, or has a value this model cannot take.

    Python raises TypeError for the first of these and ValueError for the last, and so callers may catch either.
    """


class OutIndicesError(FeatxError, ValueError):
    """`out_indices` or `out_names` that do not choose levels of the model."""


class ContractError(FeatxError, ValueError):
    """A model whose maps are not what its `feature_info` says, or cannot be taken as it says."""


class InputError(FeatxError, ValueError):
    """A batch of images that the model cannot take."""


class CheckpointError(FeatxError, ValueError):
    """A file of weights that cannot be read or does not fit the model."""


class WeightsNotFoundError(FeatxError, FileNotFoundError):
    """Weights that are neither on disk nor reachable on the Hub."""


class ImageError(FeatxError, ValueError):
    """A file that holds no image, or one that cannot be decoded whole."""


class OutputError(FeatxError, OSError):
    """Results that cannot be written where they were asked for."""


class MissingPackageError(FeatxError, ImportError):
    """An optional package that this function needs."""


def escaped(name: object) -> str:
    r"""A foreign name as text that a terminal shows and does not obey: control characters as \x1b or \u202e."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(name))


def escaped_lines(text: str) -> str:
    """Text of several lines, each escaped."""
    return "\n".join(map(escaped, text.split("\n")))


def shortened(items: Iterable[object], most: int = MOST_LISTED) -> list[str]:
    """The first of what a message lists, each as a line of text, and how many more there are."""
    whole = [*items]
    texts = [text if len(text) <= LONGEST_ITEM else f"{text[:LONGEST_ITEM]}…" for text in map(escaped, whole[:most])]
    more = len(whole) - most
    return texts if more < 1 else [*texts, f"… and {more} more"]


def names_in(items: Iterable[object], most: int = MOST_LISTED) -> str:
    """The first of what a message names, with commas, and how many more there are."""
    return ", ".join(shortened(map(repr, items), most))


def in_short(error: BaseException) -> str:
    """The class of an error of another package and the first line of what it says."""
    first = escaped((str(error).strip().splitlines() or [""])[0])
    cut = first if len(first) <= LONGEST else f"{first[:LONGEST]}…"
    return f"{type(error).__name__}: {cut}" if cut else type(error).__name__
