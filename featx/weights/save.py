"""Models as folders of safetensors and `config.json`, which timm reads, too, and as repositories on the Hub."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copymode
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..empty import without_values
from ..errors import ArgumentError, OutputError
from ..wrappers import FeatureExtractWrapper
from .hub_format import config_json


def save(model: nn.Module, folder: str | Path) -> None:
    """Write a model that `create_model` built into a folder: `model.safetensors` and `config.json`, in timm's format.

    `create_model("local-dir:<folder>", pretrained=True)` builds it again, and so does timm's for a classifier whose
    fields timm has. An extractor is saved with the levels it gives. Files that are there are replaced, each at once.

    Raises ArgumentError for a model that could not be built again, OutputError if the folder cannot be written.
    """
    folder = Path(folder)
    config = description(model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(model.state_dict(), folder / "model.safetensors")
        with TemporaryDirectory(dir=folder) as there:
            written = Path(there) / "config.json"
            written.write_text(json.dumps(config, indent=2) + "\n")
            os.replace(written, folder / "config.json")
    except OSError as error:
        raise OutputError(f"cannot save into {folder}: {error}") from error


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
    backbone = model._source if isinstance(model, FeatureExtractWrapper) else model
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
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise OutputError(f"{path}: expected a file that ends in .safetensors, .pt or .pth")
    try:
        if path.suffix == ".safetensors":
            write_tensors(state, path)
            return
        with TemporaryDirectory(dir=path.parent) as folder:
            with (Path(folder) / path.name).open("wb") as file:
                torch.save(dict(state), file)
                os.fsync(file.fileno())
            os.replace(file.name, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: of torch.save on a full disk
        raise OutputError(f"cannot write {path}: {error}") from error


def write_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, whole or not at all; tensors that share memory are written once each.

    It takes the place of a file there only when it is complete and on the disk, also when tensors are mapped from that
    very file. OSError if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    own = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    used = set[int]()
    for name, tensor in own.items():
        if tensor.untyped_storage().data_ptr() in used:
            own[name] = tensor.clone()
        used.add(own[name].untyped_storage().data_ptr())
    with TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        try:
            save_file(own, written, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        plain = Path(folder) / "plain"
        plain.touch()
        copymode(plain, written)  # safetensors lets the owner alone read what it writes
        with written.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(written, path)


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
