"""int8 graphs: an ONNX file with weights in steps of each channel, and activations in those that images call for.

A convolution is quantised together with the ReLU after it, because values that are cut off need no steps. These stay in
float32: the layer that reads the images, where most precision is lost and least time won, and as many after it as the
maps need; products of two activations, as in attention; sums and other functions between layers.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..agreement import similarities
from ..description import beside
from ..mixed_precision import fewest
from .quantisable import make_quantisable

LAYERS = ("Conv", "MatMul", "Gemm")
ACTIVATIONS = ("Relu", "Clip")  # which int8 kernels have in them
MEASURED = 8  # images that tell how similar maps are
IN_FLOAT = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}  # whose outputs get a bias, and then a function


def quantise(source: Path, target: Path, images: Tensor, wanted: float) -> None:
    """Write an int8 copy of an ONNX file.

    Args:
        source: A float32 file with one input, `images`. Files beside it are written, whose names start as its own.
        target: The file to write.
        images: (N, C, H, W), to calibrate with.
        wanted: The cosine similarity that each output is to have with the file's, if first layers in float32 can do it.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.with_name(f"{source.name}.prepared")
    arrays = [image.contiguous().numpy() for image in images.detach().float().cpu().split(1)]
    with _quiet():
        quant_pre_process(source, prepared, skip_symbolic_shape=True, save_as_external_data=True)
        make_quantisable(prepared, arrays, 127 if torch.cpu._is_vnni_supported() else 64)
        layers, others = _layers(prepared)
        expected = _outputs(source, arrays)

        def similarity(count: int) -> float:
            _write(prepared, target, arrays, [*layers[: 1 + count], *others])
            return min(similarities(_outputs(target, arrays), expected))

        count = fewest(similarity, len(layers), wanted)
        if count:  # the last one that was tried may be another
            _write(prepared, target, arrays, [*layers[: 1 + count], *others])


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
    """What an ONNX file computes from the first images."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised, too
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    runs = [session.run(None, {"images": array}) for array in arrays[:MEASURED]]
    return [torch.from_numpy(np.concatenate(output)) for output in zip(*runs, strict=True)]


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
