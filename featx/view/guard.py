"""What comes before the page: no other site's requests, no large ones, and uploads that are bounded per visitor."""

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .upload import MIB, Limits, delete

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
