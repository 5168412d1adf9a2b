"""Files that torch.load does not read: Keras's, ONNX, and pickles of NumPy arrays."""

import pickle
import re
import warnings
from pathlib import Path

import torch
import torchvision
from support.keras_files import write_h5, write_keras
from torch import nn

import featx
from featx.models.layers.mobile import MobileStyle, as_tensorflow
from layouts.published_detectors import detectron2
from layouts.published_file import PublishedFile, Reference, State, named, ours, prefixed, seeded, without_counters

KINDS = {"kernel": "Conv2D", "gamma": "BatchNormalization"}  # of a layer, by its first variable


def keras_mobilenetv2(state: State) -> State:
    """Names of keras.applications, which counts blocks and calls a block's norms after its convolutions."""
    ends = {"conv_stem": "Conv1", "bn1": "bn_Conv1", "conv_head": "Conv_1", "bn2": "Conv_1_bn"}
    rules = [(rf"^{native}\.", f"{keras}/") for native, keras in {**ends, "classifier": "predictions"}.items()]
    blocks = dict.fromkeys(match[0] for match in map(re.compile(r"blocks\.\d+\.\d+").match, state) if match)
    for number, block in enumerate(blocks):
        prefix = f"block_{number}_" if number else "expanded_conv_"
        layers = {"conv_pw": "expand", "conv_dw": "depthwise", "conv_pwl": "project"}
        layers = layers if number else {"conv_dw": "depthwise", "conv_pw": "project"}
        for place, (native, keras) in enumerate(layers.items(), 1):
            rules += [(rf"^{re.escape(block)}\.{native}\.", f"{prefix}{keras}/")]
            rules += [(rf"^{re.escape(block)}\.bn{place}\.", f"{prefix}{keras}_BN/")]
    rules += [(r"(BN|bn|bn_Conv1)/weight$", r"\1/gamma"), (r"(BN|bn|bn_Conv1)/bias$", r"\1/beta")]
    rules += [("running_mean$", "moving_mean"), ("running_var$", "moving_variance"), ("weight$", "kernel")]
    return {name: keras_kernel(name, tensor) for name, tensor in named(without_counters(state), *rules).items()}


def keras_kernel(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """(height, width, in, out) of a convolution, (height, width, channels, 1) of a depthwise one, (in, out)."""
    if tensor.ndim == 4:
        return tensor.permute((2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0))
    return tensor.T if tensor.ndim == 2 else tensor


def keras() -> tuple[State, Reference]:
    """A MobileNetV2 that pads and normalizes as Keras does."""
    style = as_tensorflow(MobileStyle(nn.ReLU6))
    whole = seeded(lambda: featx.create_model("mobilenetv2_035", num_classes=7, style=style))
    return keras_mobilenetv2(whole.state_dict()), lambda x: [whole(x)]


def as_h5(saved: State, path: Path) -> None:
    write_h5(path, {name: tensor.numpy() for name, tensor in saved.items()})


def as_keras(saved: State, path: Path) -> None:
    layers: dict[str, dict] = {}
    for name, tensor in saved.items():
        layer, _, variable = name.rpartition("/")
        layers.setdefault(layer, {})[variable] = tensor.numpy()
    write_keras(path, [(_kind(layer, variables), layer, variables) for layer, variables in layers.items()])


def _kind(layer: str, variables: dict) -> str:
    if layer.endswith("depthwise"):
        return "DepthwiseConv2D"
    return "Dense" if "bias" in variables else KINDS[next(iter(variables))]


def as_pickle(saved: State, path: Path) -> None:
    """As detectron2's model zoo, whose files Python 2 can read."""
    arrays = {name: tensor.numpy() for name, tensor in saved.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, 2))


def torchvision_model() -> tuple[nn.Module, Reference]:
    model = seeded(lambda: torchvision.models.mobilenet_v2(num_classes=7, width_mult=0.35))
    return model, lambda x: [model(x)]


def as_onnx(model: nn.Module, path: Path) -> None:
    """As PyTorch's older exporter writes weights, if it does not fold norms into convolutions."""
    how = {"dynamo": False, "training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated, but its files exist
        torch.onnx.export(model, (torch.zeros(1, 3, 64, 64),), str(path), **how)


MOBILENETV2 = "mobilenetv2_035"
FORMATS = {
    "Keras MobileNetV2 .h5": PublishedFile(MOBILENETV2, keras, {"num_classes": 7}, {}, True, suffix=".h5", write=as_h5),
    "Keras MobileNetV2 .keras": PublishedFile(
        MOBILENETV2, keras, {"num_classes": 7}, {}, True, suffix=".keras", write=as_keras
    ),
    "ONNX of torchvision's MobileNetV2": PublishedFile(
        MOBILENETV2, torchvision_model, {"num_classes": 7}, {}, True, suffix=".onnx", write=as_onnx
    ),
    "detectron2 .pkl": ours(
        "resnet26",
        lambda state: prefixed("backbone.bottom_up.", without_counters(detectron2(state))),
        suffix=".pkl",
        write=as_pickle,
        layout="detectron2",
    ),
}
