"""Which files and folders among the inputs are what featx itself wrote, and so hold no images."""

import os
import re
from typing import get_args

from ..errors import OutputError
from .folder import INDEX, shards_in
from .formats import Format
from .meta import read_meta
from .systems import is_address

# "maps.npy" beside "maps", and what its writer calls it until it is whole
CONVERTED = re.compile(rf"\.?(.+?)\.(?:{'|'.join(get_args(Format))})(?:\..*part)?", re.DOTALL)


class Outputs:
    """Knows the folder that maps go to, which need not exist yet, and every other folder of maps by what is in it."""

    def __init__(self, out: str | os.PathLike[str] | None) -> None:
        self._out = None if out is None else os.path.realpath(out)
        self._known: dict[str, bool] = {}

    def is_out(self, folder: str) -> bool:
        """Whether it is the folder that maps go to."""
        return self._out is not None and os.path.realpath(folder) == self._out

    def has(self, path: str, is_folder: bool = True) -> bool:
        """Whether a path of this machine is a folder of maps, or is named as their conversion and lies beside them."""
        if is_folder and self._are_maps(path):
            return True
        folder, name = os.path.split(path)
        converted = CONVERTED.fullmatch(name)
        return converted is not None and self._are_maps(os.path.join(folder, converted[1]))

    def hold(self, path: str, root: str) -> bool:
        """Whether a file, or a folder that it is in below the root, is one of these."""
        is_folder = False
        while len(path) > len(root):
            if self.has(path, is_folder):
                return True
            path, is_folder = os.path.dirname(path), True
        return False

    def _are_maps(self, path: str) -> bool:
        if path not in self._known:
            same_name = self._out is not None and os.path.basename(path) == os.path.basename(self._out)
            is_out = same_name and self.is_out(path)
            self._known[path] = is_out or (os.path.isdir(path) and are_maps(path))
        return self._known[path]


def are_maps(folder: str) -> bool:
    """Whether a folder of this machine, or at an address, is one of maps, whole or damaged."""
    try:
        return read_meta(folder) is not None
    except OutputError:  # another program's meta.json, a damaged one, or a folder that cannot be read
        return not is_address(folder) and _has_shards(folder)


def _has_shards(folder: str) -> bool:
    try:
        return bool(shards_in(folder))
    except OutputError:
        return False


def is_index(name: str) -> bool:
    """Whether a file has the name of the table of a folder of maps."""
    return name.rpartition("/")[2] == INDEX
