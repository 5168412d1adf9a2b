"""The runtimes that execute ONNX graphs: the check of a request, and writing of a graph."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ...errors import ArgumentError, ContractError, MissingPackageError
from ...tracing.module_trace import ModuleTrace
from ...wrappers import FeatureExtractWrapper
from ..available import runtimes
from ..capture import GraphSpec, capture
from ..description import Description
from ..onnx.file import describe_onnx, write_onnx
from ..onnx.operations import UntranslatedError
from ..onnx.quantize import quantize
from .engine import FileEngine
from .onnxruntime import OnnxRuntimeEngine
from .openvino import OpenVinoEngine, computes_bfloat16

ENGINES: dict[str, type[FileEngine]] = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}


def require_engine(runtime: str, model: nn.Module, dtype: torch.dtype | None, is_calibrated: bool) -> None:
    """Check, before any work, that the runtime can execute the model in a dtype on this machine.

    Args:
        runtime: A key of ENGINES.
        model: The model.
        dtype: The dtype to compute in; None is the model's.
        is_calibrated: Whether there are calibration images for int8.

    Raises:
        ArgumentError: The runtime does not support the dtype or the model's device, or int8 lacks calibration images.
        MissingPackageError: A package that the runtime needs is not installed.
    """
    lacking = runtimes()[runtime]
    if lacking:
        raise MissingPackageError(f"runtime={runtime!r} cannot be used: {lacking}")
    problem = _problem(ENGINES[runtime].dtypes, model, dtype, is_calibrated)
    if problem:
        raise ArgumentError(f"runtime={runtime!r} cannot be used: {problem}")


def _problem(
    dtypes: tuple[torch.dtype, ...], model: nn.Module, dtype: torch.dtype | None, is_calibrated: bool
) -> str | None:
    """The reason why a runtime that supports these dtypes cannot execute the model; None if it can."""
    devices = {parameter.device.type for parameter in model.parameters()}
    requested = dtype or next(model.parameters()).dtype
    if devices != {"cpu"}:
        return f"it runs on CPUs, and the model is on {sorted(devices)}"
    if requested not in dtypes:
        return f"it computes in {dtypes}, not in {requested}: pass one of them as dtype="
    if requested is torch.bfloat16 and not computes_bfloat16():  # among the runtimes, only OpenVINO has bfloat16
        return "this processor does not compute in bfloat16: choose another dtype"
    if requested is torch.int8 and not is_calibrated:
        return "int8 is calibrated on images: pass several images like those that will be used as example="
    return None


def write(extractor: FeatureExtractWrapper, trace: ModuleTrace, spec: GraphSpec, path: Path) -> Description:
    """Write the graph of the extractor, which cannot be used afterwards, as an ONNX file.

    Raises:
        ContractError: The model cannot be captured, or one of its operations has no translation.
    """
    program, description = capture(extractor, trace, spec)
    floating = path if spec.computes is not torch.int8 else path.with_name(f"floating-{path.name}")
    try:
        write_onnx(program, description, floating)
    except UntranslatedError as error:
        raise ContractError(f"{type(extractor.source).__name__}: {error}: use runtime='eager'") from error
    extractor.to("meta")  # frees the memory of its weights; its size rule stays in use
    if floating != path:
        assert spec.example is not None
        in_float32 = quantize(floating, path, spec.example, spec.target_similarity)
        description = replace(description, in_float32=in_float32)
        for file in list(path.parent.iterdir()):
            if file.name.startswith(floating.name):
                file.unlink()
        describe_onnx(path, description)
    return description
