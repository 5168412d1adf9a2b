"""Files of weights made to do harm, and how they have to be refused."""

import io
import json
import os
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import featx
from featx import CheckpointError


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("count", torch.tensor(5))


def refuse(path: Path, problem: str) -> None:
    """Loading the file raises CheckpointError, which says `problem` and the file, and changes nothing."""
    model = Tiny()
    with pytest.raises(CheckpointError, match=problem) as refused:
        featx.load_weights(model, path)
    assert str(path) in str(refused.value)
    assert model.a.tolist() == [1, 2]
    assert model.count == 5


# safetensors


def entry(start: int, end: int, shape=(2,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def write_safetensors(path: Path, header: dict | bytes, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


# PyTorch's files


def saved(held: object, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(held, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def rewritten(file: bytes, change=lambda name, data: data, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A PyTorch file with its members changed."""
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as old, zipfile.ZipFile(new, "w", compression) as archive:
        for name in old.namelist():
            archive.writestr(name, change(name, old.read(name)))
    return new.getvalue()


class Runs:
    """What runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Strided:
    """A tensor whose shape and strides say more than its storage holds."""

    def __init__(self, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> None:
        self.shape, self.stride, self.offset = shape, stride, offset

    def __reduce__(self):
        storage = torch.storage.TypedStorage(
            wrap_storage=torch.zeros(2).untyped_storage(), dtype=torch.float32, _internal=True
        )
        return torch._utils._rebuild_tensor_v2, (storage, self.offset, self.shape, self.stride, False, OrderedDict())


def damage(path: Path, seed: int, times: int) -> None:
    """With any byte changed the file is read, or refused with CheckpointError."""
    chance, whole = random.Random(seed), path.read_bytes()
    for _ in range(times):
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([chance.randrange(256)]) + whole[place + 1 :])
        try:
            featx.load_weights(Tiny(), path, finite=False)
        except CheckpointError:
            continue
