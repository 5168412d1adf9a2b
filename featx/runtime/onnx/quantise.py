"""int8 graphs: an ONNX file with weights in steps of each channel, and activations in those that images call for.

A convolution is quantised together with the ReLU after it, because values that are cut off need no steps. These stay in
float32: the layer that reads the images, where most precision is lost and least time won, and as many of the most
sensitive other layers as the maps need; products of two activations, as in attention; sums and other functions between
layers.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..agreement import similarities
from ..description import beside
from ..mixed_precision import Layers, kept_layers
from .quantisable import make_quantisable, outputs_of

LAYERS = ("Conv", "MatMul", "Gemm")
ACTIVATIONS = ("Relu", "Clip")  # which int8 kernels have in them
GROUPS, RANKED_ON = 16, 2  # of layers, which are quantised alone, and images that their losses are measured on
IN_FLOAT = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}  # whose outputs get a bias, and then a function


def quantise(source: Path, target: Path, images: Tensor, wanted: float) -> tuple[str, ...]:
    """Write an int8 copy of an ONNX file, and return the paths of the layers that stay in float32.

    Args:
        source: A float32 file with one input, `images`. Files beside it are written, whose names start as its own.
        target: The file to write.
        images: (N, C, H, W), to calibrate with.
        wanted: The cosine similarity to reach at every output by keeping layers in float32.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.with_name(f"{source.name}.prepared")
    arrays = [image.contiguous().numpy() for image in images.detach().float().cpu().split(1)]
    with _quiet():
        quant_pre_process(source, prepared, skip_symbolic_shape=True, save_as_external_data=True)
        make_quantisable(prepared, arrays, 127 if torch.cpu._is_vnni_supported() else 64)
        trials = _Trials(prepared, target, arrays, _outputs(source, arrays))
        kept = kept_layers(trials.by_loss, trials.similarity, wanted)
        if kept != trials.written:
            trials.write(kept)
    return tuple(name.partition("/")[0] for name in (*trials.first, *kept))


class _Trials:
    """int8 files of one graph, with different layers in float32; each replaces the one before.

    first: the layer that reads the images. later: the other layers. written: those of them that are in float32 in the
    file. All are names of nodes with weights.
    """

    def __init__(self, prepared: Path, target: Path, arrays: list[Any], expected: list[Tensor]) -> None:
        self._prepared, self._target, self._arrays, self._expected = prepared, target, arrays, expected
        layers, self._others = _layers(prepared)
        self.first, self.later = layers[:1], tuple(layers[1:])
        self.written: Layers | None = None

    def write(self, kept: Layers) -> None:
        _write(self._prepared, self._target, self._arrays, [*self.first, *kept, *self._others])
        self.written = kept

    def similarity(self, kept: Layers, number: int | None = None) -> float:
        """The cosine similarity of the least similar output on the first images, with these layers in float32."""
        self.write(kept)
        expected = [output[:number] for output in self._expected]
        return min(similarities(_outputs(self._target, self._arrays[:number]), expected))

    def by_loss(self) -> Layers:
        """The later layers, the most sensitive ones first: a few neighbours at a time are quantised alone."""
        size = max(1, len(self.later) // GROUPS)
        groups = [self.later[start : start + size] for start in range(0, len(self.later), size)]

        def alone(group: Layers) -> float:
            return self.similarity(tuple(name for name in self.later if name not in group), RANKED_ON)

        return tuple(chain.from_iterable(sorted(groups, key=alone)))


def _write(prepared: Path, target: Path, arrays: list[Any], exact: list[str]) -> None:
    """Write the int8 file in which the nodes of these names stay in float32."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        prepared,
        target,
        _calibration(arrays),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*LAYERS, *ACTIVATIONS],
        nodes_to_exclude=exact,
        per_channel=True,
        use_external_data_format=beside(prepared.with_suffix("")).exists(),
        reduce_range=not torch.cpu._is_vnni_supported(),  # without, sums of products overflow
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options=IN_FLOAT,
        calibration_cache_path=prepared.with_name(f"{prepared.name}.ranges"),
    )


def _layers(path: Path) -> tuple[list[str], list[str]]:
    """Names of the nodes with weights, in the order in which they run, and of products without."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in LAYERS]
    layers = [node.name for node in nodes if not weights.isdisjoint(node.input)]
    return layers, [node.name for node in nodes if node.name not in layers]


def _outputs(path: Path, arrays: list[Any]) -> list[Tensor]:
    return [torch.from_numpy(np.concatenate(output)) for output in outputs_of(path, arrays).values()]


def _calibration(arrays: list[Any]) -> Any:
    """The images as the quantiser reads them, one after another."""
    from onnxruntime.quantization import CalibrationDataReader

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(arrays)

        def get_next(self) -> Any:
            image = next(self.left, None)
            return None if image is None else {"images": image}

    return Images()


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser writes to the root logger; what it cannot do, it raises."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
