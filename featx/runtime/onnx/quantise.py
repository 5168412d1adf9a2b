"""int8 graphs: an ONNX file with weights in steps of each channel, and activations in those that images call for.

A convolution is quantised together with the ReLU after it, because values that are cut off need no steps. These stay in
float32: the layer that reads the images, where most precision is lost and least time won; products of two activations,
as in attention; sums and other functions between layers.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..description import beside
from .quantisable import make_quantisable

LAYERS = ("Conv", "MatMul", "Gemm")
ACTIVATIONS = ("Relu", "Clip")  # which int8 kernels have in them
IN_FLOAT = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}  # whose outputs get a bias, and then a function


def quantise(source: Path, target: Path, images: Tensor) -> None:
    """Write an int8 copy of an ONNX file.

    Args:
        source: A float32 file with one input, `images`. Files beside it are written, whose names start as its own.
        target: The file to write.
        images: (N, C, H, W), to calibrate with.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.with_name(f"{source.name}.prepared")
    arrays = [image.contiguous().numpy() for image in images.detach().float().cpu().split(1)]
    has_vnni = torch.cpu._is_vnni_supported()  # without, sums of products overflow
    with _quiet():
        quant_pre_process(source, prepared, skip_symbolic_shape=True, save_as_external_data=True)
        make_quantisable(prepared, arrays, 127 if has_vnni else 64)
        quantize_static(
            prepared,
            target,
            _calibration(arrays),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*LAYERS, *ACTIVATIONS],
            nodes_to_exclude=_in_float32(prepared),
            per_channel=True,
            use_external_data_format=beside(source).exists(),
            reduce_range=not has_vnni,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=IN_FLOAT,
        )


def _in_float32(path: Path) -> list[str]:
    """Names of the nodes that are not quantised: the first layer, and products without weights."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in LAYERS]
    return [node.name for node in layers if node is layers[0] or weights.isdisjoint(node.input)]


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
