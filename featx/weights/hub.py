"""Files of repositories on the Hugging Face Hub, downloaded once and cached by huggingface_hub."""

import json
from pathlib import Path
from typing import Any

from ..errors import WeightsNotFoundError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def hub_weights(repo: str, cache_dir: str | Path | None = None) -> Path:
    """Local path of a repository's weights; WeightsNotFoundError if they are neither there nor cached."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for filename in WEIGHT_FILES:
        try:
            return download(repo, filename, cache_dir)
        except WeightsNotFoundError as error:
            absent = isinstance(error.__cause__, EntryNotFoundError)
            if not absent or isinstance(error.__cause__, LocalEntryNotFoundError):
                raise
    raise WeightsNotFoundError(f"the Hub repository {repo} has none of {WEIGHT_FILES}")


def hub_config(repo: str, cache_dir: str | Path | None = None) -> dict[str, Any]:
    """A repository's `config.json`; WeightsNotFoundError if it is neither there nor cached."""
    return json.loads(download(repo, "config.json", cache_dir).read_text())


def download(repo: str, filename: str, cache_dir: str | Path | None = None) -> Path:
    """Local path of a file on the Hub, from the cache if it is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(repo, filename, cache_dir=cache_dir))
    except GatedRepoError as error:
        raise WeightsNotFoundError(f"{repo} is gated: accept its terms on the Hub, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise WeightsNotFoundError(f"the Hub has no repository {repo}, or it is private: set HF_TOKEN") from error
    except LocalEntryNotFoundError as error:
        raise WeightsNotFoundError(
            f"cannot reach the Hub for {filename} of {repo}, and it is not in the cache. Connect, set HF_ENDPOINT to a "
            "mirror, pass checkpoint_path= with a file, or use random weights"
        ) from error
    except EntryNotFoundError as error:
        raise WeightsNotFoundError(f"the Hub repository {repo} has no {filename}") from error
    except HfHubHTTPError as error:
        raise WeightsNotFoundError(f"the Hub did not give {filename} of {repo}: {error}") from error
