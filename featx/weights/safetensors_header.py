"""The header of a safetensors file, bounded before anything is made of it."""

from pathlib import Path

from ..errors import CheckpointError
from .npz import MAX_MEMBERS

LONGEST_HEADER = 32 << 20  # bytes; a network of 20,000 tensors takes 3 MiB, and its metadata perhaps as many
MOST_OBJECTS = 5 * MAX_MEMBERS  # a tensor is one, and metadata may quote some


def check_header(path: Path) -> None:
    """Raise CheckpointError if a safetensors file lists far more tensors than a network has, or in too long a header.

    What is wrong otherwise is left to the library, which reads nothing behind the end of the file.
    """
    with path.open("rb") as file:
        beginning = file.read(8)
        length = int.from_bytes(beginning, "little") if len(beginning) == 8 else 0
        if length > path.stat().st_size:
            return
        objects = file.read(min(length, LONGEST_HEADER)).count(b"{")
    if length > LONGEST_HEADER or objects > MOST_OBJECTS:
        raise CheckpointError(
            f"{path} has a header of {length} bytes with {objects} objects, more than the {LONGEST_HEADER} and "
            f"{MOST_OBJECTS} that are read: no network has so many tensors"
        )
