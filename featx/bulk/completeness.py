"""Whether a folder has every file of its extraction."""

from collections.abc import Iterable, Sequence

from ..errors import OutputError, shortened
from .header import number_of
from .meta import Plan


def missing_shards(plan: Plan, names: Iterable[str]) -> list[int]:
    """Numbers of the plan's shards that are not among the names of a folder's files, ascending."""
    there = {number_of(name) for name in names}
    return [number for number in range(plan.shards) if number not in there]


def require_complete(subject: str, plan: Plan, names: Iterable[str], partial: bool) -> None:
    """OutputError naming the files that are missing, unless a part was asked for.

    subject: how the message begins, such as "maps is unfinished".
    """
    missing = [] if partial else missing_shards(plan, names)
    if missing:
        listed = ", ".join(shortened(as_ranges(missing).split(", ")))
        raise OutputError(
            f"{subject}: {len(missing)} of {plan.shards} files are missing ({listed}). Run the featx extract command "
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
