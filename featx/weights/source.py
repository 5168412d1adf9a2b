"""Where weights are: a file, a folder, a URL or a repository on the Hub, as files on this machine."""

import os
import re
from hashlib import sha256
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ..errors import ArgumentError, CheckpointError, WeightsNotFoundError, in_short
from .hub import INDEX, WEIGHT_FILES, checked_config, hub_config, hub_weights, local_shards, sha256_of
from .readers import READERS, read_checkpoint

LONGEST_ADDRESS, LONGEST_NAME = 8192, 200  # characters, and bytes: temporary names are longer
MOST_DIGITS = 15  # of the length of a file
HUB, FOLDER = "hf-hub:", "local-dir:"
LONGEST_REPOSITORY = 96  # characters that the Hub allows
PATIENCE = 60  # seconds without a byte after which a download is given up
PIECE = 1 << 20  # bytes


def locate(where: str | Path, cache_dir: str | Path | None = None) -> tuple[Path, ...]:
    """The files that hold the weights at `where`, several if they are sharded; downloaded if they are not here.

    where: a file, a folder (also as "local-dir:path"), "hf-hub:owner/repo[@revision]", or an http(s) URL, whose
        download is checked if its name carries the beginning of its SHA-256 ("name-0123abcd.pth").

    Raises WeightsNotFoundError if there is nothing, CheckpointError if it cannot be what it is said to be.
    """
    text = str(where)
    if text.startswith(HUB):
        return hub_weights(*repository(text), cache_dir)
    if is_address(text):
        return (fetched(checked_address(text), cache_dir),)
    path = Path(text.removeprefix(FOLDER))
    if os.path.isdir(path):  # which is false for a name that no file can have, where Path.is_dir raises
        path = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), path)
    if not os.path.isfile(path):
        folder = os.path.isdir(path)
        kinds = f"a folder with one of {WEIGHT_FILES}" if folder else "a file of weights or a folder with them"
        raise WeightsNotFoundError(f"{path} is not {kinds}: check the path")
    if path.name.endswith(INDEX):
        return local_shards(path)
    return (path,)


def config_of(where: str, cache_dir: str | Path | None = None) -> dict[str, Any]:
    """The `config.json` of "hf-hub:owner/repo[@revision]" or "local-dir:path"; errors as in `hub_config`."""
    if where.startswith(HUB):
        return hub_config(*repository(where), cache_dir)
    path = Path(where.removeprefix(FOLDER)) / "config.json"
    if not os.path.isfile(path):
        raise WeightsNotFoundError(f"{path} is not a file: expected a folder that featx.save or timm wrote")
    return checked_config(path)


def repository(text: str) -> tuple[str, str]:
    """("owner/repo", revision) of "hf-hub:owner/repo[@revision]", main by default; ArgumentError if it is none."""
    name, _, revision = text.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) or len(name) > LONGEST_REPOSITORY:
        raise ArgumentError(
            f"{text[:LONGEST_REPOSITORY]!r} names no repository: expected {HUB}owner/repo or {HUB}owner/repo@revision"
        )
    return name, revision or "main"


def fetched(url: str, cache_dir: str | Path | None = None) -> Path:
    """The file at `url`, downloaded once, whole, into `cache_dir`, by default PyTorch's folder of checkpoints.

    Raises WeightsNotFoundError if it cannot be fetched, CheckpointError if it is not the file its name says, or holds
    no weights; nothing is then kept.
    """
    import torch

    name = Path(unquote(urlsplit(url).path)).name
    if Path(name).suffix not in READERS or not name.isprintable():
        raise ArgumentError(f"{url} names no file of weights: expected an address that ends in {', '.join(READERS)}")
    parent = Path(cache_dir) if cache_dir is not None else Path(torch.hub.get_dir()) / "checkpoints"
    path = parent / sha256(url.encode()).hexdigest()[:16] / name  # two addresses may end in one name
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=path.parent) as folder:
                download = Path(folder) / name
                _download(url, download)
                _check_hash(download, url)
                _require_weights(download, url)
                os.replace(download, path)
    except (OSError, HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise WeightsNotFoundError(
            f"could not fetch {url} ({reason}): try again, or download it and pass the file"
        ) from error
    return path


def _download(url: str, path: Path) -> None:
    """Write what is at `url` into a file; OSError or HTTPException if it cannot be had whole."""
    from huggingface_hub.utils import tqdm

    ascii_url = quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    with opened(ascii_url, PATIENCE) as answer, path.open("wb") as file:
        if answer.status != 200:
            raise ConnectionError(f"the server answered with status {answer.status}, where 200 is a whole file")
        total = content_length(answer.headers.get("Content-Length"))
        with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc=path.name) as bar:
            while piece := answer.read(PIECE):
                file.write(piece)
                bar.update(len(piece))
        if not file.tell():
            raise ConnectionError("the answer is empty")
        if total is not None and file.tell() != total:
            raise ConnectionError(f"the connection ended after {file.tell()} of {total} bytes")


def _require_weights(path: Path, url: str) -> None:
    """Raise CheckpointError, which says what came in their place, unless the file holds weights."""
    try:
        read_checkpoint(path, mapped=True)  # nobody else knows this file yet
    except CheckpointError as error:
        with path.open("rb") as file:
            beginning = file.read(40)
        reason = str(error).replace(str(path), path.name)
        raise CheckpointError(
            f"{url} gave {path.stat().st_size} bytes that begin with {beginning!r} and were not kept: {reason}"
        ) from error


def _check_hash(path: Path, url: str) -> None:
    """Raise CheckpointError unless the file's name has no hash, or the file's own; a date is none."""
    expected = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    if expected is None or re.fullmatch(r"(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])", expected[1]):
        return
    found = sha256_of(path)
    if not found.startswith(expected[1]):
        raise CheckpointError(
            f"{url} is not the file its name says: its SHA-256 begins with {found[: len(expected[1])]}; it was "
            "deleted. If you trust it, download it and pass the file"
        )


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
