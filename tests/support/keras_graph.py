"""Runs the graph that Keras stores in its .h5 files, with the layers' definitions and the weights beside it."""

import json
from pathlib import Path
from typing import Any

import h5py
import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]  # by layer and variable, such as "Conv1/kernel"


def run_h5(path: Path, x: Tensor) -> Tensor:
    """The output of a file's sequential model before its last activation, of images (N, 3, H, W)."""
    weights: Weights = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            layer, variable = name.split("/")[-2:]
            weights[f"{layer}/{variable.removesuffix(':0')}"] = torch.from_numpy(item[()])

    with h5py.File(path) as file:
        file["model_weights"].visititems(keep)
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
    for layer in layers:
        x = (
            functional(layer["config"], weights, x)
            if layer["class_name"] == "Functional"
            else applied(layer, weights, [x])
        )
    return x


def functional(config: dict, weights: Weights, x: Tensor) -> Tensor:
    outputs: dict[str, Tensor] = {}
    for layer in config["layers"]:
        inputs = [outputs[name] for name in sources(layer["inbound_nodes"])] or [x]
        outputs[layer["name"]] = applied(layer, weights, inputs)
    return outputs[config["layers"][-1]["name"]]


def sources(nodes: Any) -> list[str]:
    """The layers whose outputs a layer takes."""
    if isinstance(nodes, dict) and "keras_history" in nodes:
        return [nodes["keras_history"][0]]
    items = nodes.values() if isinstance(nodes, dict) else nodes if isinstance(nodes, list) else ()
    return [name for item in items for name in sources(item)]


def applied(layer: dict, weights: Weights, inputs: list[Tensor]) -> Tensor:
    x, config, kind = inputs[0], layer["config"], layer["class_name"]
    own = {name.partition("/")[2]: value for name, value in weights.items() if name.startswith(f"{layer['name']}/")}
    match kind:
        case "InputLayer" | "Dropout":
            return x
        case "ZeroPadding2D":
            (top, bottom), (left, right) = config["padding"]
            return F.pad(x, (left, right, top, bottom))
        case "Conv2D":
            return convolved(x, own["kernel"].permute(3, 2, 0, 1), config, 1)
        case "DepthwiseConv2D":
            return convolved(x, own["kernel"].permute(2, 3, 0, 1), config, x.shape[1])
        case "BatchNormalization":
            scale, shift = own["gamma"], own["beta"]
            return F.batch_norm(x, own["moving_mean"], own["moving_variance"], scale, shift, eps=config["epsilon"])
        case "ReLU":
            return x.clamp(0, config["max_value"])
        case "Add":
            return sum(inputs[1:], inputs[0])
        case "GlobalAveragePooling2D":
            return x.mean((2, 3))
        case "Dense":
            return x @ own["kernel"] + own["bias"]
    raise NotImplementedError(kind)


def convolved(x: Tensor, kernel: Tensor, config: dict, groups: int) -> Tensor:
    if config["padding"] == "same":
        pads = []
        for side, size, stride in zip(
            x.shape[:1:-1], config["kernel_size"][::-1], config["strides"][::-1], strict=True
        ):
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            pads += [total // 2, total - total // 2]
        x = F.pad(x, pads)
    return F.conv2d(x, kernel, None, tuple(config["strides"]), groups=groups)
