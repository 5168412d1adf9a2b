"""What comes before the page: no other site's requests, no large ones, and uploads that are bounded per visitor.

Uploaded photographs are not too large, decoded, and gone from the disk.
"""

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from ..errors import ImageError
from ..images import Opening, open_image, stated_size

MIB = 2**20
READING = ("GET", "HEAD", "OPTIONS")
OWN = ("same-origin", "none")  # values of Sec-Fetch-Site: this page, and the visitor's own hands
LARGEST_REQUEST = MIB  # bytes of all requests but uploads
AROUND = 64 * 2**10  # bytes of a form around its file
AT_ONCE = 4  # uploads that a visitor sends at the same time
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest photograph that is taken, and how many of a visitor's may wait on the disk to be decoded.

    nbytes: of its file. pixels: width times height. aspect: its longer side by its shorter one, as a model sees the
    shorter side at a fixed size. waiting: files of a visitor; the oldest are deleted for new ones.
    """

    nbytes: int = 32 * MIB
    pixels: int = 50_000_000
    aspect: float = 4.0
    waiting: int = 8


def take(path: Path, limits: Limits) -> Image.Image:
    """The photograph in RGB, upright, and its file deleted, also if it is refused.

    Raises ImageError if it is no image or larger than the limits.
    """
    try:
        _require_small(path, limits)
        return open_image(path, Opening(max_pixels=limits.pixels))
    finally:
        delete(path)


def delete(path: Path) -> None:
    """Delete an upload, and the folder that was made for it if nothing else is in it."""
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()


def _require_small(path: Path, limits: Limits) -> None:
    try:
        nbytes = path.stat().st_size
    except FileNotFoundError as error:  # for which the page took later ones
        raise ImageError("the file is not there any more: drop it again") from error
    if nbytes > limits.nbytes:
        raise ImageError(
            f"the file has {nbytes / MIB:.1f} MiB, and this page takes up to {limits.nbytes / MIB:.0f} MiB: "
            "make the picture smaller first"
        )
    width, height = stated_size(path)  # before any pixel takes memory
    if width * height > limits.pixels:
        raise ImageError(
            f"the picture has {width}x{height} pixels, {width * height / 1e6:.0f} million, and this page takes up to "
            f"{limits.pixels / 1e6:.0f} million: make it smaller first"
        )
    if max(width, height) > limits.aspect * min(width, height):
        raise ImageError(
            f"the picture has {width}x{height} pixels: one side is more than {limits.aspect:g} times the other; "
            "crop it first"
        )


@dataclass(frozen=True, slots=True)
class Waiting:
    """An upload on the disk that the page has not yet decoded."""

    visitor: str
    nbytes: int


class Guard:
    """An ASGI application around another one. Visitors are told apart by their addresses."""

    def __init__(self, app: App, limits: Limits) -> None:
        self._app, self._limits = app, limits
        self._waiting: dict[Path, Waiting] = {}  # the oldest first
        self._sending: Counter[str] = Counter()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer, or have the application answer."""
        if scope["type"] != "http" or scope["method"] in READING:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        largest = self._limits.nbytes + AROUND if is_upload else LARGEST_REQUEST
        visitor = (scope.get("client") or ("",))[0]
        if (refusal := refused(headers, largest)) is not None:
            await _answer(send, *refusal)
        elif not is_upload:
            await self._app(scope, receive, send)
        elif self._sending[visitor] >= AT_ONCE:
            await _answer(send, 429, f"more than {AT_ONCE} uploads at once: wait for the first ones")
        else:
            await self._upload(visitor, scope, receive, send)

    async def _upload(self, visitor: str, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self._make_room(visitor)
        answered = bytearray()

        async def seen(message: Message) -> None:
            answered.extend(message.get("body", b""))
            await send(message)

        self._sending[visitor] += 1
        try:
            await self._app(scope, receive, seen)
        finally:
            self._sending -= Counter([visitor])
            self._remember(visitor, bytes(answered))

    def _make_room(self, visitor: str) -> None:
        """Delete the oldest uploads of the visitor, and of all, so that one more is within the limits."""
        self._waiting = {path: one for path, one in self._waiting.items() if path.exists()}
        own = [path for path, one in self._waiting.items() if one.visitor == visitor]
        self._keep(own, self._limits.waiting)
        self._keep([*self._waiting], 8 * self._limits.waiting)

    def _keep(self, paths: list[Path], most: int) -> None:
        """Delete the first of these until fewer than so many are left, and of fewer bytes than so many files have."""
        nbytes = sum(self._waiting[path].nbytes for path in paths)
        while paths and (len(paths) >= most or nbytes > (most - 1) * self._limits.nbytes):
            nbytes -= self._waiting.pop(paths[0]).nbytes
            delete(paths.pop(0))

    def _remember(self, visitor: str, answer: bytes) -> None:
        """Note the files that the application says it has written."""
        try:
            paths = json.loads(answer)
        except ValueError:  # a message that says why it has not
            return
        for path in map(Path, paths if isinstance(paths, list) else ()):
            self._waiting.pop(path, None)
            self._waiting[path] = Waiting(visitor, path.stat().st_size if path.exists() else 0)


def refused(headers: Mapping[str, str], largest: int) -> tuple[int, str] | None:
    """Status and reason for a request that changes something, by its headers; None if it may be answered."""
    if is_cross_site(headers):
        return 403, "this request comes from the page of another site: open this page itself"
    if "content-length" not in headers:
        return 411, "this request does not say how many bytes it has"
    if not headers["content-length"].isdecimal() or int(headers["content-length"]) > largest:
        return 413, f"this request has more than {largest} bytes"
    return None


def is_cross_site(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent the request for the page of another origin; programs say nothing of the kind."""
    if "sec-fetch-site" in headers:
        return headers["sec-fetch-site"] not in OWN
    origin = headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:
        return True


async def _answer(send: Send, status: int, reason: str) -> None:
    content = reason.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", f"{len(content)}".encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
