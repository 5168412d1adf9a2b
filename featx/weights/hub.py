"""Download files from the Hugging Face Hub, and read the index of sharded weights."""

import os
import re
from hashlib import file_digest
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, CheckpointError, WeightsNotFoundError, names_in, shortened
from .hub_config import brief, read_json
from .hub_config import checked_config as checked_config

INDEX = ".index.json"
MOST_SHARDS, LONGEST_NAME = 1000, 255  # files of an index, and bytes of a file name
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def hub_weights(repo: str, revision: str = "main", cache_dir: str | Path | None = None) -> tuple[Path, ...]:
    """Local paths of a repository's weight files, which are downloaded if they are not cached.

    Raises:
        WeightsNotFoundError: the weights are neither on the Hub nor in the cache.
    """
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    def known_absent(filename: str) -> bool:
        return try_to_load_from_cache(repo, filename, cache_dir, revision) is _CACHED_NO_EXIST

    try:  # files known to be absent come last, so that a cached file is found without the Hub
        candidates = sorted(WEIGHT_FILES, key=known_absent)
    except HFValidationError as error:
        raise ArgumentError(f"{repo} cannot be the name of a repository ({_first_line(error)})") from error
    for filename in candidates:
        try:
            path = download(repo, filename, revision, cache_dir)
        except WeightsNotFoundError as error:
            absent = isinstance(error.__cause__, EntryNotFoundError)
            if not absent or isinstance(error.__cause__, LocalEntryNotFoundError):
                raise
            continue
        if not filename.endswith(INDEX):
            return (path,)
        return tuple(download(repo, shard, revision, cache_dir) for shard in shard_names(path))
    raise WeightsNotFoundError(f"the Hub repository {repo} has none of {WEIGHT_FILES}")


def hub_config(repo: str, revision: str = "main", cache_dir: str | Path | None = None) -> dict[str, Any]:
    """The `config.json` of a repository.

    Raises:
        WeightsNotFoundError: it is neither on the Hub nor in the cache.
        CheckpointError: it is not a JSON object with the expected types.
    """
    return checked_config(download(repo, "config.json", revision, cache_dir), f" of {repo}")


def download(repo: str, filename: str, revision: str = "main", cache_dir: str | Path | None = None) -> Path:
    """Local path of a file on the Hub, which is downloaded if it is not cached.

    Raises:
        WeightsNotFoundError: the file cannot be downloaded.
        CheckpointError: the SHA-256 of the download differs from that of the Hub.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # HTTPError of the HTTP client: each major version of huggingface_hub uses another client package
    http_errors = tuple(kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception))
    try:
        cached = try_to_load_from_cache(repo, filename, cache_dir, revision)
        path = Path(hf_hub_download(repo, filename, revision=revision, cache_dir=cache_dir))
    except HFValidationError as error:
        raise ArgumentError(f"{repo} cannot be the name of a repository ({_first_line(error)})") from error
    except GatedRepoError as error:
        raise WeightsNotFoundError(f"{repo} is gated: accept its terms on the Hub, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise WeightsNotFoundError(f"the Hub has no repository {repo}, or it is private: set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise WeightsNotFoundError(f"the Hub repository {repo} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise WeightsNotFoundError(
            f"cannot reach the Hub for {filename} of {repo} ({_first_line(error.__cause__ or error)}), "
            "and it is not in the cache. Connect, set HF_ENDPOINT to a mirror, pass checkpoint_path= with a file, "
            "or use random weights"
        ) from error
    except EntryNotFoundError as error:
        raise WeightsNotFoundError(f"the Hub repository {repo} has no {filename}") from error
    except (*http_errors, OSError) as error:
        raise WeightsNotFoundError(
            f"could not fetch {filename} of {repo} ({_first_line(error)}): "
            "try again, or pass checkpoint_path= with a file"
        ) from error
    if not isinstance(cached, str) or Path(cached).resolve() != path.resolve():
        _check_hash(path, repo)
    return path


def _check_hash(path: Path, repo: str) -> None:
    """Raise CheckpointError and delete the file if its SHA-256 differs from the one that the Hub announced.

    The cache names large files by that hash; huggingface_hub does not verify it.
    """
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and (digest := sha256_of(blob)) != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path.name} of {repo} was corrupted during the download: its SHA-256 is {digest}, the Hub's is "
            f"{blob.name}. It was deleted: try again"
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    reason, _, _ = str(error).strip().partition("\n")  # further lines give advice that does not apply to featx
    return f"{type(error).__name__}: {reason}"


def shard_names(index: Path) -> tuple[str, ...]:
    """Names of the shards that an index such as "model.safetensors.index.json" lists.

    Raises:
        CheckpointError: the file is not an index, or lists files outside its folder.
    """
    content = read_json(index)
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict):
        raise CheckpointError(f'{index}: expected {{"weight_map": {{tensor: file}}}}, got {brief(content)}')
    listed = list(table.values())
    elsewhere = [brief(name) for name in listed if not isinstance(name, str) or not _is_beside(name)]
    if elsewhere or not listed:
        raise CheckpointError(
            f"{index}: expected names of files beside it, got {', '.join(shortened(elsewhere)) or 'none'}"
        )
    files = sorted({*listed})
    if len(files) > MOST_SHARDS:
        raise CheckpointError(f"{index}: lists {len(files)} files, more than the {MOST_SHARDS} of any network")
    return tuple(files)


def local_shards(index: Path) -> tuple[Path, ...]:
    """Paths of the shards that a local index lists.

    Raises:
        WeightsNotFoundError: shards are missing; the message lists them.
        CheckpointError: the file is not an index, or lists files outside its folder.
    """
    shards = tuple(index.parent / name for name in shard_names(index))
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise WeightsNotFoundError(f"{index} lists files that are not beside it: [{names_in(missing)}]")
    return shards


def _is_beside(name: str) -> bool:
    plain = Path(name).name == name and name not in ("", ".", "..") and "\\" not in name and name.isprintable()
    return plain and len(os.fsencode(name)) <= LONGEST_NAME
