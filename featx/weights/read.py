"""Files of weights as dictionaries of tensors. Nothing is ever unpickled but tensors and plain containers."""

import warnings
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, WeightsNotFoundError

StateDict = dict[str, Tensor]

ZIP = b"PK\x03\x04"


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
    return READERS[path.suffix](path)


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}): fetch or save it again") from error


def _read_pickle(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            # torch warns of pickles it did not write itself; whether it can read this one shows in a moment
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_begins(path, ZIP))
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, or is damaged; it was not read, because reading it could run code. If "
            "you trust it, read it with torch.load(path, weights_only=False) and save its state_dict() as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a whole PyTorch file ({error}): fetch or save it again") from error


def _read_ckpt(path: Path) -> Any:
    """MindSpore's and Lightning's files end alike; Lightning's are PyTorch's."""
    from .mindspore import read_mindspore

    return _read_pickle(path) if _begins(path, ZIP) else read_mindspore(path)


def _read_npz(path: Path) -> StateDict:
    from .npz import read_npz

    return read_npz(path)


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_pickle,
    ".pth": _read_pickle,
    ".bin": _read_pickle,
    ".ckpt": _read_ckpt,
    ".npz": _read_npz,
}
