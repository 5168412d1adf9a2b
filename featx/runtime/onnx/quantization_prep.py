"""Changes of an ONNX graph's weights before int8 quantization, which keep its maps similar to those of float32.

- All channels after a layer norm share one scale, which the channel of the largest range determines. SmoothQuant
  (https://arxiv.org/abs/2211.10438) divides channels by a power of their range, and multiplies the next weights by it.
- Rounding of weights shifts the mean of an output channel. Bias correction (https://arxiv.org/abs/1906.04721, section
  4.2) subtracts the shift from the bias.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SMOOTHING = 0.75  # SmoothQuant's exponent of the range of activations; that of weights is 1 - SMOOTHING
TINY = 1e-6  # lower bound of ranges, for channels of zeros


def smooth_and_round(path: Path, batches: Sequence[Any], largest: int) -> None:
    """Smooth the layer norms of an ONNX file, and round the weights of its convolutions, in place.

    Args:
        path: A file of opset 18 or later with one input, `images`. Files are written next to it, whose names start with
            its name.
        batches: Arrays (N, C, H, W), on which activations are measured.
        largest: The largest integer of a quantized weight.
    """
    import onnx

    model = onnx.load(path)
    weights = _Initializers(model.graph)
    norms = list(_norms(model.graph, weights))
    layers = [node for node in model.graph.node if node.op_type == "Conv" and len(node.input) == 3]
    layers = [layer for layer in layers if layer.input[1] in weights and layer.input[2] in weights]
    if not layers and not norms:
        return
    probe = path.with_name(f"{path.name}.statistics")
    _write(_with_statistics(model, [layer.input[0] for layer in layers], [norm.output[0] for norm, _ in norms]), probe)
    means, peaks = _statistics(probe, batches)
    for norm, products in norms:
        _smooth(weights, norm, products, peaks[norm.output[0]])
    for layer in layers:
        _round(weights, layer, means[layer.input[0]], largest)
    _write(model, path)


def _write(model: Any, path: Path) -> None:
    """Write a model without unused initializers; the others are written to a second file, which may have any size."""
    import onnx

    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")


class _Initializers:
    """The initializers of a graph, as arrays."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def array(self, name: str) -> Any:
        import onnx

        return onnx.numpy_helper.to_array(self._tensors[name])

    def replace(self, node: Any, position: int, array: Any) -> None:
        """Replace an input of a node by an array; other nodes that read the same tensor keep it."""
        import onnx

        name = f"{node.input[position]}:{node.output[0]}"
        tensor = onnx.numpy_helper.from_array(array.astype(np.float32), name)
        self._graph.initializer.append(tensor)
        self._tensors[name] = tensor
        node.input[position] = name


def _norms(graph: Any, weights: _Initializers) -> Iterator[tuple[Any, list[Any]]]:
    """Layer norms whose outputs only products with weights read, each with these products."""
    returned = {output.name for output in graph.output}
    for norm in graph.node:
        if norm.op_type == "LayerNormalization" and norm.output[0] not in returned:
            readers = [node for node in graph.node if norm.output[0] in node.input]
            if all(node.op_type == "MatMul" and node.input[1] in weights for node in readers):
                yield norm, readers


def _with_statistics(model: Any, averaged: Sequence[str], peaking: Sequence[str]) -> Any:
    """A copy of a model whose outputs are statistics of its tensors.

    Args:
        model: The model.
        averaged: Names of maps (N, chs, H, W), of which the mean of each image and channel is computed.
        peaking: Names of tokens (..., chs), of which the largest absolute value of each channel is computed.
    """
    import onnx

    copy, make = onnx.ModelProto(), onnx.helper.make_node
    copy.CopyFrom(model)
    graph = copy.graph
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
    return copy


def _statistics(path: Path, batches: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays (chs,) by tensor: the mean of each channel over all images, and its largest absolute value."""
    means, peaks = {}, {}
    for output, arrays in outputs_of(path, batches).items():
        kind, _, name = output.partition(" ")
        if kind == "mean":
            means[name] = np.concatenate(arrays).mean(0).ravel()
        else:
            peaks[name] = np.stack(arrays).max(0)
    return means, peaks


def outputs_of(path: Path, batches: Sequence[Any]) -> dict[str, list[Any]]:
    """The arrays that an ONNX file computes from each batch of images, by name of the output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # log errors only, which are also raised
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    runs = [session.run(None, {"images": batch}) for batch in batches]
    return {output.name: arrays for output, *arrays in zip(session.get_outputs(), *runs, strict=True)}


def _smooth(weights: _Initializers, norm: Any, products: Sequence[Any], peaks: Any) -> None:
    """Divide the output channels of a norm by factors, and multiply the weights of the products by them."""
    matrices = [weights.array(product.input[1]) for product in products]
    ranges = np.maximum(np.max([np.abs(matrix).max(1) for matrix in matrices], axis=0), TINY)
    factors = np.maximum(peaks, TINY) ** SMOOTHING / ranges ** (1 - SMOOTHING)
    for position in range(1, len(norm.input)):
        weights.replace(norm, position, weights.array(norm.input[position]) / factors)
    for product, matrix in zip(products, matrices, strict=True):
        weights.replace(product, 1, matrix * factors[:, None])


def _round(weights: _Initializers, layer: Any, means: Any, largest: int) -> None:
    """Round the weights of a convolution to a scale per channel, and subtract the shift of the mean from its bias."""
    weight, bias = weights.array(layer.input[1]), weights.array(layer.input[2])
    flat = weight.reshape(len(weight), -1)
    scale = np.maximum(np.abs(flat).max(1, keepdims=True), TINY) / largest
    rounded = (np.round(flat / scale) * scale).reshape(weight.shape)
    errors = (rounded - weight).reshape(*weight.shape[:2], -1).sum(2)  # (chs, in_chans / groups)
    inputs = means.reshape(-1, 1, weight.shape[1])  # (groups, 1, in_chans / groups)
    weights.replace(layer, 1, rounded)
    weights.replace(layer, 2, bias - (errors.reshape(len(inputs), -1, weight.shape[1]) * inputs).sum(2).ravel())
