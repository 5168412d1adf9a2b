"""Whether a folder has every file of its extraction."""

from collections.abc import Iterable, Sequence

from ..errors import OutputError, shortened
from .header import number_of
from .meta import Meta


def missing_shards(meta: Meta, names: Iterable[str]) -> list[int]:
    """Numbers of the shards of all generations that are not among the names of a folder's files, ascending."""
    there = {number_of(name) for name in names}
    return [number for plan in meta.generations for number in plan.numbers if number not in there]


def require_complete(subject: str, meta: Meta, names: Iterable[str], partial: bool) -> None:
    """OutputError naming the files that are missing, unless a part was asked for.

    subject: how the message begins, such as "maps is unfinished".
    """
    missing = [] if partial else missing_shards(meta, names)
    if missing:
        listed = ", ".join(shortened(as_ranges(missing).split(", ")))
        raise OutputError(
            f"{subject}: {len(missing)} of {meta.shards} files are missing ({listed}). Run the featx extract command "
            "again that makes them, or featx merge the folders that have them, to finish it; or take what is there "
            "with --partial (in Python, partial=True)"
        )


def as_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: "0, 3-5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
