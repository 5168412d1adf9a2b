"""Readers of files of weights, by their ending. Nothing is ever unpickled but tensors and plain containers."""

import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from ..errors import CheckpointError, WeightsNotFoundError, in_short, names_in
from .pickle_limits import check_pickles, more_than_tensors
from .state_dict_keys import StateDict

FileState = tuple[int, int, int] | None
ZIP = b"PK\x03\x04"
# What torch.load raises for damaged files, depending on where they are damaged.
DAMAGED = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError)
DAMAGED += (ArithmeticError, MemoryError, ImportError, struct.error, BadZipFile)
WEB_PAGE = "is a web page, not a file of weights: fetch it again from an address that gives the file itself"
# Beginnings of what often lies where weights are expected, and what it is.
OTHERS = {
    b"version https://git-lfs": "is a pointer that Git LFS left in the place of the file: run git lfs pull",
    **dict.fromkeys((b"<!DOCTYPE", b"<!doctype", b"<html"), WEB_PAGE),
}


@contextmanager
def unchanged(files: Sequence[Path | int], name: object) -> Iterator[None]:
    """Raise CheckpointError at the end, also in the place of one raised inside, if a file has changed meanwhile.

    files: paths, which may come to stand for other files, or descriptors, which go on standing for the file that was
        opened when another takes its place. name: what the error calls them.
    """
    before = [_state(file) for file in files]

    def require() -> None:
        if [_state(file) for file in files] != before:
            raise CheckpointError(f"{name} was changed while it was read: load it again when it is written")

    try:
        yield
    except CheckpointError:
        require()
        raise
    require()


def _state(file: Path | int) -> FileState:
    """What changes when the file is written to, or another takes its place; None if it is gone."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_pytorch(path: Path, file: BufferedReader, mapped: bool) -> Any:
    """What `torch.save` wrote, in memory of its own, or in private pages of a file of PyTorch 1.6 or later if `mapped`.

    Raises CheckpointError if the file is damaged or would have to run code to be read.
    """
    import torch

    zipped = begins(file, ZIP)
    check_pickles(path, file, _records(path, file) if zipped else None)
    try:
        with warnings.catch_warnings():
            # torch warns of pickles it did not write itself; whether it can read this one shows in a moment
            warnings.simplefilter("ignore", UserWarning)
            source = path if zipped and mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=zipped and mapped)
    except UnpicklingError as error:
        raise CheckpointError(f"{path} {more_than_tensors()} ({in_short(error)})") from error
    except DAMAGED as error:
        raise damaged(path, error) from error


def begins(file: BufferedReader, magic: bytes) -> bool:
    """Whether the file, which is left at its start, begins with these bytes."""
    file.seek(0)
    beginning = file.read(len(magic))
    file.seek(0)
    return beginning == magic


def _records(path: Path, file: BufferedReader) -> dict[str, int]:
    """Bytes of each record of a zip file; CheckpointError for a TorchScript program, and for what is compressed.

    PyTorch's files never are, and torch.load would map compressed bytes as if they were values, and unpack the rest
    however large it says it is.
    """
    try:
        with ZipFile(file) as archive:
            members = archive.infolist()
    except DAMAGED as error:
        raise damaged(path, error) from error
    size = file.seek(0, 2)
    file.seek(0)
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise CheckpointError(f"{path} {more_than_tensors('TorchScript')}")
    packed = [member.filename for member in members if member.compress_type != ZIP_STORED]
    if packed:
        raise CheckpointError(f"{path} is compressed, as PyTorch's files never are ({names_in(packed)}): save it again")
    if sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{path} is not a whole PyTorch file (its records overlap): fetch or save it again")
    return {member.filename.partition("/")[2]: member.file_size for member in members}


def damaged(path: Path, error: BaseException) -> CheckpointError:
    """The error for a file that zipfile or torch.load cannot read."""
    return CheckpointError(f"{path} is not a whole PyTorch file ({in_short(error)}): fetch or save it again")


def read_checkpoint(path: str | Path, mapped: bool = False) -> Any:
    """What a file of weights holds, on the CPU, in memory that nothing done to the file afterwards changes.

    mapped: tensors of formats that allow it are private pages of the file instead, read when they are first used. The
        file must then stay as it is as long as the tensors do: one that is cut off ends the process.

    Raises WeightsNotFoundError if there is no such file, CheckpointError if it is of another kind, damaged, changed
    while it was read, or would have to run code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsNotFoundError(f"{path} is not a file: expected a checkpoint ({', '.join(READERS)})")
    if path.suffix not in READERS:
        raise CheckpointError(f"{path}: cannot tell what kind of file this is; expected {', '.join(READERS)}")
    with path.open("rb") as file, unchanged([file.fileno()], path):
        if not file.read(1):
            raise CheckpointError(f"{path} is empty, so it is not a whole file of weights: fetch or save it again")
        for beginning, problem in OTHERS.items():
            if begins(file, beginning):
                raise CheckpointError(f"{path} {problem}")
        return READERS[path.suffix](path, file, mapped)


def _read_ckpt(path: Path, file: BufferedReader, mapped: bool) -> Any:
    """MindSpore's and Lightning's files end alike; Lightning's are PyTorch's."""
    from .mindspore import read_mindspore

    return read_pytorch(path, file, mapped) if begins(file, ZIP) else read_mindspore(path, file)


def _read_npz(path: Path, file: BufferedReader, _mapped: bool) -> StateDict:
    from .npz import read_npz

    return read_npz(path, file)


def _read_safetensors(path: Path, file: BufferedReader, mapped: bool) -> StateDict:
    from .safetensors_file import read_safetensors

    return read_safetensors(path, file, mapped)


READERS: dict[str, Callable[[Path, BufferedReader, bool], Any]] = {
    ".safetensors": _read_safetensors,
    ".pt": read_pytorch,
    ".pth": read_pytorch,
    ".bin": read_pytorch,
    ".ckpt": _read_ckpt,
    ".npz": _read_npz,
}
