"""Models as folders of safetensors and `config.json`, which timm reads, too, and as repositories on the Hub."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..empty import without_values
from ..errors import ArgumentError, OutputError
from ..whole_files import alone, local, whole_file
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import source_of
from .hub_format import config_json

PATIENCE = 600.0  # seconds to wait for another process that saves to the same place


def save(model: nn.Module, folder: str | Path) -> None:
    """Write a model that `create_model` built into a folder: `model.safetensors` and `config.json`, in timm's format.

    `create_model("local-dir:<folder>", pretrained=True)` builds it again, and so does timm's for a classifier whose
    fields timm has. An extractor is saved with the levels it gives. Files that are there are replaced, each at once,
    when both are written. Of processes that save into one folder at once, one waits for the other.

    Raises ArgumentError for a model that could not be built again, OutputError if the folder is an address or cannot be
    written.
    """
    folder = local(folder)
    config = description(model)
    tensors, said = folder / "model.safetensors", folder / "config.json"
    with alone(tensors, PATIENCE, [said.name]), whole_file(said) as said_part, whole_file(tensors) as part:
        said_part.write_text(json.dumps(config, indent=2) + "\n")
        _write_tensors(model.state_dict(), part)


def push_to_hub(
    model: nn.Module,
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload weights",
) -> str:
    """Upload what `save` writes to a repository on the Hub, made if it is not there; the address of the commit.

    repo: "owner/name". token: by default the one of `hf auth login` or HF_TOKEN. Errors are huggingface_hub's.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with TemporaryDirectory() as folder:
        save(model, folder)
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message))


def description(model: nn.Module) -> dict[str, Any]:
    """The `config.json` of a model or an extractor; ArgumentError if it could not be built again from it."""
    backbone = source_of(model)
    if not isinstance(backbone, Backbone):
        raise ArgumentError(f"{type(backbone).__name__} was not built by create_model: save its state_dict() instead")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ArgumentError(f"{backbone.architecture} is on the meta device, without values: load its weights first")
    config = config_json(backbone)
    _require_same_names(model, backbone, config["num_classes"])
    if isinstance(model, FeatureExtractWrapper):
        config["featx"]["out_indices"] = list(model.feature_info.out_indices)
    return config


def write_checkpoint(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as the ending of the file says, whole or not at all; OutputError if that cannot be."""
    path = local(path)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise OutputError(f"{path}: expected a file that ends in .safetensors, .pt or .pth")
    write = _write_tensors if path.suffix == ".safetensors" else _write_pickle
    with alone(path, PATIENCE), whole_file(path) as part:
        write(state, part)


def _write_pickle(state: Mapping[str, Tensor], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # on a full disk
            raise OSError(str(error)) from error


def _write_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, in which tensors that share memory are written once each; OSError if that cannot be."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    own = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    used = set[int]()
    for name, tensor in own.items():
        if tensor.untyped_storage().data_ptr() in used:
            own[name] = tensor.clone()
        used.add(own[name].untyped_storage().data_ptr())
    try:
        save_file(own, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _require_same_names(model: nn.Module, backbone: Backbone, classes: int) -> None:
    """Raise ArgumentError if the model's tensors are no longer those that its configuration gives."""
    with without_values():
        again = type(backbone)(replace(backbone.config, num_classes=classes)).state_dict()
    own = model.state_dict()
    changed = [name for name, tensor in own.items() if name not in again or again[name].shape != tensor.shape]
    lacking = [] if isinstance(model, FeatureExtractWrapper) else [name for name in again if name not in own]
    if changed or lacking:
        raise ArgumentError(
            f"{backbone.architecture} was changed after it was built, so create_model could not build it again: "
            f"tensors that are new or of another shape {changed[:5]}, tensors that are gone {lacking[:5]}. Save its "
            "state_dict() instead"
        )
