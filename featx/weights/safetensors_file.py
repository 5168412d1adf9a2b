"""Read safetensors files (https://github.com/huggingface/safetensors): a JSON header, then contiguous values.

All offsets in the header are checked before memory is allocated. The safetensors package always memory-maps files, and
accepts duplicate names, of which it reads the last.
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

LONGEST_HEADER = 32 << 20  # bytes; 20,000 tensors take 3 MiB, and metadata perhaps as many
MOST_OBJECTS = 5 * MAX_MEMBERS  # a tensor is one object; metadata may contain some in quotes
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
# the supported float8 types depend on the release of PyTorch
DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in NAMES.items() if hasattr(torch, name)}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in the header. start, stop: positions of its first byte and after its last byte."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def read_safetensors(path: Path, file: BufferedReader, mapped: bool) -> StateDict:
    """Read the tensors of a file by name, into memory, or memory-mapped with private pages if `mapped`.

    Raises:
        CheckpointError: the file is damaged or has a type that PyTorch lacks.
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
    """The parsed header; the file is then positioned at the first value."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise _damaged(path, f"its header would take {length} bytes of {size}")
    text = file.read(min(length, LONGEST_HEADER))
    if length > LONGEST_HEADER or text.count(b"{") > MOST_OBJECTS:
        raise CheckpointError(
            f"{path} has a header of {length} bytes, which is longer than {LONGEST_HEADER}, or lists more than "
            f"{MOST_OBJECTS} objects: no network has that many tensors"
        )
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique_object)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON: {type(error).__name__}: {str(error)[:100]}") from error
    except _DuplicateKeysError as error:
        raise CheckpointError(f"{path} names tensors twice, so nobody can tell which are meant: {error}") from error
    metadata = header.pop(METADATA, None) if isinstance(header, dict) else []
    texts = isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    if metadata is not None and not texts:
        raise _damaged(path, "its header is not a JSON object of tensors with strings as metadata")
    return header


class _DuplicateKeysError(Exception):
    """An object of the header has duplicate keys; the message lists them."""


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise _DuplicateKeysError(
            names_in(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        )
    return unique


def _entries(path: Path, header: dict[str, Any], start: int, size: int) -> list[Entry]:
    """The tensors in the order of their bytes; CheckpointError unless they fill the file from `start` to its end."""
    parsed = {name: _entry(name, description, start) for name, description in header.items()}
    if wrong := [f"{name!r} is {problem}" for name, problem in parsed.items() if isinstance(problem, str)]:
        raise _damaged(path, "; ".join(wrong[:5])[:500])
    entries = sorted((e for e in parsed.values() if isinstance(e, Entry)), key=lambda entry: (entry.start, entry.stop))
    for entry in entries:
        if entry.start != start:
            raise _damaged(path, f"{entry.name!r} begins at byte {entry.start}, not at {start}, where values end")
        start = entry.stop
    if start != size:
        raise _damaged(path, f"its values end at byte {start} of {size}")
    return entries


def _entry(name: str, description: Any, values: int) -> Entry | str:
    """The entry of a tensor, or the problem with its description. values: position that its offsets are relative to."""
    shape, dtype, span = (description.get(key) if isinstance(description, dict) else None for key in FIELDS)
    if not _are_counts(shape) or not _are_counts(span) or len(span) != 2:
        return f"not described by {FIELDS}, of which the first and the last are lists of counts"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"of type {str(dtype)[:20]!r}, which cannot be read; these can: {', '.join(DTYPES)}"
    if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
        return "named with invalid Unicode"
    start, stop = span
    if len(shape) > MOST_DIMENSIONS or prod(max(side, 1) for side in shape) >= 1 << 60:
        return "of a shape that no tensor has"
    if prod(shape) * DTYPES[dtype].itemsize != stop - start:
        return f"of type {dtype} and shape {shape}, but has {stop - start} bytes"
    return Entry(name, DTYPES[dtype], tuple(shape), values + start, values + stop)


def _are_counts(numbers: Any) -> TypeGuard[list[int]]:
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)


def _copy(path: Path, file: BufferedReader, entry: Entry) -> Tensor:
    """Read a tensor into memory; tensors are read in the order of their bytes."""
    values = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
    if file.readinto(values.numpy().data) != len(values):
        raise _damaged(path, f"it ends within {entry.name!r}")
    return values.view(entry.dtype).reshape(entry.shape)


def _view(storage: torch.UntypedStorage, entry: Entry) -> Tensor:
    """The tensor as a view of the mapped file, or a copy if its bytes are not aligned."""
    values = torch.empty(0, dtype=torch.uint8).set_(storage[entry.start : entry.stop])
    if entry.start % entry.dtype.itemsize:
        values = values.clone()
    return values.view(entry.dtype).reshape(entry.shape)
