"""The list of slow tests, which `make test` leaves to `make sweep`.

`make durations` measures all tests of the fast suite and of the list, and writes `tests/slow_tests.txt` anew. Of the
parameter sets of a test the fastest stays in the fast suite, unless it is slow alone.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import pytest

LIST = Path(__file__).parents[1] / "slow_tests.txt"
SLOW = 0.25  # seconds; tests of a promise that another parameter set keeps in the fast suite
SLOW_ALONE = 2.0  # seconds


def mark_slow_tests(items: Iterable[pytest.Item]) -> None:
    """Give the tests of the list the marker `slow`."""
    listed = set(LIST.read_text(encoding="utf-8").splitlines())
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)


def slow_tests(durations: dict[str, float]) -> list[str]:
    """Names of the slow tests among those that were measured, in seconds."""
    functions: dict[str, list[str]] = defaultdict(list)
    for name in sorted(durations, key=durations.__getitem__):
        functions[name.partition("[")[0]].append(name)
    fastest = {names[0] for names in functions.values()}
    return sorted(name for name, time in durations.items() if time > (SLOW_ALONE if name in fastest else SLOW))


def durations_in(report: Path) -> dict[str, float]:
    """Seconds per test in a JUnit report of pytest."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}": float(case.get("time", 0))
        for case in cases
    }


if __name__ == "__main__":
    names = slow_tests(durations_in(Path(sys.argv[1])))
    LIST.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
