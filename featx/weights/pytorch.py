"""PyTorch's own files, `.pt`, `.pth` and `.bin`: pickles, of which only tensors and plain containers are read."""

import struct
import warnings
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


def read_pytorch(path: Path) -> Any:
    """What `torch.save` wrote; a file of PyTorch 1.6 or later is mapped, and its pages are read when they are used.

    Raises CheckpointError if the file is damaged or would have to run code to be read.
    """
    import torch

    zipped = begins(path, ZIP)
    if zipped:
        _require_plain(path)
    with path.open("rb") as file:
        check_pickles(path, file, zipped)
    try:
        with warnings.catch_warnings():
            # torch warns of pickles it did not write itself; whether it can read this one shows in a moment
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UnpicklingError as error:
        raise CheckpointError(f"{path} {more_than_tensors()} ({in_short(error)})") from error
    except DAMAGED as error:
        raise damaged(path, error) from error


def begins(path: Path, magic: bytes) -> bool:
    """Whether the file begins with these bytes."""
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _require_plain(path: Path) -> None:
    """Raise CheckpointError if a zip file is a TorchScript program, or compressed, as PyTorch's never are.

    torch.load would map compressed bytes as if they were values, and unpack the rest however large it says it is.
    """
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
    except DAMAGED as error:
        raise damaged(path, error) from error
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise CheckpointError(f"{path} {more_than_tensors('TorchScript')}")
    packed = [member.filename for member in members if member.compress_type != ZIP_STORED]
    if packed:
        raise CheckpointError(f"{path} is compressed, as PyTorch's files never are ({names_in(packed)}): save it again")


def damaged(path: Path, error: BaseException) -> CheckpointError:
    """The error for a file that zipfile or torch.load cannot read."""
    return CheckpointError(f"{path} is not a whole PyTorch file ({in_short(error)}): fetch or save it again")
