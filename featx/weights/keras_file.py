"""Read the weights of Keras files: `.h5` and `.keras`, under the names "layer/variable".

An `.h5` file of Keras holds a group per layer. A `.keras` file is a zip archive of a configuration and an `.h5` file in
which layers are numbered by class, so that their names come from the configuration. HDF5 can refer to other files and
load filters; such datasets are refused before they are read, and sizes are checked before memory is allocated.
https://keras.io/guides/serialization_and_saving
"""

import re
from collections.abc import Iterator
from functools import partial
from io import BufferedReader, BytesIO
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import torch

from ..errors import CheckpointError, MissingPackageError, in_short, names_in
from ..json_checks import JsonError, parsed
from .npz import ALWAYS_ALLOWED, MAX_EXPANSION, MAX_MEMBERS, BoundedFile
from .npz import DAMAGED as DAMAGED_ZIP
from .state_dict_keys import StateDict

if TYPE_CHECKING:
    import h5py

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
LONGEST_CONFIG = 16 << 20  # bytes
DEEPEST = 16  # groups in groups, and models in models
MOST_OBJECTS = 10 * MAX_MEMBERS  # groups and datasets
ROOTS = ("model_weights", "layers")  # of a whole model, and of Keras 3
GZIP, SHUFFLE, CHECKSUM = 1, 2, 3  # filters that are a part of HDF5
KINDS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1"}
# Exceptions of h5py, depending on where a file is damaged.
DAMAGED = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError)
# Variables of layers in the order of their numbers, where that is not kernel and bias.
VARIABLES = {
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "LayerNormalization": ("gamma", "beta"),
    "LayerScale": ("gamma",),
    "Normalization": ("mean", "variance", "count"),
}
OPTIONAL = {"gamma": "scale", "beta": "center"}  # variables, and the field of the configuration that leaves them out


def read_h5(path: Path, file: BufferedReader) -> StateDict:
    """Read the weights of an `.h5` file of Keras into memory.

    Raises:
        CheckpointError: the file is damaged, refers to other files, or has other objects than arrays of numbers.
        MissingPackageError: h5py is not installed.
    """
    try:
        tensors = _datasets(file, file.seek(0, 2))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    if any("vars" in name.split("/") for name in tensors):
        raise CheckpointError(
            f"{path} has no names of layers, as Keras 3 writes them in a .weights.h5 file: save the model with "
            "model.save('name.keras') and load that file"
        )
    return _unique((layer_name(name), tensor) for name, tensor in tensors.items())


def read_keras(path: Path, file: BufferedReader) -> StateDict:
    """Read the weights of a `.keras` file into memory. Raises the errors of `read_h5`."""
    try:
        config, weights = _members(file)
        names = dict(_numbered_layers(_layers(config), "layers"))
        tensors = _datasets(BytesIO(weights), len(weights))
        return _unique((_named(name, names), tensor) for name, tensor in tensors.items())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__


def _members(file: BufferedReader) -> tuple[Any, bytes]:
    """The parsed configuration and the bytes of the `.h5` file in a `.keras` file."""
    size = file.seek(0, 2)
    try:
        with ZipFile(BoundedFile(file, size)) as archive:  # pyright: ignore[reportArgumentType]
            config, weights = (archive.getinfo(name) for name in (CONFIG, WEIGHTS))
            if config.file_size > LONGEST_CONFIG or weights.file_size > size or weights.compress_type != ZIP_STORED:
                raise CheckpointError("this is not a safe .keras file: its members are compressed or too large")
            return parsed(_content(archive, config)).held, _content(archive, weights)
    except CheckpointError:
        raise
    except (*DAMAGED_ZIP, KeyError, JsonError) as error:
        raise CheckpointError(f"not a whole .keras file ({in_short(error)}): fetch or save it again") from error


def _content(archive: ZipFile, member: ZipInfo) -> bytes:
    """The bytes of a member, read in pieces that `BoundedFile` allows."""
    with archive.open(member) as opened:
        return b"".join(iter(partial(opened.read, 1 << 20), b""))


def _layers(config: Any) -> list[dict[str, Any]]:
    """The layers in the configuration of a model; CheckpointError if it is not a list of configurations."""
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    if not isinstance(layers, list) or not all(isinstance(one, dict) for one in layers):
        raise CheckpointError("its configuration lists no layers: expected a Sequential or Functional model of Keras 3")
    return layers


def _numbered_layers(
    layers: list[dict[str, Any]], path: str, depth: int = 0
) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """Paths of layers in the `.h5` file, each with the layer's name and configuration, also of models in the model."""
    if depth > DEEPEST:
        raise CheckpointError(f"its configuration has more than {DEEPEST} models in models")
    counts: dict[str, int] = {}
    for layer in layers:
        kind, inner = str(layer.get("class_name")), layer.get("config")
        group = snake_case(kind)
        counts[group] = counts.get(group, -1) + 1
        place = f"{path}/{group}_{counts[group]}" if counts[group] else f"{path}/{group}"
        name = inner.get("name") if isinstance(inner, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get("layers"), list):
            yield from _numbered_layers(_layers(layer), f"{place}/layers", depth + 1)
        elif isinstance(name, str):
            yield place, (name, layer)


def snake_case(name: str) -> str:
    """Keras's name of a class in a file: BatchNormalization becomes batch_normalization, Conv2D conv2d."""
    split = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", split).lower()


def _named(path: str, names: dict[str, tuple[str, dict[str, Any]]]) -> str:
    """The name of a variable in a `.keras` file: "layers/conv2d/vars/0" is "Conv1/kernel"."""
    place, _, number = path.rpartition("/vars/")
    if place not in names or not re.fullmatch(r"\d{1,3}", number, re.ASCII):
        return path
    name, layer = names[place]
    config = layer["config"]
    kinds = VARIABLES.get(str(layer.get("class_name")), ("kernel", "bias"))
    present = [kind for kind in kinds if kind not in OPTIONAL or config.get(OPTIONAL[kind], True)]
    return f"{name}/{present[int(number)]}" if int(number) < len(present) else path


def layer_name(path: str) -> str:
    """The name of a variable in an `.h5` file: "Conv1/Conv1/kernel:0" is "Conv1/kernel".

    The group of a layer, or of a model in the model, is followed by the layer's own name, which may have slashes.
    """
    *groups, leaf = path.removeprefix("model_weights/").split("/")
    half = len(groups) // 2
    is_repeated = len(groups) % 2 == 0 and groups[:half] == groups[half:]
    return "/".join([*(groups[half:] if is_repeated else groups[1:] or groups), leaf.partition(":")[0]])


def _unique(named: Iterator[tuple[str, torch.Tensor]]) -> StateDict:
    state: StateDict = {}
    for name, tensor in named:
        if name in state:
            raise CheckpointError(f"two of its tensors are called {name!r}: expected the file of one model")
        state[name] = tensor
    if not state:
        raise CheckpointError("it has no weights: expected a file that Keras saved")
    return state


def _datasets(file: IO[bytes], size: int) -> StateDict:
    """The arrays of numbers of an HDF5 file by path; of a file with weights and other values, only the weights."""
    try:
        import h5py
    except ImportError as error:
        raise MissingPackageError("reading Keras's files needs h5py: pip install 'featx[keras]'") from error
    try:
        with h5py.File(file, "r") as opened:
            found = dict(_walk(opened))
            _require_plain(found, size)
            return {path: _tensor(dataset, path) for path, dataset in found.items()}
    except DAMAGED as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"not a whole HDF5 file ({in_short(error)}): fetch or save it again") from error


def _walk(opened: Any) -> Iterator[tuple[str, "h5py.Dataset"]]:
    """Paths and datasets below the group of weights. Links other than to an object's own place are refused."""
    import h5py

    root = next((name for name in ROOTS if opened.get(name, getclass=True) is h5py.Group), "")
    pending, objects = [(root, 0)], 0
    while pending:
        path, depth = pending.pop()
        group: Any = opened[path or "/"]
        for name in group:
            objects += 1
            inner = f"{path}/{name}" if path else name
            if objects > MOST_OBJECTS or depth > DEEPEST:
                raise CheckpointError(f"it has more than {MOST_OBJECTS} objects or {DEEPEST} groups in groups")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise CheckpointError(f"{inner!r} is a link to another place, which was not followed: save it again")
            kind = group.get(name, getclass=True)
            if kind is h5py.Group:
                pending.append((inner, depth + 1))
            elif kind is h5py.Dataset:
                yield inner, group[name]


def _require_plain(datasets: "dict[str, h5py.Dataset]", size: int) -> None:
    """Raise CheckpointError unless all datasets are in the file, and need no more memory than it has bytes for."""
    if len(datasets) > MAX_MEMBERS:
        raise CheckpointError(f"it has more than {MAX_MEMBERS} tensors, as no network has")
    if outside := [path for path, one in datasets.items() if one.external or one.is_virtual]:
        raise CheckpointError(f"the values of {names_in(outside)} are in other files, which were not read")
    if unknown := [path for path, one in datasets.items() if _filters(one) - {GZIP, SHUFFLE, CHECKSUM}]:
        raise CheckpointError(f"{names_in(unknown)} are compressed in a way that was not read: save them with gzip")
    if others := [path for path, one in datasets.items() if one.dtype.str[1:] not in KINDS]:
        raise CheckpointError(f"{names_in(others)} are not numbers of the types {sorted(KINDS)}")
    allowed = max(MAX_EXPANSION * size, ALWAYS_ALLOWED)
    needed = sum(prod(one.shape or ()) * one.dtype.itemsize for one in datasets.values())
    chunk = max((prod(one.chunks or ()) * one.dtype.itemsize for one in datasets.values()), default=0)
    if max(needed, chunk) > allowed:
        raise CheckpointError(f"its tensors would take {max(needed, chunk)} bytes; a file of {size} may take {allowed}")


def _filters(dataset: "h5py.Dataset") -> set[int]:
    properties = dataset.id.get_create_plist()
    return {properties.get_filter(number)[0] for number in range(properties.get_nfilters())}


def _tensor(dataset: "h5py.Dataset", path: str) -> torch.Tensor:
    import numpy as np

    values = np.empty(dataset.shape or (), dataset.dtype.newbyteorder("="))
    if dataset.shape is None:
        raise CheckpointError(f"{path!r} has no values")
    if values.size:
        dataset.read_direct(values)
    return torch.from_numpy(values)
