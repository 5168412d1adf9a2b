"""Post-training static quantization of ONNX files to int8.

Weights have a scale per channel, and activations are calibrated on images. A convolution is quantized together with the
ReLU after it, so that no steps are spent on values that the ReLU removes. These operations stay in float32: the layer
that reads the images, which loses most precision and saves least time; as many of the most sensitive other layers as
the target similarity requires; products of two activations, as in attention; sums and other functions between layers.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..agreement import similarities
from ..description import weights_file
from ..mixed_precision import Layers, kept_layers
from .quantization_prep import outputs_of, smooth_and_round

LAYERS = ("Conv", "MatMul", "Gemm")
ACTIVATIONS = ("Relu", "Clip")  # int8 kernels of layers include them
GROUPS = 16  # of layers, which are quantized one group at a time to rank them by sensitivity
RANKING_IMAGES = 2  # on which these groups are compared
FLOAT_OUTPUTS = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}  # a bias and a function follow them


def quantize(source: Path, target: Path, images: Tensor, target_similarity: float) -> tuple[str, ...]:
    """Write an int8 copy of an ONNX file, and return the paths of the layers that stay in float32.

    Args:
        source: A float32 file with one input, `images`. Files are written next to it, whose names start with its name.
        target: The file to write.
        images: Calibration images (N, C, H, W). If the file has a fixed batch size, N must be a multiple of it.
        target_similarity: The cosine similarity to reach at every output by keeping layers in float32.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.with_name(f"{source.name}.prepared")
    batches = [batch.contiguous().numpy() for batch in images.detach().float().cpu().split(_batch_size(source))]
    with _errors_only():
        quant_pre_process(source, prepared, skip_symbolic_shape=True, save_as_external_data=True)
        smooth_and_round(prepared, batches, 127 if torch.cpu._is_vnni_supported() else 64)
        trials = _Trials(prepared, target, batches, _outputs(source, batches))
        kept = kept_layers(trials.by_sensitivity, trials.similarity, target_similarity)
        if kept != trials.in_float32:
            trials.write(kept)
    return tuple(name.partition("/")[0] for name in (*trials.first, *kept))


def _batch_size(path: Path) -> int:
    """The batch size of a file; 1 if it is not fixed."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1  # 0: it has a name


class _Trials:
    """int8 files of one graph with different layers in float32, each of which replaces the previous one.

    Attributes:
        first: Name of the node that reads the images, which stays in float32.
        later: Names of the other nodes with weights, in the order of execution.
        in_float32: Those of the later nodes that are in float32 in the current file; None before the first file.
    """

    def __init__(self, prepared: Path, target: Path, batches: list[Any], expected: list[Tensor]) -> None:
        self._prepared, self._target, self._batches, self._expected = prepared, target, batches, expected
        layers, self._products = _layers(prepared)
        self.first, self.later = layers[:1], tuple(layers[1:])
        self.in_float32: Layers | None = None

    def write(self, kept: Layers) -> None:
        """Write the file with these layers in float32."""
        _write(self._prepared, self._target, self._batches, [*self.first, *kept, *self._products])
        self.in_float32 = kept

    def similarity(self, kept: Layers, count: int | None = None) -> float:
        """The cosine similarity of the least similar output, with these layers in float32.

        count: at least this number of images is compared; all if None.
        """
        self.write(kept)
        batches = self._batches if count is None else self._batches[: -(-count // len(self._batches[0]))]
        expected = [output[: sum(map(len, batches))] for output in self._expected]
        return min(similarities(_outputs(self._target, batches), expected))

    def by_sensitivity(self) -> Layers:
        """The later layers, the most sensitive ones first; groups of neighboring layers are quantized alone."""
        size = max(1, len(self.later) // GROUPS)
        groups = [self.later[start : start + size] for start in range(0, len(self.later), size)]

        def similarity_of(group: Layers) -> float:
            return self.similarity(tuple(name for name in self.later if name not in group), RANKING_IMAGES)

        return tuple(chain.from_iterable(sorted(groups, key=similarity_of)))


def _write(prepared: Path, target: Path, batches: list[Any], in_float32: list[str]) -> None:
    """Write the int8 file in which the nodes of these names stay in float32."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    inputs = iter([{"images": batch} for batch in batches])
    reader: Any = SimpleNamespace(get_next=lambda: next(inputs, None))
    quantize_static(
        prepared,
        target,
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*LAYERS, *ACTIVATIONS],
        nodes_to_exclude=in_float32,
        per_channel=True,
        use_external_data_format=weights_file(prepared.with_suffix("")).exists(),
        reduce_range=not torch.cpu._is_vnni_supported(),  # without VNNI, sums of 8-bit products overflow
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options=FLOAT_OUTPUTS,
        calibration_cache_path=prepared.with_name(f"{prepared.name}.ranges"),
    )


def _layers(path: Path) -> tuple[list[str], list[str]]:
    """Names of the nodes with weights, in the order of execution, and of products without weights."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in LAYERS]
    layers = [node.name for node in nodes if not weights.isdisjoint(node.input)]
    return layers, [node.name for node in nodes if node.name not in layers]


def _outputs(path: Path, batches: list[Any]) -> list[Tensor]:
    return [torch.from_numpy(np.concatenate(arrays)) for arrays in outputs_of(path, batches).values()]


@contextmanager
def _errors_only() -> Iterator[None]:
    """Within a `with` block, the root logger, to which the quantizer writes its progress, logs errors only."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
