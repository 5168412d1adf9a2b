"""From what a user names to the images in it: files, folders, patterns, lists, tars, datasets, addresses."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from glob import glob, has_magic
from os.path import splitext
from pathlib import Path

from ..errors import ArgumentError
from ..images import image_suffixes
from .datasets import dataset_images, is_dataset
from .lists import LISTS, listed_images
from .sources import Files, Items, RemoteFiles, Source
from .systems import is_address, open_system
from .tars import TARS, tar_images

Input = str | os.PathLike[str]
Found = tuple[Source, str]  # and what its names begin with where several inputs are given
# Endings that say how a file is read; every other file is taken for an image.
KINDS: dict[str, Callable[[str], Source]] = {**dict.fromkeys(TARS, tar_images), **dict.fromkeys(LISTS, listed_images)}


def find_items(inputs: Input | Iterable[Input]) -> Items:
    """Every image in the inputs, each once, in an order that depends on their names alone.

    An input is a file, a folder (searched recursively), a pattern such as "photos/**/*.jpg", a list of paths (.txt with
    one a line, .csv or .parquet with a column "path" and perhaps "id"), an uncompressed .tar, a folder that
    `datasets.save_to_disk` wrote, or an address that fsspec knows, such as "s3://bucket/photos".

    Ids are paths relative to the input; with several inputs they begin with the input as it was given.

    Raises ArgumentError naming every input that does not exist, for one that cannot be read, if two images would have
    the same id, or if there is no image. MissingPackageError if reading an input needs a package that is not there.
    """
    given = [os.fspath(one) for one in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)]
    found = _expand(given)
    if len(given) > 1:
        found = list(_each_once(found))
    if not any(len(source.names) for source, _ in found):
        raise ArgumentError(f"no image files in {', '.join(given)}; images are known by endings such as .jpg")
    return Items([source for source, _ in found], [prefix if len(given) > 1 else "" for _, prefix in found])


def _expand(given: Sequence[str]) -> list[Found]:
    local = [one for one in given if not is_address(one)]
    matches = {one: _matching(one) for one in local if has_magic(one) and not os.path.lexists(one)}
    absent = [one for one in local if one not in matches and not os.path.exists(one)]
    absent += [one for one, matched in matches.items() if not matched]
    if absent:
        raise ArgumentError(f"no such file or folder: {', '.join(absent)}")
    found: list[Found] = []
    for one in given:
        if is_address(one):
            found += _remote(one)
        elif one in matches:
            found += _matched(matches[one], _fixed_part(one))
        else:
            found += _one(one)
    return found


def _one(path: str) -> list[Found]:
    if os.path.isdir(path):
        folder = os.path.join(path, "")
        return [(dataset_images(path) if is_dataset(path) else Files(folder, _below(path)), folder)]
    kind = KINDS.get(splitext(path)[1].lower())
    if kind is not None:
        return [(kind(path), f"{path}/")]
    folder = os.path.join(os.path.dirname(path), "")
    return [(Files(folder, [os.path.basename(path)]), folder)]


def _matching(pattern: str) -> list[str]:
    return sorted(glob(pattern, recursive=True, include_hidden=True))


def _fixed_part(pattern: str) -> str:
    """The folders before the first wildcard, with a separator at the end unless there are none."""
    parts = Path(pattern).parts
    fixed = parts[: next(i for i, part in enumerate(parts) if has_magic(part))]
    return os.path.join(*fixed, "") if fixed else ""


def _matched(paths: Sequence[str], root: str) -> list[Found]:
    """The images and tars among the files that match; whatever matches if there is none of these."""
    files = [path for path in paths if os.path.isfile(path)]
    tars = [path for path in files if splitext(path)[1].lower() in TARS]
    images = [path for path in files if splitext(path)[1].lower() in image_suffixes()]
    images = images if images or tars else files
    found: list[Found] = [(Files(root, [path[len(root) :] for path in images]), root)] if images else []
    for path in tars:
        tar = tar_images(path)
        under = "" if len(tars) == 1 else f"{path[len(root) :]}/"
        found.append((replace(tar, names=[under + name for name in tar.names]), root))
    return found


def _below(folder: str) -> list[str]:
    """Paths of the image files below a folder, relative to it, sorted by their parts."""
    suffixes, start = image_suffixes(), len(os.path.join(folder, ""))
    found = [
        os.path.join(where, name)[start:]
        for where, _, files in os.walk(folder, onerror=_refuse)
        for name in files
        if splitext(name)[1].lower() in suffixes
    ]
    return sorted(found, key=lambda path: path.split(os.sep))


def _refuse(error: OSError) -> None:
    raise ArgumentError(f"cannot look into {error.filename}: {error.strerror}") from error


def _remote(address: str) -> list[Found]:
    system, path = open_system(address)
    suffixes = image_suffixes()
    if has_magic(path):
        root = _fixed_part(path)
        found = [path for path in system.glob(path) if splitext(path)[1].lower() in suffixes]
    elif system.isdir(path):
        root = path.rstrip("/") + "/"
        found = [path for path in system.find(path) if splitext(path)[1].lower() in suffixes]
    elif not system.exists(path):
        raise ArgumentError(f"no such file or folder: {address}")
    else:
        kind = KINDS.get(splitext(path)[1].lower())
        if kind is not None:
            return [(kind(address), f"{address}/")]
        root, found = path[: path.rfind("/") + 1], [path]
    names = [path[len(root) :] for path in sorted(found)]
    return [(RemoteFiles(system, root, names), system.unstrip_protocol(root))]


def _each_once(found: Sequence[Found]) -> Iterator[Found]:
    """What names an image twice, by two inputs, names it once."""
    seen: set[str] = set()
    for source, prefix in found:
        places = [source.where(i) for i in range(len(source.names))]
        if seen.isdisjoint(places):
            yield source, prefix
        elif isinstance(source, Files | RemoteFiles):
            names = [name for name, place in zip(source.names, places, strict=True) if place not in seen]
            yield replace(source, names=names), prefix
        elif not seen.issuperset(places):
            raise ArgumentError(f"{prefix.rstrip('/')} holds images that another input has too: give each once")
        seen.update(places)
