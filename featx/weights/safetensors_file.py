"""Safetensors files (https://github.com/huggingface/safetensors): a header in JSON, and values without gaps behind it.

Every place that the header names is checked before memory is taken for it. The safetensors package reads such files as
well, but always maps them, and takes the last of two tensors of one name.
"""

import json
from collections import Counter
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor

from ..errors import CheckpointError, names_in
from .npz import MAX_MEMBERS
from .state_dict_keys import StateDict

LONGEST_HEADER = 32 << 20  # bytes; a network of 20,000 tensors takes 3 MiB, and its metadata perhaps as many
MOST_OBJECTS = 5 * MAX_MEMBERS  # a tensor is one, and metadata may quote some
MOST_DIMENSIONS = 64
METADATA, FIELDS = "__metadata__", ("shape", "dtype", "data_offsets")
NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}
# releases of PyTorch differ in which small floats they have
DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in NAMES.items() if hasattr(torch, name)}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor as the header describes it: `start` and `stop` are the first of its bytes and the one after the last."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def read_safetensors(path: Path, file: BufferedReader, mapped: bool) -> StateDict:
    """The tensors of a file by name, each in memory of its own, or all in private pages of the file where `mapped`.

    Raises CheckpointError if the file is damaged or holds values that PyTorch has no tensors for.
    """
    size = file.seek(0, 2)
    entries = _entries(path, _header(path, file, size), file.tell(), size)
    if mapped:
        storage = cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(path), False, size))
        return {entry.name: _view(storage, entry) for entry in entries}
    return {entry.name: _copy(path, file, entry) for entry in entries}


def _damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a whole safetensors file ({how}): fetch or save it again")


def _header(path: Path, file: BufferedReader, size: int) -> dict[str, Any]:
    """The header, after which the file is read on where the values begin."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise _damaged(path, f"its header would take {length} bytes of {size}")
    text = file.read(min(length, LONGEST_HEADER))
    if length > LONGEST_HEADER or text.count(b"{") > MOST_OBJECTS:
        raise CheckpointError(
            f"{path} has a header of {length} bytes, which is longer than {LONGEST_HEADER}, or lists more than "
            f"{MOST_OBJECTS} objects: no network has so many tensors"
        )
    try:
        found = json.loads(text.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is no JSON: {type(error).__name__}: {str(error)[:100]}") from error
    except _TwiceError as error:
        raise CheckpointError(f"{path} names tensors twice, so nobody can tell which are meant: {error}") from error
    metadata = found.pop(METADATA, None) if isinstance(found, dict) else []
    texts = isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    if metadata is not None and not texts:
        raise _damaged(path, "its header is no JSON object of tensors with texts as metadata")
    return found


class _TwiceError(Exception):
    """Names that an object of the header has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _TwiceError(names_in(name for name, count in Counter(name for name, _ in pairs).items() if count > 1))
    return found


def _entries(path: Path, header: dict[str, Any], start: int, size: int) -> list[Entry]:
    """The tensors in the order of their bytes, which fill the file from `start` to its end."""
    found = {name: _entry(name, described, start) for name, described in header.items()}
    if wrong := [f"{name!r} is {problem}" for name, problem in found.items() if isinstance(problem, str)]:
        raise _damaged(path, "; ".join(wrong[:5])[:500])
    entries = sorted((e for e in found.values() if isinstance(e, Entry)), key=lambda entry: (entry.start, entry.stop))
    for entry in entries:
        if entry.start != start:
            raise _damaged(path, f"{entry.name!r} begins at byte {entry.start}, not at {start}, where values end")
        start = entry.stop
    if start != size:
        raise _damaged(path, f"its values end at byte {start} of {size}")
    return entries


def _entry(name: str, described: Any, values: int) -> Entry | str:
    """What the header says of a tensor, or what is wrong with that. values: the byte from which it counts."""
    shape, dtype, span = (described.get(key) if isinstance(described, dict) else None for key in FIELDS)
    if not _are_counts(shape) or not _are_counts(span) or len(span) != 2:
        return f"not described by {FIELDS}, of which the first and the last are lists of counts"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"of type {str(dtype)[:20]!r}, which cannot be read; these can: {', '.join(DTYPES)}"
    if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
        return "named by what is no text"
    start, stop = span
    if len(shape) > MOST_DIMENSIONS or prod(max(side, 1) for side in shape) >= 1 << 60:
        return "of a shape that no tensor has"
    if prod(shape) * DTYPES[dtype].itemsize != stop - start:
        return f"of type {dtype} and shape {shape}, but has {stop - start} bytes"
    return Entry(name, DTYPES[dtype], tuple(shape), values + start, values + stop)


def _are_counts(numbers: Any) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)


def _copy(path: Path, file: BufferedReader, entry: Entry) -> Tensor:
    """The tensor in memory of its own; entries are read in the order of their bytes."""
    values = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
    if file.readinto(values.numpy().data) != len(values):
        raise _damaged(path, f"it ends within {entry.name!r}")
    return values.view(entry.dtype).reshape(entry.shape)


def _view(storage: torch.UntypedStorage, entry: Entry) -> Tensor:
    """The tensor in pages of the file, unless its bytes lie there so that they cannot be used in place."""
    values = torch.empty(0, dtype=torch.uint8).set_(storage[entry.start : entry.stop])
    if entry.start % entry.dtype.itemsize:
        values = values.clone()
    return values.view(entry.dtype).reshape(entry.shape)
