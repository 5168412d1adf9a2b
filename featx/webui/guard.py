"""ASGI middleware that rejects cross-site and large requests and limits each visitor's uploads.

An uploaded photograph is checked against the limits, decoded, and deleted from the disk.
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
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
SAME_SITE = ("same-origin", "none")  # values of Sec-Fetch-Site: from this page, or typed by the visitor
LARGEST_REQUEST = MIB  # bytes of a request that is not an upload
FORM_OVERHEAD = 64 * 2**10  # bytes of a form without its file
PARALLEL_UPLOADS = 4  # concurrent uploads of one visitor
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on uploaded photographs.

    Attributes:
        nbytes: bytes of the file.
        pixels: width times height.
        aspect: longer side divided by shorter side; the shorter side sets the scale of the model's input.
        waiting: a visitor's files on the disk; the oldest are deleted for new ones.
    """

    nbytes: int = 32 * MIB
    pixels: int = 50_000_000
    aspect: float = 4.0
    waiting: int = 8


def open_upload(path: Path, limits: Limits) -> Image.Image:
    """The photograph in RGB, upright. Its file is deleted in any case.

    Raises:
        ImageError: the file is not an image, or exceeds the limits.
    """
    try:
        _require_small(path, limits)
        return open_image(path, Opening(max_pixels=limits.pixels))
    finally:
        delete(path)


def delete(path: Path) -> None:
    """Delete an upload, and its folder if that is then empty."""
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()


def _require_small(path: Path, limits: Limits) -> None:
    try:
        nbytes = path.stat().st_size
    except FileNotFoundError as error:  # evicted for later uploads
        raise ImageError("the file is not there any more: drop it again") from error
    if nbytes > limits.nbytes:
        raise ImageError(
            f"the file has {nbytes / MIB:.1f} MiB, and this page takes up to {limits.nbytes / MIB:.0f} MiB: "
            "make the picture smaller first"
        )
    width, height = stated_size(path)  # before any pixel is decoded
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
class PendingUpload:
    """An upload on the disk that has not been decoded yet."""

    visitor: str
    nbytes: int


class Guard:
    """ASGI middleware around an application. A visitor is a client address."""

    def __init__(self, app: App, limits: Limits) -> None:
        self._app, self._limits = app, limits
        self._waiting: dict[Path, PendingUpload] = {}  # oldest first
        self._sending: Counter[str] = Counter()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Reject the request, or pass it to the application."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        largest = self._limits.nbytes + FORM_OVERHEAD if is_upload else LARGEST_REQUEST
        visitor = (scope.get("client") or ("",))[0]
        if (refusal := rejection(headers, largest)) is not None:
            await _answer(send, *refusal)
        elif not is_upload:
            await self._app(scope, receive, send)
        elif self._sending[visitor] >= PARALLEL_UPLOADS:
            await _answer(send, 429, f"more than {PARALLEL_UPLOADS} uploads at once: wait for the first ones")
        else:
            await self._upload(visitor, scope, receive, send)

    async def _upload(self, visitor: str, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self._make_room(visitor)
        answered = bytearray()

        async def forward_message(message: Message) -> None:
            answered.extend(message.get("body", b""))
            await send(message)

        self._sending[visitor] += 1
        try:
            await self._app(scope, receive, forward_message)
        finally:
            self._sending -= Counter([visitor])
            self._remember(visitor, bytes(answered))

    def _make_room(self, visitor: str) -> None:
        """Delete the oldest uploads of the visitor, and of all visitors, so that one more is within the limits."""
        self._waiting = {path: upload for path, upload in self._waiting.items() if path.exists()}
        of_visitor = [path for path, upload in self._waiting.items() if upload.visitor == visitor]
        self._evict(of_visitor, self._limits.waiting)
        self._evict([*self._waiting], 8 * self._limits.waiting)

    def _evict(self, paths: list[Path], most: int) -> None:
        """Delete the first paths until fewer than `most` are left, with room for the bytes of one more."""
        nbytes = sum(self._waiting[path].nbytes for path in paths)
        while paths and (len(paths) >= most or nbytes > (most - 1) * self._limits.nbytes):
            nbytes -= self._waiting.pop(paths[0]).nbytes
            delete(paths.pop(0))

    def _remember(self, visitor: str, answer: bytes) -> None:
        """Record the files that the application's answer lists."""
        try:
            paths = json.loads(answer)
        except ValueError:  # an error message instead of a list
            return
        for path in map(Path, paths if isinstance(paths, list) else ()):
            self._waiting.pop(path, None)
            self._waiting[path] = PendingUpload(visitor, path.stat().st_size if path.exists() else 0)


def rejection(headers: Mapping[str, str], largest: int) -> tuple[int, str] | None:
    """Status and reason to reject a state-changing request by its headers; None to accept it."""
    if is_cross_site(headers):
        return 403, "this request comes from the page of another site: open this page itself"
    if "content-length" not in headers:
        return 411, "this request does not say how many bytes it has"
    if not headers["content-length"].isdecimal() or int(headers["content-length"]) > largest:
        return 413, f"this request has more than {largest} bytes"
    return None


def is_cross_site(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent the request for a page of another origin. Other clients send neither header."""
    if "sec-fetch-site" in headers:
        return headers["sec-fetch-site"] not in SAME_SITE
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
