"""Files of weights as dictionaries of tensors. Nothing is ever unpickled but tensors and plain containers."""

from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, WeightsNotFoundError
from .file_changes import unchanged
from .pytorch import ZIP, begins, read_pytorch
from .state import StateDict

WEB_PAGE = "is a web page, not a file of weights: fetch it again from an address that gives the file itself"

# Beginnings of what often lies where weights are expected, and what it is.
OTHERS = {
    b"version https://git-lfs": "is a pointer that Git LFS left in the place of the file: run git lfs pull",
    **dict.fromkeys((b"<!DOCTYPE", b"<!doctype", b"<html"), WEB_PAGE),
}


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
