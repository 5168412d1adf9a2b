"""PyTorch's own files, `.pt`, `.pth` and `.bin`: pickles, of which only tensors and plain containers are read."""

import struct
import warnings
from io import BufferedReader
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from ..errors import CheckpointError, in_short, names_in
from .pickle_limits import check_pickles, more_than_tensors

ZIP = b"PK\x03\x04"

# What torch.load raises for damaged files, depending on where they are damaged.
DAMAGED = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError)
DAMAGED += (ArithmeticError, MemoryError, ImportError, struct.error, BadZipFile)


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
