"""int8 graphs: weights and activations of an ONNX file, at the scales that the user's images call for."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .engine import beside

# The layers where the time goes; sums, norms and activations around them stay in float32.
LAYERS = ["Conv", "MatMul", "Gemm"]


def quantise(source: Path, target: Path, images: Tensor) -> None:
    """Write an int8 copy of the file: weights by channel, activations by the range they have for `images`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        """One image after another."""

        def __init__(self) -> None:
            self.left = iter(images.detach().float().cpu().split(1))

        def get_next(self) -> Any:
            image = next(self.left, None)
            return None if image is None else {"images": image.contiguous().numpy()}

    large = beside(source).exists()
    prepared = source.with_name(f"{source.name}.prepared")  # removed with the source
    with _quiet():
        quant_pre_process(source, prepared, skip_symbolic_shape=True, save_as_external_data=large)
        quantize_static(
            prepared,
            target,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=LAYERS,
            per_channel=True,
            use_external_data_format=large,
            reduce_range=not torch.cpu._is_vnni_supported(),  # without, sums of products overflow
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser writes to the root logger; what it cannot do, it raises."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
