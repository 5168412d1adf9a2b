"""featx export: write an extractor as an ONNX file."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

import featx

from .options import CheckpointPath, OutIndices, Pretrained, RandomWeights, Size, build, err, out

Name = Annotated[str, typer.Argument(help="Name of a model; 'featx list' shows all.")]
File = Annotated[Path, typer.Argument(help="File to write, which ends in .onnx.", metavar="FILE")]
Batch = Annotated[int, typer.Option(min=1, help="Images per batch, if the batch size is fixed.")]


class Dynamic(StrEnum):
    """Axes of the images that may vary in the exported file."""

    auto = "auto"
    size = "size"
    batch = "batch"
    none = "none"


def export(
    name: Name,
    file: File,
    out_indices: OutIndices = None,
    pretrained: Pretrained = False,
    checkpoint_path: CheckpointPath = None,
    random_weights: RandomWeights = None,
    size: Size = None,
    batch_size: Batch = 1,
    dynamic: Annotated[Dynamic, typer.Option(help="Axes that may vary; auto: all that can.")] = Dynamic.auto,
) -> None:
    """Export a model's maps as an ONNX file, which runs without featx."""
    from featx.runtime.onnx_export import require_target

    require_target(file)  # before the weights are loaded
    extractor, weights = build(name, out_indices, pretrained, checkpoint_path, random_weights)
    example = None
    if size is not None or batch_size > 1:
        config = extractor.data_config or featx.DataConfig()
        height, width = (size, size) if size is not None else config.size
        generator = torch.Generator().manual_seed(0)
        example = torch.rand(batch_size, extractor.in_chans or 3, height, width, generator=generator)
    err.print("capturing and writing …")
    featx.export(extractor, file, example=example, dynamic=dynamic.value)
    out.print(f"{file}: {len(extractor.feature_info)} maps, weights: {weights}", soft_wrap=True)
