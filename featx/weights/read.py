"""Files of weights as dictionaries of tensors. Nothing is ever unpickled but tensors and plain containers."""

import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, WeightsNotFoundError

StateDict = dict[str, Tensor]

PICKLES = (".pt", ".pth", ".bin")


def read_checkpoint(path: str | Path) -> Any:
    """What a `.safetensors`, `.pt`, `.pth`, `.bin` or `.npz` file holds, on the CPU.

    Raises WeightsNotFoundError if there is no such file, CheckpointError if it is of another kind, damaged, or would
    have to run code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsNotFoundError(f"{path} is not a file: expected a checkpoint ({_kinds()})")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLES:
        return _read_pickle(path)
    if path.suffix == ".npz":
        from .npz import read_npz

        return read_npz(path)
    raise CheckpointError(f"{path}: cannot tell what kind of file this is; expected {_kinds()}")


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
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, or is damaged; it was not read, because reading it could run code. If "
            "you trust it, read it with torch.load(path, weights_only=False) and save its state_dict() as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a whole PyTorch file ({error}): fetch or save it again") from error


def _kinds() -> str:
    return ", ".join((".safetensors", *PICKLES, ".npz"))
