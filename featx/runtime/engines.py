"""Runtimes that run a captured graph: what each needs and computes in, and how it is built."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..errors import ArgumentError, MissingPackageError
from ..wrappers import FeatureExtractWrapper
from .aot import AotEngine, machine, write_pt2
from .available import runtimes
from .compiled import CompiledEngine
from .description import Description, describe
from .engine import EngineExtractor, FileEngine, OwnFolder
from .graph import Wish, graph_of
from .layout import layout_name
from .onednn import onednn
from .onnx import OnnxRuntimeEngine, write_onnx
from .openvino import OpenVinoEngine, computes_bfloat16
from .quantise import quantise
from .watch import Seen

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def _onednn_has_bfloat16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()  # looked up when asked: not every build of PyTorch has it


@dataclass(frozen=True)
class Kind:
    """What a runtime runs on and computes in. has_bfloat16: whether that is for this processor, too."""

    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    has_bfloat16: Callable[[], bool] = lambda: True


KINDS = {
    "onednn": Kind(("cpu",), (torch.float32, torch.bfloat16), _onednn_has_bfloat16),
    "compile": Kind(("cpu", "cuda", "mps", "xpu"), (*FLOATS, torch.float64)),
    "aot": Kind(("cpu", "cuda"), (*FLOATS, torch.float64)),
    "onnxruntime": Kind(("cpu",), (torch.float32, torch.int8)),
    "openvino": Kind(("cpu",), (torch.float32, torch.bfloat16, torch.int8), computes_bfloat16),
}
ENGINES: dict[str, type[FileEngine]] = {
    "aot": AotEngine,
    "onnxruntime": OnnxRuntimeEngine,
    "openvino": OpenVinoEngine,
}


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
    if not devices <= set(kind.devices):
        return f"it runs on {' and '.join(kind.devices)}, and the model is on {sorted(devices)}"
    if wanted not in kind.dtypes:
        return f"it computes in {kind.dtypes}, not in {wanted}: pass one of them as dtype="
    if wanted is torch.bfloat16 and not kind.has_bfloat16():
        return "this processor does not compute in bfloat16: choose another dtype"
    if wanted is torch.int8 and not calibrated:
        return "int8 is calibrated on images: pass example=, several that are like those to come"
    return None


def engine_for(runtime: str, extractor: FeatureExtractWrapper, seen: Seen, wish: Wish) -> EngineExtractor:
    """The extractor, which has been prepared, on an engine; it is used up.

    Raises ContractError for a model that cannot be captured or compiled.
    """
    if runtime == "compile":
        engine = CompiledEngine(extractor, wish)
        said = describe(extractor, None, (wish.maps, wish.computes), layout_name(wish.layout))
        return EngineExtractor(engine, replace(said, capture="torch.export"), wish.layout, extractor)
    if runtime == "onednn":
        return onednn(extractor, seen, wish)
    folder = OwnFolder()
    path = folder.path / ("model.pt2" if runtime == "aot" else "model.onnx")
    said = write(extractor, seen, wish, path)
    return EngineExtractor(ENGINES[runtime](path, said, folder), said, wish.layout, extractor)


def write(extractor: FeatureExtractWrapper, seen: Seen, wish: Wish, path: Path) -> Description:
    """Write the graph of the extractor, which is used up, in the format that the file's name ends in."""
    device = next(extractor.parameters()).device.type
    graph = graph_of(extractor, seen, wish)
    extractor.to("meta")  # what is left of it is in the graph
    if path.suffix == ".pt2":
        write_pt2(graph, path)
        return replace(graph.said, machine=machine(device))
    if wish.computes is not torch.int8:
        write_onnx(graph, path)
        return graph.said
    assert wish.example is not None
    floating = path.with_name(f"floating-{path.name}")
    write_onnx(graph, floating)
    quantise(floating, path, wish.example)
    for file in list(path.parent.iterdir()):
        if file.name.startswith(floating.name):
            file.unlink()
    return graph.said
