"""ConvNeXts of Keras, whose layers are restated here from keras.applications.convnext, on arrays by Keras's names."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import images, relative_difference
from support.keras_files import values, write_h5, write_keras
from torch import Tensor

import featx
from featx import CheckpointError

MODEL, CHS, DEPTHS = "convnext_tiny", (16, 24, 32, 48), (3, 1, 2, 1)
FIELDS = {"chs": CHS, "depths": DEPTHS}
TOLERANCE = 1e-5  # single precision, the same operations in another order
Arrays = dict[str, np.ndarray]


def layers() -> dict[str, tuple[str, dict[str, tuple[int, ...]]]]:
    """Class and shapes of the variables of each layer, in Keras's order."""

    def norm(chs: int) -> tuple[str, dict[str, tuple[int, ...]]]:
        return "LayerNormalization", {"gamma": (chs,), "beta": (chs,)}

    def weights(kind: str, *kernel: int) -> tuple[str, dict[str, tuple[int, ...]]]:
        return kind, {"kernel": kernel, "bias": (kernel[-1],)}

    new = {"stem_conv": weights("Conv2D", 4, 4, 3, CHS[0]), "stem_layernorm": norm(CHS[0])}
    for stage, (chs, depth) in enumerate(zip(CHS, DEPTHS, strict=True)):
        if stage:
            new[f"downsampling_layernorm_{stage - 1}"] = norm(CHS[stage - 1])
            new[f"downsampling_conv_{stage - 1}"] = weights("Conv2D", 2, 2, CHS[stage - 1], chs)
        for block in (f"stage_{stage}_block_{index}" for index in range(depth)):
            new[f"{block}_depthwise_conv"] = weights("Conv2D", 7, 7, 1, chs)
            new[f"{block}_layernorm"] = norm(chs)
            new[f"{block}_pointwise_conv_1"] = weights("Dense", chs, 4 * chs)
            new[f"{block}_pointwise_conv_2"] = weights("Dense", 4 * chs, chs)
            new[f"{block}_layer_scale"] = "LayerScale", {"gamma": (chs,)}
    return {**new, "head_layernorm": norm(CHS[-1]), "head_dense": weights("Dense", CHS[-1], 5)}


def arrays() -> Arrays:
    return {
        f"{MODEL}_{layer}/{variable}": values(f"{layer}/{variable}", shape)
        for layer, (_, shapes) in layers().items()
        for variable, shape in shapes.items()
    }


class KerasConvNeXt:
    """Keras's layers, channels last."""

    def __init__(self, held: Arrays) -> None:
        self.held = held

    def of(self, layer: str, variable: str) -> Tensor:
        return torch.from_numpy(self.held[f"{MODEL}_{layer}/{variable}"])

    def conv(self, x: Tensor, layer: str, stride: int, padding: int = 0, groups: int = 1) -> Tensor:
        kernel = self.of(layer, "kernel").permute(3, 2, 0, 1)
        y = F.conv2d(x.movedim(-1, 1), kernel, self.of(layer, "bias"), stride, padding, groups=groups)
        return y.movedim(1, -1)

    def norm(self, x: Tensor, layer: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.of(layer, "gamma"), self.of(layer, "beta"), 1e-6)

    def dense(self, x: Tensor, layer: str) -> Tensor:
        return x @ self.of(layer, "kernel") + self.of(layer, "bias")

    def block(self, x: Tensor, name: str) -> Tensor:
        y = self.norm(self.conv(x, f"{name}_depthwise_conv", 1, 3, x.shape[-1]), f"{name}_layernorm")
        y = self.dense(F.gelu(self.dense(y, f"{name}_pointwise_conv_1")), f"{name}_pointwise_conv_2")
        return x + y * self.of(f"{name}_layer_scale", "gamma")

    def __call__(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps after each stage, and the logits."""
        x, maps = self.norm(self.conv(x.movedim(1, -1), "stem_conv", 4), "stem_layernorm"), []
        for stage, depth in enumerate(DEPTHS):
            if stage:
                x = self.norm(x, f"downsampling_layernorm_{stage - 1}")
                x = self.conv(x, f"downsampling_conv_{stage - 1}", 2)
            for index in range(depth):
                x = self.block(x, f"stage_{stage}_block_{index}")
            maps.append(x.movedim(-1, 1))
        return maps, self.dense(self.norm(x.mean((1, 2)), "head_layernorm"), "head_dense")


def as_keras(held: Arrays, folder: Path) -> Path:
    groups = {
        f"{MODEL}_{layer}": (kind, {variable: held[f"{MODEL}_{layer}/{variable}"] for variable in shapes})
        for layer, (kind, shapes) in layers().items()
    }
    return write_keras(folder / "w.keras", [(kind, layer, variables) for layer, (kind, variables) in groups.items()])


def as_h5(held: Arrays, folder: Path) -> Path:
    return write_h5(folder / "w.h5", {**held, f"{MODEL}_prestem_normalization/mean": np.zeros(3, np.float32)})


def of_keras_2(held: Arrays, folder: Path) -> Path:
    """The variable of a layer scale has no name there."""
    named = {name.replace("_layer_scale/gamma", "_layer_scale/Variable"): array for name, array in held.items()}
    return write_h5(folder / "w.h5", named, end=":0")


@torch.no_grad()
@pytest.mark.parametrize("write", [as_keras, as_h5, of_keras_2])
def test_maps_and_logits_are_those_of_keras_layers(write, tmp_path):
    path, x = write(arrays(), tmp_path), images(1, 3, 64, 96)
    maps, logits = KerasConvNeXt(arrays())(x)
    model = featx.create_model("convnext_tiny", num_classes=5, checkpoint_path=path, **FIELDS).eval()
    assert model.load_report.layout == "keras"
    assert relative_difference(model(x), logits) <= TOLERANCE
    extractor = featx.create_model("convnext_tiny", features_only=True, checkpoint_path=path, **FIELDS).eval()
    for ours, theirs in zip(extractor(x), maps, strict=True):
        assert relative_difference(ours, theirs) <= TOLERANCE


def test_the_preprocessing_in_keras_model_is_skipped_with_a_reason(tmp_path):
    model = featx.create_model("convnext_tiny", num_classes=5, checkpoint_path=as_h5(arrays(), tmp_path), **FIELDS)
    assert model.load_report.skipped == {
        f"{MODEL}_prestem_normalization/mean": "preprocessing that is a part of Keras's model"
    }


@torch.no_grad()
def test_the_last_norm_of_a_model_without_classifier_is_read():
    held = {name.replace(f"{MODEL}_head_layernorm", "layer_normalization_3"): array for name, array in arrays().items()}
    state = {name: torch.from_numpy(array) for name, array in held.items() if "head_dense" not in name}
    model = featx.create_model("convnext_tiny", num_classes=0, checkpoint_path=state, **FIELDS)
    assert torch.equal(model.get_parameter("head.norm.weight"), state["layer_normalization_3/gamma"])


def test_a_kernel_of_another_rank_is_reported():
    state = {name: torch.from_numpy(array) for name, array in arrays().items()}
    state[f"{MODEL}_stem_conv/kernel"] = torch.zeros(4, 4, 3)
    with pytest.raises(CheckpointError, match=r"stem\.0\.weight: \(4, 4, 3\), the model needs \(16, 3, 4, 4\)"):
        featx.create_model("convnext_tiny", num_classes=5, checkpoint_path=state, **FIELDS)
