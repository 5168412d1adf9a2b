"""Weights of an ONNX graph made ready for int8, so that its maps stay like those of float32.

- A channel of a layer norm that is larger than others takes the steps of them all. Therefore channels are divided by a
  part of their range, and the weights after the norm multiplied by it (SmoothQuant, https://arxiv.org/abs/2211.10438).
- Rounded weights move the mean of a channel, and the bias takes it back (bias correction,
  https://arxiv.org/abs/1906.04721, section 4.2).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SMOOTHING = 0.75  # exponent of the range of activations; weights have the rest to 1
TINY = 1e-6  # of ranges: a channel of zeros stays as it is


def make_quantisable(path: Path, images: Sequence[Any], largest: int) -> None:
    """Smooth the layer norms of an ONNX file, and round the weights of its convolutions, in place.

    Args:
        path: A file of opset 18 or later with one input, `images`. A file beside it is written, whose name starts so.
        images: Arrays (1, C, H, W), to measure activations on.
        largest: The largest integer that a weight becomes.
    """
    import onnx

    model = onnx.load(path)
    stored = _Stored(model.graph)
    norms = list(_norms(model.graph, stored))
    layers = [node for node in model.graph.node if node.op_type == "Conv" and len(node.input) == 3]
    layers = [layer for layer in layers if layer.input[1] in stored and layer.input[2] in stored]
    if not layers and not norms:
        return
    measuring = _measuring(model, [layer.input[0] for layer in layers], [norm.output[0] for norm, _ in norms])
    _write(measuring, path.with_name(f"{path.name}.measuring"))
    means, peaks = _measured(path.with_name(f"{path.name}.measuring"), images)
    for norm, products in norms:
        _smooth(stored, norm, products, peaks[norm.output[0]])
    for layer in layers:
        _round(stored, layer, means[layer.input[0]], largest)
    _write(model, path)


def _write(model: Any, path: Path) -> None:
    """Write a model, its tensors in a file beside it, which may be of any size, but for those that nothing reads."""
    import onnx

    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")


class _Stored:
    """The initialisers of a graph, as arrays."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def array(self, name: str) -> Any:
        import onnx

        return onnx.numpy_helper.to_array(self._tensors[name])

    def replace(self, node: Any, position: int, array: Any) -> None:
        """Give an input of a node another value; nodes that share the tensor keep theirs."""
        import onnx

        name = f"{node.input[position]}:{node.output[0]}"
        tensor = onnx.numpy_helper.from_array(array.astype(np.float32), name)
        self._graph.initializer.append(tensor)
        self._tensors[name] = tensor
        node.input[position] = name


def _norms(graph: Any, stored: _Stored) -> Iterator[tuple[Any, list[Any]]]:
    """Layer norms that nothing but products with weights reads, each with these products."""
    returned = {output.name for output in graph.output}
    for norm in graph.node:
        if norm.op_type == "LayerNormalization" and norm.output[0] not in returned:
            readers = [node for node in graph.node if norm.output[0] in node.input]
            if all(node.op_type == "MatMul" and node.input[1] in stored for node in readers):
                yield norm, readers


def _measuring(model: Any, averaged: Sequence[str], peaking: Sequence[str]) -> Any:
    """A copy that returns, of maps (1, chs, H, W), the mean of each channel, and of tokens (..., chs) the largest."""
    import onnx

    measuring, make = onnx.ModelProto(), onnx.helper.make_node
    measuring.CopyFrom(model)
    graph = measuring.graph
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), "first axis"))
    averaged, peaking = list(dict.fromkeys(averaged)), list(dict.fromkeys(peaking))
    for name in averaged:
        graph.node.append(make("GlobalAveragePool", [name], [f"mean {name}"]))
    for name in peaking:
        graph.node.append(make("Abs", [name], [f"absolute {name}"]))
        graph.node.append(make("Flatten", [f"absolute {name}"], [f"flat {name}"], axis=-1))
        graph.node.append(make("ReduceMax", [f"flat {name}", "first axis"], [f"peak {name}"], keepdims=0))
    del graph.output[:]
    names = [f"mean {name}" for name in averaged] + [f"peak {name}" for name in peaking]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return measuring


def _measured(path: Path, images: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """By tensor, (chs,): the mean of each channel over all images, and the largest absolute value."""
    found: dict[str, dict[str, Any]] = {"mean": {}, "peak": {}}
    for output, arrays in outputs_of(path, images).items():
        kind, _, name = output.partition(" ")
        array = np.stack([one.ravel() for one in arrays])
        found[kind][name] = array.mean(0) if kind == "mean" else array.max(0)
    return found["mean"], found["peak"]


def outputs_of(path: Path, images: Sequence[Any]) -> dict[str, list[Any]]:
    """By output, what an ONNX file computes from each of the images."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised, too
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    runs = [session.run(None, {"images": image}) for image in images]
    return {output.name: arrays for output, *arrays in zip(session.get_outputs(), *runs, strict=True)}


def _smooth(stored: _Stored, norm: Any, products: Sequence[Any], peaks: Any) -> None:
    """Divide channels of the norm by a part of their range, and multiply the weights of the products."""
    weights = [stored.array(product.input[1]) for product in products]
    ranges = np.maximum(np.max([np.abs(weight).max(1) for weight in weights], axis=0), TINY)
    factors = np.maximum(peaks, TINY) ** SMOOTHING / ranges ** (1 - SMOOTHING)
    for position in range(1, len(norm.input)):
        stored.replace(norm, position, stored.array(norm.input[position]) / factors)
    for product, weight in zip(products, weights, strict=True):
        stored.replace(product, 1, weight * factors[:, None])


def _round(stored: _Stored, layer: Any, means: Any, largest: int) -> None:
    """Round the weights of a convolution to multiples of a step per channel, and take what that adds from its bias."""
    weight, bias = stored.array(layer.input[1]), stored.array(layer.input[2])
    flat = weight.reshape(len(weight), -1)
    step = np.maximum(np.abs(flat).max(1, keepdims=True), TINY) / largest
    rounded = (np.round(flat / step) * step).reshape(weight.shape)
    errors = (rounded - weight).reshape(*weight.shape[:2], -1).sum(2)  # (chs, in_chans / groups)
    inputs = means.reshape(-1, 1, weight.shape[1])  # (groups, 1, in_chans / groups)
    stored.replace(layer, 1, rounded)
    stored.replace(layer, 2, bias - (errors.reshape(len(inputs), -1, weight.shape[1]) * inputs).sum(2).ravel())
