"""Weights of a few bytes, and the places they are published in."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from support.hub_server import Hub, Repository
from support.mindspore_writer import checkpoint
from torch import Tensor, nn

import featx

NAME = "mobilenetv3_small_050"
REPO = "someone/theirs"
INDEX = "model.safetensors.index.json"


class Tiny(nn.Module):
    """Two tensors, so that a repository of it is a few bytes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))


def tensors(value: float = 1.0) -> dict[str, Tensor]:
    return {"a": torch.full((2,), float(value)), "b": torch.full((3,), float(value))}


def stored(name: str, state: dict[str, Tensor] | None = None) -> bytes:
    """The tensors of a Tiny, or others, as a file of the kind that the name ends in; "legacy.pth" is an old one."""
    state, file = tensors() if state is None else state, io.BytesIO()
    if name.endswith(".safetensors"):
        return save(state)
    if name.endswith(".ckpt"):
        return checkpoint(state)
    if name.endswith(".npz"):
        np.savez(file, **{key: tensor.numpy() for key, tensor in state.items()})
    else:
        torch.save(state, file, _use_new_zipfile_serialization=not name.startswith("legacy"))
    return file.getvalue()


def sharded(value: float = 1.0, **shards: dict[str, Tensor]) -> dict[str, bytes]:
    """The files of weights in two shards, or in those given."""
    state = tensors(value)
    shards = shards or {"one": {"a": state["a"]}, "two": {"b": state["b"]}}
    index = {"weight_map": {name: f"{shard}.safetensors" for shard, held in shards.items() for name in held}}
    files = {f"{shard}.safetensors": save(held) for shard, held in shards.items()}
    return {INDEX: json.dumps(index).encode(), **files}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def values_from(where: str | Path | dict, **how) -> list[float]:
    """The two values of a Tiny that took its weights from there."""
    model = Tiny()
    report = featx.load_weights(model, where, **how)
    assert report.loaded == ("a", "b")
    return [model.a[0].item(), model.b[0].item()]


@pytest.fixture
def published(hub: Hub) -> Repository:
    repository = hub.repositories[REPO] = Repository({"model.safetensors": save(tensors())})
    return repository


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("**/*") if path.is_file())
