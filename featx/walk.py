"""Search for files below a folder or by a pattern; folders that are not entered are reported with the reason."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatch
from glob import has_magic
from pathlib import Path
from typing import NamedTuple

Report = Callable[[str, str], object]  # called with the path of a folder that is not entered, and the reason
Skip = Callable[["os.DirEntry[str]"], bool]

LINKED = "a link to a folder, which is not followed: name it as an input to have its images"
KNOWN = "a link to a folder that is searched already"
# Files that macOS and Windows create beside images; "._a.jpg" contains attributes of a.jpg, not an image.
SIDECARS = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini"}
SIDECAR_FOLDER = "__MACOSX"


def is_sidecar(path: str) -> bool:
    """Whether a relative path, with slashes, is a file that macOS or Windows created beside images.

    The path of a folder ends with a slash.
    """
    *folders, name = path.split("/")
    return name.startswith("._") or name.lower() in SIDECARS or SIDECAR_FOLDER in folders


def fits(path: str, pattern: str) -> bool:
    """Whether a relative path, with slashes, matches a pattern.

    A pattern without a slash is compared with the names of the file and of all its parent folders. A pattern with a
    slash is compared with the path from its beginning, and also matches everything below a folder that it matches; `**`
    matches any number of folders.
    """
    names, wanted = path.split("/"), pattern.strip("/").removeprefix("./").split("/")
    if len(wanted) == 1 and not pattern.startswith("/"):
        return any(fnmatch(name, wanted[0]) for name in names)
    return any(_fit(names[:end], wanted) for end in range(1, len(names) + 1))


def _fit(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether all names match their part of the pattern; tracks the possible ends of a match, without recursion."""
    ends = {0}
    for part in wanted:
        if part == "**":
            ends = set(range(min(ends, default=len(names) + 1), len(names) + 1))
        else:
            ends = {end + 1 for end in ends if end < len(names) and fnmatch(names[end], part)}
    return len(names) in ends


def walked(folder: str, report: Report, skip: Skip = lambda _: False) -> Iterator[str]:
    """Relative paths of all entries below a folder that are not folders, in no particular order.

    Links to files are files; links to folders are reported and not followed. Entries that `skip` accepts are left out.
    A folder that cannot be read is reported and raises no error.
    """
    start, waiting = len(os.path.join(folder, "")), [folder]
    while waiting:
        for entry in _entries(waiting.pop(), report):
            if skip(entry):
                continue
            if not is_folder(entry):
                yield entry.path[start:]
            elif entry.is_symlink():
                report(entry.path, KNOWN if _leads_up(entry.path) else LINKED)
            else:
                waiting.append(entry.path)


def _leads_up(link: str) -> bool:
    """Whether a link points to one of its parent folders."""
    here = os.path.realpath(os.path.dirname(link))
    return os.path.join(here, "").startswith(os.path.join(os.path.realpath(link), ""))


def fixed_part(pattern: str) -> str:
    """The folders before the first wildcard, with a trailing separator, or ""."""
    parts = Path(pattern).parts
    fixed = parts[: next(i for i, part in enumerate(parts) if has_magic(part))]
    return os.path.join(*fixed, "") if fixed else ""


class _Place(NamedTuple):
    """A path, the remaining parts of the pattern, and the real paths of folders whose links were followed to it."""

    path: str
    parts: tuple[str, ...]
    above: tuple[str, ...] = ()


def matching(pattern: str, report: Report) -> list[str]:
    """Sorted, unique paths that match a pattern of `glob.glob`, including hidden files.

    `**` matches any number of folders. It follows links to folders, but not in cycles, and each folder only once.
    """
    root = fixed_part(pattern)
    found: set[str] = set()
    linked: set[tuple[str, int]] = set()
    waiting = [_Place(root, Path(pattern).parts[len(Path(root).parts) :])]
    while waiting:
        place = waiting.pop()
        if place.parts:
            waiting += reversed([*_inside(place, linked, report)])
        elif os.path.isdir(place.path) if pattern.endswith(os.sep) else os.path.lexists(place.path):
            found.add(place.path)
    return sorted(found)


def _inside(place: _Place, linked: set[tuple[str, int]], report: Report) -> Iterator[_Place]:
    """The places that the first part of the pattern matches, with the remaining parts."""
    first, *rest = place.parts
    if first == "**":
        yield _Place(place.path, (*rest,) or ("*",), place.above)
        yield from _deeper(place, linked, report)
    elif has_magic(first):
        for entry in _matched_entries(place.path, report):
            if fnmatch(entry.name, first):
                yield _Place(os.path.join(place.path, entry.name), (*rest,), place.above)
    else:
        yield _Place(os.path.join(place.path, first), (*rest,), place.above)


def _deeper(place: _Place, linked: set[tuple[str, int]], report: Report) -> Iterator[_Place]:
    for entry in _matched_entries(place.path, report):
        if not is_folder(entry):
            continue
        path, above = os.path.join(place.path, entry.name), place.above
        if entry.is_symlink():
            real, above = os.path.realpath(path), (*above, os.path.realpath(place.path))
            key = real, len(place.parts)
            if key in linked or any(f"{one}{os.sep}".startswith(os.path.join(real, "")) for one in above):
                report(path, KNOWN)
                continue
            linked.add(key)
        yield _Place(path, place.parts, above)


def _matched_entries(folder: str, report: Report) -> Iterable["os.DirEntry[str]"]:
    return _entries(folder or os.curdir, report) if os.path.isdir(folder or os.curdir) else ()


def _entries(folder: str, report: Report) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:
        report(folder, getattr(error, "strerror", None) or str(error))
        return []


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder or a link to a folder."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
