"""Addresses of files on the web: what is one, and what a server may answer to it."""

import re
from http.client import HTTPResponse
from urllib.parse import urlsplit

from ..errors import ArgumentError, in_short

LONGEST_ADDRESS, LONGEST_NAME = 8192, 200  # characters, and bytes: temporary names are longer
MOST_DIGITS = 15  # of the length of a file


def is_address(text: str) -> bool:
    """Whether the text begins as an http or https address does."""
    return re.match("https?://", text, re.IGNORECASE) is not None


def checked_address(url: str) -> str:
    """The address; ArgumentError if it cannot be one, or holds a password, which is not printed."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError as error:  # of brackets, ports and labels of more than 63 characters; it may quote a password
        reason = "" if "@" in url else f" ({in_short(error)})"
        raise ArgumentError(f"{_shown(url)!r} is no address{reason}: expected https://host/path/file.pth") from None
    if "@" in parts.netloc:
        raise ArgumentError(
            f"{_shown(url)!r} holds the name or password of a user, which would be sent and kept in the open: download "
            "the file yourself, and pass its path"
        )
    name = parts.path.rpartition("/")[2]
    if not host or not url.isprintable() or len(url) > LONGEST_ADDRESS or len(name.encode()) > LONGEST_NAME:
        raise ArgumentError(
            f"{_shown(url)!r} is no address of a file: expected https://host/path/file.pth, of at most "
            f"{LONGEST_ADDRESS} characters, {LONGEST_NAME} of them in the name"
        )
    return url


def opened(url: str, patience: float) -> HTTPResponse:
    """The answer of the server. patience: seconds without a byte. OSError or HTTPException if there is none."""
    from urllib.request import urlopen

    try:
        return urlopen(url, timeout=patience)
    except ValueError as error:  # of an address that the server sends us to
        raise ConnectionError(f"it leads to what is no address: {in_short(error)}") from error


def content_length(announced: str | None) -> int | None:
    """The bytes that a server announces in its header; None if it announces none, or what is no number of them."""
    if announced is None or not re.fullmatch(f"[0-9]{{1,{MOST_DIGITS}}}", announced):
        return None
    return int(announced) or None


def _shown(url: str) -> str:
    """The address for a message: without a user's name and password, and cut."""
    scheme, slashes, rest = url.partition("//")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"[:160]
