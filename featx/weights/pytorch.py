"""PyTorch's own files, `.pt`, `.pth` and `.bin`: pickles, of which only tensors and plain containers are read."""

import re
import struct
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from ..errors import CheckpointError

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
    try:
        if zipped:
            _require_plain(path)
        with warnings.catch_warnings():
            # torch warns of pickles it did not write itself; whether it can read this one shows in a moment
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except UnpicklingError as error:
        raise CheckpointError(f"{path} {_refused(str(error))}") from error
    except DAMAGED as error:
        if "weights_only=True" in str(error):  # a tar file of PyTorch 0.1
            raise CheckpointError(f"{path} {_refused('')}") from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is not a whole PyTorch file ({reason}): fetch or save it again") from error


def begins(path: Path, magic: bytes) -> bool:
    """Whether the file begins with these bytes."""
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _require_plain(path: Path) -> None:
    """Raise CheckpointError if a zip file is a TorchScript program, or compressed, as PyTorch's never are.

    torch.load would map compressed bytes as if they were values, and unpack the rest however large it says it is.
    """
    with ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise CheckpointError(f"{path} {_refused('GLOBAL TorchScript was not')}")
    packed = [member.filename for member in members if member.compress_type != ZIP_STORED]
    if packed:
        raise CheckpointError(f"{path} is compressed, as PyTorch's files never are ({packed[:5]}): save it again")


def _refused(reason: str) -> str:
    """What to say of a file that is no plain dictionary of tensors; `reason` is torch's."""
    found = re.search(r"GLOBAL (\S+) (?:was not|whose module)", reason)
    what = f"tensors ({found[1]})" if found else "tensors, or is damaged"
    return (
        f"holds more than {what}; it was not read, because reading it could run code. If you trust it, read it with "
        "torch.load(path, weights_only=False) and save its state_dict() as safetensors"
    )
