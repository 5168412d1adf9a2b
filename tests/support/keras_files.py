"""Files of Keras, written without Keras: values that follow from names, and the groups in which Keras saves them."""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from zlib import crc32

import h5py
import numpy as np

VARIANCES = ("moving_variance", "gamma")
IMAGE_SIDE = 96  # pixels


def values(name: str, shape: Sequence[int]) -> np.ndarray:
    """Random numbers for a variable "layer/variable": positive ones for variances, small ones for kernels."""
    chance = np.random.RandomState(crc32(name.encode()))
    layer, _, leaf = name.rpartition("/")
    is_depthwise = "depthwise" in layer or "dwconv" in layer
    fan_in = np.prod(shape[:2] if is_depthwise else shape[:-1]) if leaf.endswith("kernel") else 25
    low, high = (0.5, 1.5) if leaf in VARIANCES else (-2 / np.sqrt(fan_in), 2 / np.sqrt(fan_in))
    return chance.uniform(low, high, tuple(shape)).astype(np.float32)


def images() -> np.ndarray:
    """(2, side, side, 3), as Keras takes them."""
    return np.random.RandomState(0).uniform(-2, 2, (2, IMAGE_SIDE, IMAGE_SIDE, 3)).astype(np.float32)


def write_h5(path: Path, state: Mapping[str, np.ndarray], root: str = "model_weights/", end: str = "") -> Path:
    """As model.save writes it. root: of the groups, "" for save_weights of Keras 2. end: ":0" in Keras 2."""
    with h5py.File(path, "w") as file:
        for name, array in state.items():
            layer = name.rpartition("/")[0]
            file[f"{root}{layer}/{name}{end}"] = array
        if root:
            file["optimizer_weights/Adam/iterations"] = np.int64(3)
    return path


def write_keras(path: Path, layers: Sequence[tuple[str, str, Mapping[str, np.ndarray]]]) -> Path:
    """As Keras 3 writes a `.keras` file. layers: class, name and variables of each layer, in the order of the model."""
    config = {"layers": [{"class_name": kind, "config": {"name": name}} for kind, name, _ in layers]}
    with h5py.File(stored := io.BytesIO(), "w") as file:
        for place, variables in _places(layers):
            file.create_group(f"{place}/vars")
            for number, array in enumerate(variables.values()):
                file[f"{place}/vars/{number}"] = array
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps({"class_name": "Functional", "config": config}))
        archive.writestr("model.weights.h5", stored.getvalue())
    return path


GROUPS = {
    "Conv2D": "conv2d",
    "DepthwiseConv2D": "depthwise_conv2d",
    "BatchNormalization": "batch_normalization",
    "Dense": "dense",
    "LayerNormalization": "layer_normalization",
    "LayerScale": "layer_scale",
    "ReLU": "re_lu",
    "InputLayer": "input_layer",
    "ZeroPadding2D": "zero_padding2d",
}


def _places(layers: Sequence[tuple[str, str, Mapping[str, np.ndarray]]]) -> Iterator[tuple[str, Mapping]]:
    counts: dict[str, int] = {}
    for kind, _, variables in layers:
        counts[kind] = counts.get(kind, -1) + 1
        yield f"layers/{GROUPS[kind]}" + (f"_{counts[kind]}" if counts[kind] else ""), variables
