"""The names closest to a misspelled one, by edit distance."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

# Costs besides edits: each character of the known name before and after the matched part, so that
# mobilenetv3_small_050 is close to mobilnetv3; words in another order; a name with a package prefix.
BEFORE, AFTER, REORDERED, FOREIGN = 0.1, 0.04, 0.5, 0.3
LONGEST = 64  # compared characters of a name


def closest(name: str, known: Iterable[str], most: int = 5) -> list[str]:
    """The `known` names that `name` may be a misspelling of, most likely first.

    An edit inserts, deletes or replaces a character, or swaps two adjacent ones. Case and separators are ignored. Up to
    a third of the characters may be wrong. Of a known name such as "timm/resnet50", only the last part is compared.

    Args:
        name: the misspelled name.
        known: the names to choose from.
        most: the maximum number of names to return.
    """
    words = _words(name)
    wanted = "".join(words)
    limit = max(1.0, len(wanted) / 3)
    scored: list[tuple[float, str]] = []
    for candidate in dict.fromkeys(known) if wanted else ():
        package, _, last = candidate.rpartition("/")
        theirs = _words(last)
        letters = "".join(theirs)
        if (Counter(wanted) - Counter(letters)).total() <= limit:  # a lower bound of the distance
            score = min(_distance(wanted, letters), REORDERED + _distance_of_words(words, theirs))
            scored += [(score + FOREIGN * bool(package), candidate)] if score <= limit else []
    return [candidate for _, candidate in sorted(scored, key=lambda pair: pair[0])[:most]]


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[_\-. /]+", name[:LONGEST].lower()) if word]


def _distance_of_words(words: list[str], theirs: list[str]) -> float:
    """Sum of the edits from each word to the closest of `theirs`, in any order."""
    return sum(min((_distance(word, other) for other in theirs), default=len(word)) for word in words)


@lru_cache(1 << 16)
def _distance(wanted: str, letters: str) -> float:
    """Edits from `wanted` to the closest substring of `letters` (optimal string alignment)."""
    before: list[float] = []
    row = [BEFORE * place for place in range(len(letters) + 1)]
    for i, letter in enumerate(wanted, 1):
        above, row = row, [float(i)]
        for j, other in enumerate(letters, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != other))
            if i > 1 and j > 1 and (letter, wanted[i - 2]) == (letters[j - 2], other):
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before = above
    return min(cost + AFTER * (len(letters) - place) for place, cost in enumerate(row))
