"""Changes of structure of files that are read, and how whoever reads them has to answer."""

import json
import os
import signal
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import featx

SECONDS = 10
MOST_LINES = 12


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


ODD: list[Callable[[], Any]] = [
    *(lambda value=value: value for value in (None, True, False, 0, 1, 2, -1, 3, 7, 1.5, -0.0, float("nan"), 1e400)),
    *(lambda value=value: value for value in (2**31, 2**32, 2**63, 10**30, 10**400, -(2**63), 1e308)),
    *(
        lambda value=value: value
        for value in ("", "x", "0", "a/b", "../up", "\x1b[31mred", "\u202eabc", "\ud800", "a\nb")
    ),
    lambda: "x" * 10_000,
    list,
    dict,
    lambda: [[]],
    lambda: {"": None},
    lambda: nested(300),
    lambda: [0] * 1000,
]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all values but the root."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in entries:
        yield (*path, key)
        yield from places(held, (*path, key))


def mutated(value: Any, chance: Random) -> Any:
    """A copy in which something in one place is another value, missing, there twice, moved or wrapped."""
    value = deepcopy(value)
    *path, key = chance.choice(list(places(value)))
    holder = value
    for step in path:
        holder = holder[step]
    kind = chance.randrange(8)
    if kind < 4:
        holder[key] = chance.choice(ODD)()
    elif kind == 4:
        del holder[key]
    elif kind == 5:
        holder[key] = [holder[key]]
    elif kind == 6 and isinstance(holder, list):
        holder.insert(chance.randrange(len(holder) + 1), deepcopy(chance.choice(holder)))
        chance.shuffle(holder)
    elif isinstance(holder, dict):
        other = chance.choice(list(holder))
        holder[key], holder[other] = holder[other], holder[key]
        holder[chance.choice(["new", "version", "__metadata__", "a/0"])] = chance.choice(ODD)()
    return value


def bytes_of(value: Any, chance: Random) -> bytes:
    """A value in JSON, mostly as it is written, sometimes in another encoding."""
    text = json.dumps(value)
    return text.encode(chance.choice(["utf-8"] * 9 + ["utf-8-sig", "utf-16", "utf-32-be"]))


def damaged(content: bytes, chance: Random) -> bytes:
    """With a byte changed, cut off, or with something left out, put in or put at the end."""
    place, length = chance.randrange(len(content)), chance.choice([1, 1, 8, 100])
    change = [
        lambda: content[:place],
        lambda: content[:place] + chance.randbytes(length) + content[place + length :],
        lambda: content[:place] + content[place + length :],
        lambda: content[:place] + chance.randbytes(length) + content[place:],
        lambda: content + chance.randbytes(length),
        lambda: b"",
    ]
    return chance.choice(change)()


def replaced(path: Path, chance: Random) -> str:
    """Put something that is no file in its place; what it is."""
    kind = chance.choice(["pipe", "folder", "nothing", "loop", "device", "link to a pipe", "sparse"])
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link to a pipe":
        os.mkfifo(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**40)
    return kind


@contextmanager
def in_time() -> Iterator[None]:
    """AssertionError if the block takes longer than any answer may."""

    def late(*_: object) -> None:
        raise AssertionError(f"no answer in {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def answered(call: Callable[[], Any]) -> Any:
    """What the call returns, or the FeatxError it raises, which is short and obeyed by no terminal."""
    try:
        with in_time():
            return call()
    except featx.FeatxError as error:
        text = str(error)
        assert 0 < len(text.splitlines()) <= MOST_LINES, text
        assert len(text) < 8000, text
        assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c != "\n"], repr(text)
        return error
