"""Checkpoint readers by file extension. Only tensors, plain containers and argparse's namespaces are ever unpickled."""

import os
import struct
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from pathlib import Path
from pickle import UnpicklingError
from threading import Lock
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from ..errors import CheckpointError, WeightsNotFoundError, in_short, names_in
from .pickle_limits import check_pickles, more_than_tensors
from .state_dict_keys import StateDict

FileState = tuple[int, int, int] | None
ZIP = b"PK\x03\x04"
# Exceptions of torch.load for damaged files, depending on where they are damaged.
DAMAGED = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError)
DAMAGED += (ArithmeticError, MemoryError, ImportError, struct.error, BadZipFile)
# PyTorch keeps its list of allowed classes per process: one file at a time may extend it.
ALLOWING_NAMESPACES = Lock()
WEB_PAGE = "is a web page, not a file of weights: fetch it again from an address that gives the file itself"
# First bytes of files that are often found in place of weights, and what they are.
NOT_WEIGHTS = {
    b"version https://git-lfs": "is a pointer that Git LFS left in the place of the file: run git lfs pull",
    **dict.fromkeys((b"<!DOCTYPE", b"<!doctype", b"<html"), WEB_PAGE),
}


@contextmanager
def require_unchanged(files: Sequence[Path | int], name: object) -> Iterator[None]:
    """Raise CheckpointError when the context exits if a file was changed within it, also in place of another one.

    files: paths, which notice a replaced file, or descriptors, which keep referring to the opened file.
    name: name of the files in the message.
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
    """Inode, size and modification time, which change when a file is written or replaced; None if it is gone."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_pytorch(path: Path, file: BufferedReader, mapped: bool) -> Any:
    """Read a file that `torch.save` wrote, into memory, or memory-mapped if `mapped` and the file is a zip archive.

    Raises CheckpointError if the file is damaged or if reading it would have to run code.
    """
    import torch

    zipped = starts_with(file, ZIP)
    has_namespaces = check_pickles(path, file, _records(path, file) if zipped else None)
    try:
        with _namespaces_allowed() if has_namespaces else nullcontext(), warnings.catch_warnings():
            # torch warns of pickles that it did not write itself; those that it cannot read raise an error
            warnings.simplefilter("ignore", UserWarning)
            source = path if zipped and mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=zipped and mapped)
    except UnpicklingError as error:
        raise CheckpointError(f"{path} {more_than_tensors()} ({in_short(error)})") from error
    except DAMAGED as error:
        raise damaged(path, error) from error


@contextmanager
def _namespaces_allowed() -> Iterator[None]:
    """Let torch.load build `argparse.Namespace`, in which scripts save their arguments: a class without any code."""
    from torch.serialization import get_safe_globals, safe_globals

    with ALLOWING_NAMESPACES:
        if Namespace in get_safe_globals():  # leaving safe_globals would withdraw what the user allowed
            yield
            return
        with safe_globals([Namespace]):
            yield


def starts_with(file: BufferedReader, magic: bytes) -> bool:
    """Whether the file starts with these bytes; its position is reset to the start."""
    file.seek(0)
    beginning = file.read(len(magic))
    file.seek(0)
    return beginning == magic


def _records(path: Path, file: BufferedReader) -> dict[str, int]:
    """Sizes in bytes of the records of a zip archive; CheckpointError for TorchScript and for compressed records.

    PyTorch's files are never compressed. torch.load would map compressed bytes as if they were values, and would unpack
    other records to any declared size.
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
    """The CheckpointError for a file that zipfile or torch.load cannot read."""
    return CheckpointError(f"{path} is not a whole PyTorch file ({in_short(error)}): fetch or save it again")


def read_checkpoint(path: str | Path, mapped: bool = False) -> Any:
    """Read a checkpoint file into CPU memory, independent of later changes to the file.

    Args:
        path: the file, whose extension selects the reader.
        mapped: memory-map the file if its format allows it: private pages, read on first use. The file must then stay
            unchanged as long as the tensors exist; the process crashes if it is truncated.

    Raises:
        WeightsNotFoundError: there is no such file.
        CheckpointError: the file has an unknown format, is damaged, was changed while it was read, or could only be
            read by running code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsNotFoundError(f"{path} is not a file: expected a checkpoint ({', '.join(READERS)})")
    reader = READERS.get(reader_suffix(path.name))
    if reader is None:
        raise CheckpointError(f"{path}: cannot tell what kind of file this is; expected {', '.join(READERS)}")
    with path.open("rb") as file, require_unchanged([file.fileno()], path):
        if not file.read(1):
            raise CheckpointError(f"{path} is empty, so it is not a whole file of weights: fetch or save it again")
        for beginning, problem in NOT_WEIGHTS.items():
            if starts_with(file, beginning):
                raise CheckpointError(f"{path} {problem}")
        return reader(path, file, mapped)


def reader_suffix(name: str) -> str:
    """The extension of a file name that selects its reader; "" if there is none."""
    return next((suffix for suffix in READERS if name.endswith(suffix) and name != suffix), "")


def _read_ckpt(path: Path, file: BufferedReader, mapped: bool) -> Any:
    """Read a MindSpore or Lightning file, which share the extension; Lightning's are files of PyTorch."""
    from .mindspore import read_mindspore

    return read_pytorch(path, file, mapped) if starts_with(file, ZIP) else read_mindspore(path, file)


def _read_h5(path: Path, file: BufferedReader, _mapped: bool) -> StateDict:
    from .keras_file import read_h5

    return read_h5(path, file)


def _read_keras(path: Path, file: BufferedReader, _mapped: bool) -> StateDict:
    from .keras_file import read_keras

    return read_keras(path, file)


def _read_npz(path: Path, file: BufferedReader, _mapped: bool) -> StateDict:
    from .npz import read_npz

    return read_npz(path, file)


def _read_onnx(path: Path, file: BufferedReader, _mapped: bool) -> StateDict:
    from .onnx_file import read_onnx

    return read_onnx(path, file)


def _read_pkl(path: Path, file: BufferedReader, mapped: bool) -> Any:
    """Read a pickle of NumPy arrays, such as Detectron2's; torch.save writes files of any extension."""
    from .numpy_pickle import read_numpy_pickle

    return read_pytorch(path, file, mapped) if starts_with(file, ZIP) else read_numpy_pickle(path, file)


def _read_safetensors(path: Path, file: BufferedReader, mapped: bool) -> StateDict:
    from .safetensors_file import read_safetensors

    return read_safetensors(path, file, mapped)


READERS: dict[str, Callable[[Path, BufferedReader, bool], Any]] = {
    ".safetensors": _read_safetensors,
    ".pt": read_pytorch,
    ".pth": read_pytorch,
    ".pth.tar": read_pytorch,
    ".bin": read_pytorch,
    ".ckpt": _read_ckpt,
    ".npz": _read_npz,
    ".pkl": _read_pkl,
    ".onnx": _read_onnx,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
    ".keras": _read_keras,
}
