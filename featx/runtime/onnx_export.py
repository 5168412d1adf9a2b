"""Export of extractors to ONNX files, and loading of these files."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, MissingPackageError, OutputError, WeightsNotFoundError
from ..whole_files import alone, folder_to_disk, local, to_disk, workspace
from ..wrappers import FeatureExtractWrapper
from .agreement import check_maps, require_agreement, require_min_agreement
from .available import lacks_packages
from .backends.engine import EngineExtractor
from .backends.engines import ENGINES, require_engine, write
from .capture import Dynamic, GraphSpec
from .description import Description, weights_file
from .mixed_precision import target_similarity
from .onnx.file import describe_onnx, read_onnx, seal
from .passes.prepare import prepare, require_extractor

FileRuntime = Literal["onnxruntime", "openvino"]
FILE_RUNTIMES: tuple[FileRuntime, ...] = get_args(FileRuntime)
SUFFIX = ".onnx"


def export(
    model: nn.Module,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    example: Tensor | None = None,
    dynamic: Dynamic = "auto",
    min_agreement: float | None = None,
) -> None:
    """Write an extractor to an ONNX file, which can be used without the model's code; `load_exported` loads it.

    The file is written atomically, after its maps were compared with the model's. In a lower precision, `agreement` of
    the loaded extractor has their cosine similarities.

    Args:
        model: An extractor in eval mode, native or bridged, or a Pipeline; it is not modified.
        path: A file name that ends in ".onnx". The graph's input is `images`; its outputs are the levels, in ascending
            order, with _ instead of characters other than letters and digits. Weights of more than 1 GiB are written to
            a second file, whose name ends in ".onnx.data". Existing files are replaced, and missing folders created.
        dtype: None is float32. torch.int8 is calibrated on `example`; `in_float32` of the loaded extractor has the
            layers that stay in float32.
        example: Images (N, in_chans, H, W) of the batch size and resolution that will be used; None is one image of the
            size that the weights were trained for.
        dynamic: The images that the file accepts besides those of `example`'s shape: "batch" any batch size, "size"
            also other image sizes, "none" no others; "auto" whatever the model supports.
        min_agreement: In a lower precision, the minimum cosine similarity of each level's map with the original's,
            from 0 to 1; None accepts any.

    Raises:
        ArgumentError: An argument is invalid.
        InputError: The model does not support the example.
        MissingPackageError: A package is not installed.
        ContractError: The model cannot be captured, or not with that `dynamic`; its maps are not reproduced, or a
            cosine similarity is below `min_agreement`.
        OutputError: The file cannot be written.
    """
    model = require_extractor(model, "export")
    path = require_target(path)
    if dynamic not in get_args(Dynamic):
        raise ArgumentError(f"dynamic={dynamic!r}: choose one of {get_args(Dynamic)}")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ArgumentError(f"dtype={dtype!r}: expected a torch.dtype, or None to keep the model's")
    require_engine(FILE_RUNTIMES[0], model, dtype, example is not None)
    require_min_agreement(min_agreement, dtype)
    computes = dtype or next(model.parameters()).dtype
    spec = GraphSpec(computes, example, dynamic, target_similarity(computes, min_agreement))
    with alone(path, also=[weights_file(path).name]), workspace(path) as folder:
        written = folder / path.name
        require_agreement(_write(model, written, spec).agreement, min_agreement)
        seal(written)
        _place(written, path)


def require_target(path: str | Path) -> Path:
    """The path of a file to write; its folder is created.

    Raises:
        ArgumentError: The path does not end in .onnx.
        OutputError: The path is an address or a folder, or its folder cannot be created or written.
    """
    path = local(path)
    _require_suffix(path)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file")
    with alone(path, also=[weights_file(path).name]):
        return path


def _place(written: Path, path: Path) -> None:
    """Move a file, after its weights file if there is one, to its path; a weights file without use is removed."""
    weights = weights_file(written)
    has_weights = weights.exists()
    for file in [weights] * has_weights + [written]:
        to_disk(file)
        file.replace(path.parent / file.name)
    if not has_weights:
        weights_file(path).unlink(missing_ok=True)
    folder_to_disk(path.parent)


def _write(model: FeatureExtractWrapper, path: Path, spec: GraphSpec) -> Description:
    """Write the file of an extractor, compare its maps with the model's, and return its description."""
    extractor, trace = prepare(model, spec.example)
    description = write(extractor, trace, spec, path)
    built = EngineExtractor(ENGINES[FILE_RUNTIMES[0]](path, description), description)
    cosines = check_maps(built, model, trace.images, spec.example, spec.computes)
    if cosines is None:
        return description
    description = replace(description, agreement=cosines)
    describe_onnx(path, description)
    return description


def load_exported(path: str | Path, *, runtime: FileRuntime | None = None) -> EngineExtractor:
    """Load the extractor of a file that `export` wrote; neither the model's code nor its package is needed.

    Args:
        path: Path of an ONNX file. The file contains only data, and is safe to load from any source.
        runtime: "onnxruntime" or "openvino"; None is the first of these that is installed.

    Returns:
        An extractor with the `feature_info`, `data_config` and `size_divisor` of the original. It returns maps in the
        same order and the same type: a list, a dict or tokens. It uses as many threads as torch does now.

    Raises:
        ArgumentError: An argument is invalid.
        WeightsNotFoundError: There is no such file.
        CheckpointError: `export` did not write the file, or it is damaged.
        MissingPackageError: The runtime is not installed.
    """
    path = Path(path)
    _require_suffix(path)
    if runtime not in (None, *FILE_RUNTIMES):
        raise ArgumentError(f"runtime={runtime!r}: {SUFFIX} files run on {' or '.join(FILE_RUNTIMES)}")
    if not path.is_file():
        raise WeightsNotFoundError(f"there is no file {path}")
    description = read_onnx(path)
    installed = [name for name in FILE_RUNTIMES if not lacks_packages(name, (name,))]
    chosen = runtime or next(iter(installed), FILE_RUNTIMES[0])
    lacking = lacks_packages(chosen, (chosen,))
    if lacking:
        raise MissingPackageError(f"{path} cannot be run by {chosen}: {lacking}")
    return EngineExtractor(ENGINES[chosen](path, description), description)


def _require_suffix(path: Path) -> None:
    """Raise ArgumentError if the file name does not end in .onnx."""
    if path.suffix != SUFFIX:
        raise ArgumentError(f"{path}: expected a file that ends in {SUFFIX}")
