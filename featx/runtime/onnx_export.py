"""Extractors as ONNX files, which run without featx's models."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, MissingPackageError, OutputError, WeightsNotFoundError
from ..whole_files import alone, folder_to_disk, local, to_disk, workspace
from ..wrappers import FeatureExtractWrapper
from .agreement import compared, require_agreement, require_min_agreement
from .available import lacks_packages
from .backends.engine import EngineExtractor
from .backends.engines import ENGINES, require_engine, write
from .capture import Dynamic, GraphSpec
from .description import Description, beside
from .mixed_precision import wanted_similarity
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
    """Write an extractor to a file that needs none of its code; `load_exported` makes it an extractor again.

    Maps of the file are compared with the model's before the file is put in place; in a lower precision, `agreement` of
    the loaded extractor has their cosine similarities.

    Args:
        model: an extractor in eval mode, native or bridged, or a Pipeline; it is not changed.
        path: a file name that ends in ".onnx", for ONNX Runtime, OpenVINO and other readers of ONNX. The input is
            `images`; outputs have the names of the levels, with _ for other characters than letters and digits, in
            ascending order of levels. Weights above 1 GiB are written to a file beside it, which ends in ".onnx.data".
            An existing file is replaced at once, with the one beside it. A missing folder is created.
        dtype: None is float32. torch.int8 calibrates on `example`; the layers that stay in float32 are in `in_float32`
            of the loaded extractor.
        example: images (N, in_chans, H, W) as they will be given; None takes the size that the weights were trained
            for.
        dynamic: the images that the file accepts besides `example`'s shape: "batch" any number, "size" also other
            sizes, "none" no others; "auto" as many as the model allows.
        min_agreement: in a lower precision, the least cosine similarity of any level's map with the model's, from 0 to
            1; None accepts all.

    Raises:
        ArgumentError: an argument is invalid.
        InputError: the model does not support the example.
        MissingPackageError: a package is not installed.
        ContractError: the model cannot be captured, or not with that `dynamic`, or a map agrees less than
            `min_agreement`.
        OutputError: the file cannot be written.
    """
    model = require_extractor(model, "export")
    path = require_target(path)
    if dynamic not in get_args(Dynamic):
        raise ArgumentError(f"dynamic={dynamic!r}: choose one of {get_args(Dynamic)}")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ArgumentError(f"dtype={dtype!r}: expected a torch.dtype, or None to keep the model's")
    require_engine(FILE_RUNTIMES[0], model, dtype, example is not None)
    require_min_agreement(min_agreement, dtype)
    with alone(path, also=[beside(path).name]), workspace(path) as folder:
        written = folder / path.name
        said = _write(model, written, (dtype, example, dynamic, min_agreement))
        require_agreement(said.agreement, min_agreement)
        seal(written)
        _place(written, path)


def require_target(path: str | Path) -> Path:
    """The path of a file to write, whose folder is made.

    Raises:
        ArgumentError: the path does not end in .onnx.
        OutputError: it is an address or a folder, or its folder cannot be made or written.
    """
    path = local(path)
    _require_suffix(path)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file")
    with alone(path, also=[beside(path).name]):
        return path


def _place(written: Path, path: Path) -> None:
    """Move a file to its path, after the one with its weights, if there is one; else remove that of a file before."""
    weights = beside(written)
    has_weights = weights.exists()
    for file in [weights] * has_weights + [written]:
        to_disk(file)
        file.replace(path.parent / file.name)
    if not has_weights:
        beside(path).unlink(missing_ok=True)
    folder_to_disk(path.parent)


def _write(
    model: FeatureExtractWrapper, path: Path, asked: tuple[torch.dtype | None, Tensor | None, Dynamic, float | None]
) -> Description:
    dtype, example, dynamic, least = asked
    extractor, seen = prepare(model, example)
    computes = dtype or seen.images.dtype
    said = write(extractor, seen, GraphSpec(computes, example, dynamic, wanted_similarity(computes, least)), path)
    made = EngineExtractor(ENGINES[FILE_RUNTIMES[0]](path, said), said)
    said = replace(said, agreement=compared(made, model, seen.images, example, computes))
    if said.agreement is not None:
        describe_onnx(path, said)
    return said


def load_exported(path: str | Path, *, runtime: FileRuntime | None = None) -> EngineExtractor:
    """Load the extractor of a file that `export` wrote; neither the model's code nor its package is needed.

    Args:
        path: of an ONNX file, which is data, and safe to load from anywhere.
        runtime: "onnxruntime" or "openvino"; None takes the first of them that is installed.

    Returns:
        An extractor with `feature_info`, `data_config` and `size_divisor`, which returns what the original returned: a
        list, dict or tokens, in the same order. It uses as many threads as torch uses now.

    Raises:
        ArgumentError: an argument is invalid.
        WeightsNotFoundError: there is no such file.
        CheckpointError: `export` did not write the file, or it is damaged.
        MissingPackageError: the runtime is not installed.
    """
    path = Path(path)
    _require_suffix(path)
    if runtime not in (None, *FILE_RUNTIMES):
        raise ArgumentError(f"runtime={runtime!r}: {SUFFIX} files run on {' or '.join(FILE_RUNTIMES)}")
    if not path.is_file():
        raise WeightsNotFoundError(f"there is no file {path}")
    said = read_onnx(path)
    installed = [name for name in FILE_RUNTIMES if not lacks_packages(name, (name,))]
    chosen = runtime or next(iter(installed), FILE_RUNTIMES[0])
    lacking = lacks_packages(chosen, (chosen,))
    if lacking:
        raise MissingPackageError(f"{path} cannot be run by {chosen}: {lacking}")
    return EngineExtractor(ENGINES[chosen](path, said), said)


def _require_suffix(path: Path) -> None:
    """ArgumentError unless the file's name ends as ONNX files do."""
    if path.suffix != SUFFIX:
        raise ArgumentError(f"{path}: expected a file that ends in {SUFFIX}")
