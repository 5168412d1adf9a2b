"""PyTorch's own files, `.pt`, `.pth` and `.bin`: pickles, of which only tensors and plain containers are read."""

import re
import struct
import warnings
from io import BufferedReader
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from ..errors import CheckpointError

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
    try:
        if zipped:
            _require_plain(path, file)
        with warnings.catch_warnings():
            # torch warns of pickles it did not write itself; whether it can read this one shows in a moment
            warnings.simplefilter("ignore", UserWarning)
            source = path if zipped and mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=zipped and mapped)
    except CheckpointError:
        raise
    except UnpicklingError as error:
        raise CheckpointError(f"{path} {_refused(str(error))}") from error
    except DAMAGED as error:
        if "weights_only=True" in str(error):  # a tar file of PyTorch 0.1
            raise CheckpointError(f"{path} {_refused('')}") from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is not a whole PyTorch file ({reason}): fetch or save it again") from error


def begins(file: BufferedReader, magic: bytes) -> bool:
    """Whether the file, which is left at its start, begins with these bytes."""
    file.seek(0)
    beginning = file.read(len(magic))
    file.seek(0)
    return beginning == magic


def _require_plain(path: Path, file: BufferedReader) -> None:
    """Raise CheckpointError if a zip file is a TorchScript program, or compressed, as PyTorch's never are.

    torch.load would map compressed bytes as if they were values, and unpack the rest however large it says it is.
    """
    with ZipFile(file) as archive:
        members = archive.infolist()
    size = file.seek(0, 2)
    file.seek(0)
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise CheckpointError(f"{path} {_refused('GLOBAL TorchScript was not')}")
    packed = [member.filename for member in members if member.compress_type != ZIP_STORED]
    if packed:
        raise CheckpointError(f"{path} is compressed, as PyTorch's files never are ({packed[:5]}): save it again")
    if sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{path} is not a whole PyTorch file (its records overlap): fetch or save it again")


def _refused(reason: str) -> str:
    """What to say of a file that is no plain dictionary of tensors; `reason` is torch's."""
    found = re.search(r"GLOBAL (\S+) (?:was not|whose module)", reason)
    what = f"tensors ({found[1]})" if found else "tensors, or is damaged"
    return (
        f"holds more than {what}; it was not read, because reading it could run code. If you trust it, read it with "
        "torch.load(path, weights_only=False) and save its state_dict() as safetensors"
    )
