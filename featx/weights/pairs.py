"""Renaming by pairs of pieces of names, which can be read in both directions."""

import re
from collections.abc import Iterable

from .names import Rule

# A piece of a foreign name and the native piece in its place. ^ stands for the beginning, # for a number that stays.
Pair = tuple[str, str]


def rules(pairs: Iterable[Pair]) -> list[Rule]:
    """The pairs, in their order, as rules from foreign names to native ones."""
    return [(_pattern(foreign), _replacement(native)) for foreign, native in pairs]


def rules_back(pairs: Iterable[Pair]) -> list[Rule]:
    """What undoes `rules` of the same pairs: native pieces to foreign ones, in the opposite order."""
    return [(_pattern(native), _replacement(foreign)) for foreign, native in reversed(list(pairs))]


def _pattern(piece: str) -> str:
    return re.escape(piece).replace(r"\^", "^").replace(r"\#", r"(\d+)")


def _replacement(piece: str) -> str:
    before, *after = piece.removeprefix("^").split("#")
    return before + "".join(rf"\g<{number}>{text}" for number, text in enumerate(after, 1))
