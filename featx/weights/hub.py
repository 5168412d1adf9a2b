"""Files of repositories on the Hugging Face Hub, cached by huggingface_hub; indices of weights in several files."""

import os
import re
from hashlib import file_digest
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, CheckpointError, WeightsNotFoundError, names_in, shortened
from .hub_config import brief, read_json
from .hub_config import checked_config as checked_config

INDEX = ".index.json"
MOST_SHARDS, LONGEST_NAME = 1000, 255  # of files, and bytes of their names
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def hub_weights(repo: str, revision: str = "main", cache_dir: str | Path | None = None) -> tuple[Path, ...]:
    """Local paths of a repository's weights; WeightsNotFoundError if they are neither there nor cached."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    def known_absent(filename: str) -> bool:
        return try_to_load_from_cache(repo, filename, cache_dir, revision) is _CACHED_NO_EXIST

    try:  # the file that is cached is then found without the Hub
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
    """A repository's `config.json`.

    WeightsNotFoundError if it is neither there nor cached, CheckpointError if it is not a JSON object.
    """
    return checked_config(download(repo, "config.json", revision, cache_dir), f" of {repo}")


def download(repo: str, filename: str, revision: str = "main", cache_dir: str | Path | None = None) -> Path:
    """Local path of a file on the Hub, from the cache if it is there.

    WeightsNotFoundError if it cannot be had, CheckpointError if another file came in its place.
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

    # HTTPError of the HTTP client, which is another package in each major version of huggingface_hub
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
    """Raise CheckpointError, and delete the file, if it is not the one whose SHA-256 the Hub gave.

    The cache calls large files by it, which the Hub's client does not compare.
    """
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and (found := sha256_of(blob)) != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path.name} of {repo} was damaged on its way: its SHA-256 is {found}, the Hub's is {blob.name}. It was "
            "deleted: try again"
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    reason, _, _ = str(error).strip().partition("\n")  # what follows advises what cannot be done through featx
    return f"{type(error).__name__}: {reason}"


def shard_names(index: Path) -> tuple[str, ...]:
    """The files that an index ("model.safetensors.index.json") lists, which lie beside it.

    Raises CheckpointError if it is no index, or lists files elsewhere.
    """
    held = read_json(index)
    table = held.get("weight_map") if isinstance(held, dict) else None
    if not isinstance(table, dict):
        raise CheckpointError(f'{index}: expected {{"weight_map": {{tensor: file}}}}, got {brief(held)}')
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
    """The files of weights that an index on this machine lists.

    Raises WeightsNotFoundError naming all that are not there, CheckpointError as `shard_names` does.
    """
    shards = tuple(index.parent / name for name in shard_names(index))
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise WeightsNotFoundError(f"{index} lists files that are not beside it: [{names_in(missing)}]")
    return shards


def _is_beside(name: str) -> bool:
    plain = Path(name).name == name and name not in ("", ".", "..") and "\\" not in name and name.isprintable()
    return plain and len(os.fsencode(name)) <= LONGEST_NAME
