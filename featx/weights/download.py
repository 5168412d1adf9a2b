"""Locate weights given as a file, a folder, a URL or a Hub repository, and download them if necessary."""

import os
import re
from hashlib import sha256
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ..errors import ArgumentError, CheckpointError, WeightsNotFoundError, in_short, names_in
from .hub import INDEX, WEIGHT_FILES, checked_config, hub_config, hub_weights, local_shards, sha256_of
from .readers import READERS, read_checkpoint, reader_suffix

LONGEST_URL, LONGEST_NAME = 8192, 200  # characters, and bytes, which leaves room for temporary names
MOST_DIGITS = 15  # digits of a Content-Length
HUB, FOLDER = "hf-hub:", "local-dir:"
LONGEST_REPOSITORY = 96  # characters that the Hub allows
PATIENCE = 60  # seconds without data after which a download fails
CHUNK = 1 << 20  # bytes


def locate(where: str | Path, cache_dir: str | Path | None = None) -> tuple[Path, ...]:
    """Local paths of the weights at `where`, several if they are sharded; remote files are downloaded.

    Args:
        where: a file, a folder (also as "local-dir:path"), "hf-hub:owner/repo[@revision]", or an http(s) URL. A
            download is verified if its name has the first digits of its SHA-256 ("name-0123abcd.pth").
        cache_dir: folder for downloads.

    Raises:
        WeightsNotFoundError: the weights were not found.
        CheckpointError: the download does not match its hash, or is not a file of weights.
    """
    text = str(where)
    if text.startswith(HUB):
        return hub_weights(*repository(text), cache_dir)
    if is_url(text):
        return (download_url(checked_url(text), cache_dir),)
    path = Path(text.removeprefix(FOLDER))
    if os.path.isdir(path):  # false for invalid file names, for which Path.is_dir raises
        path = _file_of_weights(path)
    if not os.path.isfile(path):
        raise WeightsNotFoundError(f"{path} is not a file of weights or a folder with them: check the path")
    if path.name.endswith(INDEX):
        return local_shards(path)
    return (path,)


def _file_of_weights(folder: Path) -> Path:
    """The file of weights in a folder: one of WEIGHT_FILES, or the only file with the extension of a checkpoint."""
    if known := [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]:
        return known[0]
    others = sorted(path for path in folder.iterdir() if path.suffix in READERS and path.is_file())
    if len(others) == 1:
        return others[0]
    if others:
        raise WeightsNotFoundError(
            f"{folder} has several files of weights: pass one of them, [{names_in(path.name for path in others)}], as "
            "checkpoint_path="
        )
    raise WeightsNotFoundError(
        f"{folder} is not a folder with one of {WEIGHT_FILES} or another file of weights ({', '.join(READERS)}): check "
        "the path"
    )


def is_address(name: str) -> bool:
    """Whether a model's name is that of a folder ("local-dir:path") or a repository ("hf-hub:owner/repo")."""
    return name.startswith((HUB, FOLDER))


def config_of(where: str, cache_dir: str | Path | None = None) -> dict[str, Any]:
    """The `config.json` of "hf-hub:owner/repo[@revision]" or "local-dir:path". Raises the errors of `hub_config`."""
    if where.startswith(HUB):
        return hub_config(*repository(where), cache_dir)
    path = Path(where.removeprefix(FOLDER)) / "config.json"
    if not os.path.isfile(path):
        raise WeightsNotFoundError(f"{path} is not a file: expected a folder that featx.save or timm wrote")
    return checked_config(path)


def repository(text: str) -> tuple[str, str]:
    """("owner/repo", revision) of "hf-hub:owner/repo[@revision]"; the default revision is main.

    Raises:
        ArgumentError: the text is not of that form.
    """
    name, _, revision = text.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) or len(name) > LONGEST_REPOSITORY:
        raise ArgumentError(
            f"{text[:LONGEST_REPOSITORY]!r} names no repository: expected {HUB}owner/repo or {HUB}owner/repo@revision"
        )
    return name, revision or "main"


def download_url(url: str, cache_dir: str | Path | None = None) -> Path:
    """Local path of the file at `url`, which is downloaded atomically if it is not cached.

    Args:
        url: the URL, which ends in a supported file extension.
        cache_dir: the cache; by default PyTorch's folder of checkpoints.

    Raises:
        WeightsNotFoundError: the download failed.
        CheckpointError: the file does not match the hash in its name, or does not contain weights. It is deleted.
    """
    import torch

    name = Path(unquote(urlsplit(url).path)).name
    if not reader_suffix(name) or not name.isprintable():
        raise ArgumentError(f"{url} names no file of weights: expected an address that ends in {', '.join(READERS)}")
    parent = Path(cache_dir) if cache_dir is not None else Path(torch.hub.get_dir()) / "checkpoints"
    path = parent / sha256(url.encode()).hexdigest()[:16] / name  # two URLs may end in the same name
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
    """Download `url` to a file; OSError or HTTPException if the download fails or is incomplete."""
    from huggingface_hub.utils import tqdm

    ascii_url = quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    with open_url(ascii_url, PATIENCE) as response, path.open("wb") as file:
        if response.status != 200:
            raise ConnectionError(f"the server answered with status {response.status}, where 200 is a whole file")
        total = content_length(response.headers.get("Content-Length"))
        with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc=path.name) as bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if not file.tell():
            raise ConnectionError("the answer is empty")
        if total is not None and file.tell() != total:
            raise ConnectionError(f"the connection ended after {file.tell()} of {total} bytes")


def _require_weights(path: Path, url: str) -> None:
    """Raise CheckpointError, with the size and first bytes of the file, unless it contains weights."""
    try:
        read_checkpoint(path, mapped=True)  # mapping is safe: no other process uses this file yet
    except CheckpointError as error:
        with path.open("rb") as file:
            first_bytes = file.read(40)
        reason = str(error).replace(str(path), path.name)
        raise CheckpointError(
            f"{url} gave {path.stat().st_size} bytes that begin with {first_bytes!r} and were not kept: {reason}"
        ) from error


def _check_hash(path: Path, url: str) -> None:
    """Raise CheckpointError if the file name ends in a hash that is not the file's; dates are not hashes."""
    expected = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    if expected is None or re.fullmatch(r"(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])", expected[1]):
        return
    digest = sha256_of(path)
    if not digest.startswith(expected[1]):
        raise CheckpointError(
            f"{url} is not the file its name says: its SHA-256 begins with {digest[: len(expected[1])]}; it was "
            "deleted. If you trust it, download it and pass the file"
        )


def is_url(text: str) -> bool:
    """Whether the text starts with http:// or https://."""
    return re.match("https?://", text, re.IGNORECASE) is not None


def checked_url(url: str) -> str:
    """The URL; ArgumentError if it is invalid or contains credentials, which the message omits."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError as error:  # invalid brackets, port or label; its message may contain the password
        reason = "" if "@" in url else f" ({in_short(error)})"
        raise ArgumentError(f"{_redacted(url)!r} is not a URL{reason}: expected https://host/path/file.pth") from None
    if "@" in parts.netloc:
        raise ArgumentError(
            f"{_redacted(url)!r} holds the name or password of a user, which would be sent and stored in plain text: "
            "download the file yourself, and pass its path"
        )
    name = parts.path.rpartition("/")[2]
    if not host or not url.isprintable() or len(url) > LONGEST_URL or len(name.encode()) > LONGEST_NAME:
        raise ArgumentError(
            f"{_redacted(url)!r} is not the URL of a file: expected https://host/path/file.pth, of at most "
            f"{LONGEST_URL} characters, {LONGEST_NAME} of them in the name"
        )
    return url


def open_url(url: str, patience: float) -> HTTPResponse:
    """The server's response; OSError or HTTPException if there is none. patience: timeout in seconds."""
    from urllib.request import urlopen

    try:
        return urlopen(url, timeout=patience)
    except ValueError as error:  # an invalid URL in a redirection
        raise ConnectionError(f"it redirects to an invalid URL: {in_short(error)}") from error


def content_length(announced: str | None) -> int | None:
    """The Content-Length of a response in bytes; None if the header is missing or invalid."""
    if announced is None or not re.fullmatch(f"[0-9]{{1,{MOST_DIGITS}}}", announced):
        return None
    return int(announced) or None


def _redacted(url: str) -> str:
    """The URL for a message, without user name and password, and truncated."""
    scheme, slashes, rest = url.partition("//")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"[:160]
