"""Runtimes that run a captured graph: what each needs and computes in, and how it is built."""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from ..onnx.quantise import quantise
from .engine import FileEngine
from .onnxruntime import OnnxRuntimeEngine
from .openvino import OpenVinoEngine, computes_bfloat16


@dataclass(frozen=True)
class Kind:
    """What a runtime computes in. has_bfloat16: whether that is for this processor, too."""

    dtypes: tuple[torch.dtype, ...]
    has_bfloat16: Callable[[], bool] = lambda: True


KINDS = {
    "onnxruntime": Kind((torch.float32, torch.int8)),
    "openvino": Kind((torch.float32, torch.bfloat16, torch.int8), computes_bfloat16),
}
ENGINES: dict[str, type[FileEngine]] = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}


def require_engine(runtime: str, model: nn.Module, dtype: torch.dtype | None, calibrated: bool) -> None:
    """Raise, before anything is done, what keeps the runtime from running the model in that dtype here.

    MissingPackageError for packages and compilers, ArgumentError for the rest. calibrated: there are images for int8.
    """
    lacking = runtimes()[runtime]
    if lacking:
        raise MissingPackageError(f"runtime={runtime!r} cannot be used: {lacking}")
    problem = _problem(runtime, model, dtype, calibrated)
    if problem:
        raise ArgumentError(f"runtime={runtime!r} cannot be used: {problem}")


def _problem(runtime: str, model: nn.Module, dtype: torch.dtype | None, calibrated: bool) -> str | None:
    kind = KINDS[runtime]
    devices = {parameter.device.type for parameter in model.parameters()}
    wanted = dtype or next(model.parameters()).dtype
    if devices != {"cpu"}:
        return f"it runs on CPUs, and the model is on {sorted(devices)}"
    if wanted not in kind.dtypes:
        return f"it computes in {kind.dtypes}, not in {wanted}: pass one of them as dtype="
    if wanted is torch.bfloat16 and not kind.has_bfloat16():
        return "this processor does not compute in bfloat16: choose another dtype"
    if wanted is torch.int8 and not calibrated:
        return "int8 is calibrated on images: pass example=, several that are like those to come"
    return None


def write(extractor: FeatureExtractWrapper, seen: ModuleTrace, spec: GraphSpec, path: Path) -> Description:
    """Write the graph of the extractor, which is used up, as an ONNX file.

    Raises ContractError for a model that cannot be captured, or whose operations have no translation.
    """
    program, said = capture(extractor, seen, spec)
    floating = path if spec.computes is not torch.int8 else path.with_name(f"floating-{path.name}")
    try:
        write_onnx(program, said, floating)
    except UntranslatedError as error:
        raise ContractError(f"{type(extractor.source).__name__}: {error}: use runtime='eager'") from error
    extractor.to("meta")  # what is left of it is its rule of sizes
    if floating != path:
        assert spec.example is not None
        said = replace(said, in_float32=quantise(floating, path, spec.example, spec.wanted))
        for file in list(path.parent.iterdir()):
            if file.name.startswith(floating.name):
                file.unlink()
        describe_onnx(path, said)
    return said
