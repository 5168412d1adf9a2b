"""Save models as a folder of safetensors and `config.json` that timm can read, and upload them to the Hub."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..bridge_registry import bridge_to
from ..errors import ArgumentError, OutputError
from ..meta_init import init_empty_weights
from ..whole_files import alone, local, whole_file
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import source_of
from ..wrappers.transparent import innermost
from .hub_format import CREATED, Created, config_json, preprocessing_of, require_plain

PATIENCE = 600.0  # seconds to wait for another process that saves to the same folder


def save(model: nn.Module, folder: str | Path) -> None:
    """Save a model that `create_model` built as `model.safetensors` and `config.json`, in timm's format.

    `create_model("local-dir:<folder>", pretrained=True)` loads it. timm's `create_model` does so, too, for classifiers
    whose configuration timm supports. An extractor is saved with its `out_indices`. Existing files are replaced
    atomically after both have been written; concurrent saves to one folder wait for each other.

    Args:
        model: the model or feature extractor.
        folder: a local folder, which is created if necessary.

    Raises:
        ArgumentError: the model could not be rebuilt from its configuration.
        OutputError: the folder is a URL or cannot be written.
    """
    folder = local(folder)
    config = description(model)
    tensors, config_path = folder / "model.safetensors", folder / "config.json"
    with (
        alone(tensors, PATIENCE, [config_path.name]),
        whole_file(config_path) as temporary_config,
        whole_file(tensors) as temporary,
    ):
        temporary_config.write_text(json.dumps(config, indent=2) + "\n")
        _write_tensors(model.state_dict(), temporary)


def push_to_hub(
    model: nn.Module,
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload weights",
) -> str:
    """Save a model as `save` does, and upload it to a repository on the Hub. Errors are those of huggingface_hub.

    Args:
        model: the model or feature extractor.
        repo: "owner/name"; the repository is created if it does not exist.
        private: whether a new repository is private.
        token: access token; by default that of `hf auth login` or HF_TOKEN.
        message: the commit message.

    Returns:
        URL of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with TemporaryDirectory() as folder:
        save(model, folder)
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message))


def description(model: nn.Module) -> dict[str, Any]:
    """The `config.json` of a model or an extractor; ArgumentError if the model could not be rebuilt from it."""
    backbone = innermost(source_of(model))
    config = _config_of(model, backbone)
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        name = config["architecture"]
        raise ArgumentError(f"{name} is on the meta device, without values: load its weights first")
    if isinstance(backbone, Backbone):
        _require_same_names(model, backbone, config["num_classes"])
    if isinstance(model, FeatureExtractWrapper):
        config["featx"]["out_indices"] = list(model.feature_info.out_indices)
    return config


def _config_of(model: nn.Module, backbone: nn.Module) -> dict[str, Any]:
    """The `config.json` of a native model, of another package's, or of one that a registered function created."""
    if isinstance(backbone, Backbone) and backbone.__class__.__module__.startswith("featx.models."):
        return config_json(backbone)
    if (bridge := bridge_to(backbone)) is not None:
        return bridge.describe(backbone)
    created: Created | None = vars(backbone).get(CREATED)
    if created is None:
        parts = " Models with necks or heads are built again by your own code." if hasattr(model, "backbone") else ""
        raise ArgumentError(
            f"{type(backbone).__name__} was not built by create_model: save its state_dict() instead, which "
            f"featx.load_weights loads.{parts}"
        )
    require_plain(created.arguments, created.name)
    return {
        "architecture": created.name,
        "featx": {"arguments": created.arguments},
        **preprocessing_of(backbone),
    }


def write_checkpoint(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors atomically in the format of the file extension; OutputError if that fails."""
    path = local(path)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise OutputError(f"{path}: expected a file that ends in .safetensors, .pt or .pth")
    write = _write_tensors if path.suffix == ".safetensors" else _write_pickle
    with alone(path, PATIENCE), whole_file(path) as temporary:
        write(state, temporary)


def _write_pickle(state: Mapping[str, Tensor], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # on a full disk
            raise OSError(str(error)) from error


def _write_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, with a separate copy of each tensor that shares memory; OSError if that fails."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    used = set[int]()
    for name, tensor in tensors.items():
        if tensor.untyped_storage().data_ptr() in used:
            tensors[name] = tensor.clone()
        used.add(tensors[name].untyped_storage().data_ptr())
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _require_same_names(model: nn.Module, backbone: Backbone, classes: int) -> None:
    """Raise ArgumentError if the model's tensors differ from those of a model with its configuration."""
    with init_empty_weights():
        rebuilt = type(backbone)(replace(backbone.config, num_classes=classes)).state_dict()
    state = model.state_dict()
    changed = [name for name, tensor in state.items() if name not in rebuilt or rebuilt[name].shape != tensor.shape]
    missing = [] if isinstance(model, FeatureExtractWrapper) else [name for name in rebuilt if name not in state]
    if changed or missing:
        raise ArgumentError(
            f"{backbone.architecture} was changed after it was built, so create_model could not build it again: "
            f"tensors that are new or of another shape {changed[:5]}, tensors that are gone {missing[:5]}. Save its "
            "state_dict() instead"
        )
