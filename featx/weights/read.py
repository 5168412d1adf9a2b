"""Files of weights as dictionaries of tensors. Nothing is ever unpickled but tensors and plain containers."""

import json
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, WeightsNotFoundError, names_in
from .pytorch import ZIP, begins, read_pytorch
from .safetensors_header import check_header
from .state import StateDict

WEB_PAGE = "is a web page, not a file of weights: fetch it again from an address that gives the file itself"

# Beginnings of what often lies where weights are expected, and what it is.
OTHERS = {
    b"version https://git-lfs": "is a pointer that Git LFS left in the place of the file: run git lfs pull",
    **dict.fromkeys((b"<!DOCTYPE", b"<!doctype", b"<html"), WEB_PAGE),
}


def read_checkpoint(path: str | Path) -> Any:
    """What a file of weights holds, on the CPU; where the format allows it, pages are read when they are first used.

    Raises WeightsNotFoundError if there is no such file, CheckpointError if it is of another kind, damaged, or would
    have to run code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsNotFoundError(f"{path} is not a file: expected a checkpoint ({', '.join(READERS)})")
    if path.suffix not in READERS:
        raise CheckpointError(f"{path}: cannot tell what kind of file this is; expected {', '.join(READERS)}")
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty, so it is not a whole file of weights: fetch or save it again")
    for beginning, problem in OTHERS.items():
        if begins(path, beginning):
            raise CheckpointError(f"{path} {problem}")
    return READERS[path.suffix](path)


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_header(path)
    try:
        state = load_file(path)
    except (SafetensorError, TypeError) as error:  # TypeError: of a shape beyond 64 bits that holds nothing
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}): fetch or save it again") from error
    if twice := _named_twice(path):
        raise CheckpointError(f"{path} names tensors twice, so nobody can tell which are meant: [{names_in(twice)}]")
    return state


def _named_twice(path: Path) -> list[str]:
    """Names that the header of a safetensors file has twice: the library checks all else, but takes the last."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        names: Counter[str] = json.loads(
            file.read(length), object_pairs_hook=lambda pairs: Counter(n for n, _ in pairs)
        )
    return [name for name, count in names.items() if count > 1]


def _read_ckpt(path: Path) -> Any:
    """MindSpore's and Lightning's files end alike; Lightning's are PyTorch's."""
    from .mindspore import read_mindspore

    return read_pytorch(path) if begins(path, ZIP) else read_mindspore(path)


def _read_npz(path: Path) -> StateDict:
    from .npz import read_npz

    return read_npz(path)


READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _read_safetensors,
    ".pt": read_pytorch,
    ".pth": read_pytorch,
    ".bin": read_pytorch,
    ".ckpt": _read_ckpt,
    ".npz": _read_npz,
}
