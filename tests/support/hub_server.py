"""A Hub of model repositories on the loopback interface: what huggingface_hub asks when it fetches files of one."""

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Literal
from urllib.parse import unquote

API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<action>preupload|commit)/(?P<revision>[^/]+)")
FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<filename>.+)")

# What goes wrong with a file: the connection ends in the middle of it, at every attempt or at the first alone; half of
# it is sent as if that were all; other bytes are, as many; the server is overloaded; it closes the connection without
# an answer; it answers with a page, or with nothing, as if that were the file; it gives half of the file, and says so.
Fault = Literal["cut", "cut once", "halved", "altered", "busy", "mute", "page", "empty", "part"]
PAGE = b"<!DOCTYPE html><title>Busy</title>Come back later"


@dataclass
class Repository:
    """Files at the head of branch main, and of other branches and tags in `revisions`.

    `refusal` is 401 (no token) or 403 (a token without access) of a gated one. `token` opens one that is private.
    """

    files: dict[str, bytes]
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str | None = None
    refusal: int | None = None
    faults: dict[str, Fault] = field(default_factory=dict)

    def at(self, revision: str) -> dict[str, bytes] | None:
        """The files of a branch, a tag or a commit; None if there is no such revision."""
        trees = {"main": self.files, **self.revisions}
        return {**trees, **{commit(files): files for files in trees.values()}}.get(revision)


def commit(files: dict[str, bytes]) -> str:
    return sha1(b"".join(name.encode() + data for name, data in sorted(files.items()))).hexdigest()


class Hub:
    """Serves `repositories`, a dictionary by owner/name, at `endpoint`; `requests` are those so far: "GET /path".

    `ranges` are the parts of files that were asked for: "bytes=5-". Repositories are created and committed to as well.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Answer, self))
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """From now on connections to `endpoint` are refused."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Answer(BaseHTTPRequestHandler):
    """The answer to one request."""

    def __init__(self, hub: Hub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def answer(self) -> None:
        if not self.path.startswith("/api/agent-harnesses"):  # which the client asks for once a day, on its own account
            self.hub.requests.append(f"{self.command} {self.path}")
        if "Range" in self.headers:
            self.hub.ranges.append(self.headers["Range"])
        file = FILE.fullmatch(unquote(self.path))
        repository = self.hub.repositories.get(file["repo"]) if file else None
        if file is None or repository is None or not self.may_see(repository):
            self.refuse(404, "RepoNotFound")
        elif repository.refusal:
            self.refuse(repository.refusal, "GatedRepo")
        elif (files := repository.at(file["revision"])) is None:
            self.refuse(404, "RevisionNotFound")
        elif file["filename"] not in files:
            self.refuse(404, "EntryNotFound", commit(files))
        else:
            self.give(files, file["filename"], repository.faults)

    def may_see(self, repository: Repository) -> bool:
        return repository.token is None or self.headers.get("Authorization") == f"Bearer {repository.token}"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def refuse(self, status: int, code: str | None = None, head: str | None = None) -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "X-Repo-Commit": head, "Content-Length": "0"}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def give(self, files: dict[str, bytes], filename: str, faults: dict[str, Fault]) -> None:
        data, fault = files[filename], faults.get(filename)
        if fault == "mute":
            return
        if fault == "busy":
            self.refuse(503)
            return
        if fault == "cut once" and self.command == "GET":
            del faults[filename]
        etag = sha256(data).hexdigest()
        data = {"page": PAGE, "empty": b""}.get(fault or "", data)
        if fault in ("halved", "part") and self.command == "GET":
            data = data[: len(data) // 2]
        if fault == "altered" and self.command == "GET":
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start or fault == "part" else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit(files))
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start : len(data) // 2 if fault in ("cut", "cut once") else None])

    def do_POST(self) -> None:
        """Creation of a repository, the question how to upload its files, and their upload within a commit."""
        self.hub.requests.append(f"{self.command} {self.path}")
        lines = [json.loads(line) for line in self.rfile.read(int(self.headers["Content-Length"])).splitlines()]
        if self.path == "/api/repos/create":
            name = f"{lines[0].get('organization') or 'me'}/{lines[0]['name']}"
            self.hub.repositories.setdefault(name, Repository({}))
            self.say({"url": f"{self.hub.endpoint}/{name}"})
            return
        action = API.fullmatch(unquote(self.path).partition("?")[0])
        repository = self.hub.repositories.get(action["repo"]) if action else None
        if action is None or repository is None:
            self.refuse(404, "RepoNotFound")
        elif action["action"] == "preupload":
            ways = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]
            ]
            self.say({"files": ways})
        else:
            added = [line["value"] for line in lines if line["key"] == "file"]
            repository.files |= {file["path"]: b64decode(file["content"]) for file in added}
            head = commit(repository.files)
            url = f"{self.hub.endpoint}/{action['repo']}/commit/{head}"
            self.say({"commitUrl": url, "commitOid": head, "success": True})

    def say(self, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the tests read Hub.requests


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    try:
        yield hub
    finally:
        hub.stop()
