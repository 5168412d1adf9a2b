"""Whether two inputs name one image, by whatever spelling, link or address."""

import os
from collections.abc import Hashable

from .systems import is_address


class Places:
    """What tells where an image is: the same for every path and address of one file of this machine."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, place: str) -> Hashable:
        """An address as it is, but for slashes at its beginning; of a path what it is in the end, whoever links to it.

        Hard links of two names are two files. Where capitals make no difference, the file tells.
        """
        scheme, _, rest = place.partition("://")
        if is_address(place) and scheme not in ("file", "local"):
            return f"{scheme}://{rest.lstrip('/')}"
        path, within = rest if is_address(place) else place, []
        while True:
            try:
                told = os.stat(path)
            except NotADirectoryError:  # within a tar or a table
                path, name = os.path.split(path)
                within.append(name)
            except (OSError, ValueError):
                return os.path.abspath(place)
            else:
                return self._real(path).casefold(), told.st_dev, told.st_ino, *within

    def _real(self, path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)
