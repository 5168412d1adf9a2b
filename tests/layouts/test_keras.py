"""Keras's names and numbers.

What Keras calls its variables, their shapes, and the logits that it computed with values that follow from the names
(see support.keras_files) were written down from keras.applications (Keras 3.15.1 on PyTorch):
data/keras_networks.json.gz. Preprocessing layers, which Keras has in some networks, were left out.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomize, same_state
from support.keras_files import images, values, write_h5

import featx
from featx import CheckpointError
from featx.weights.layout import all_layouts, recognize_layout
from featx.weights.load import family_names

NETWORKS = json.loads(gzip.decompress((Path(__file__).parents[1] / "data/keras_networks.json.gz").read_bytes()))
QUICK = ("mobilenetv2", "efficientnet_b0", "efficientnetv2_b0", "mobilenetv3_small")
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.sweep) for name in NETWORKS]
LAYOUTS = [layout for layout in all_layouts() if layout.system.startswith("keras")]


def arrays(name: str) -> dict[str, np.ndarray]:
    return {variable: values(variable, shape) for variable, shape in NETWORKS[name]["shapes"].items()}


def tensors(name: str) -> dict[str, torch.Tensor]:
    return {variable: torch.from_numpy(np.array(array)) for variable, array in arrays(name).items()}


@torch.no_grad()
@pytest.mark.parametrize("name", EVERY)
def test_logits_are_those_that_keras_computed(tmp_path, name):
    network = NETWORKS[name]
    path = write_h5(tmp_path / "w.h5", arrays(name))
    model = featx.create_model(network["model"], num_classes=10, checkpoint_path=path).eval()
    found = model(torch.from_numpy(images()).permute(0, 3, 1, 2).contiguous())
    expected = torch.tensor(network["logits"])
    spread = (expected[0] - expected[1]).abs().max().item()  # float32 rounds logits to 1e-7 of them
    # the sums of 40 blocks grow in EfficientNetV2-S: logits in float64 differ by 1 % of the spread from both
    share = 0.05 if name == "efficientnetv2_s" else 0.005
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=share * spread)
    assert model.load_report.layout.startswith("keras")
    assert all(name.startswith("normalization") for name in model.load_report.skipped)


@pytest.mark.parametrize("name", EVERY)
def test_one_layout_recognizes_a_network_and_gives_its_names_back(name):
    model = featx.create_model(NETWORKS[name]["model"], num_classes=10)
    randomize(model)
    state = {n: t for n, t in tensors(name).items() if not n.startswith("normalization")}
    layout = recognize_layout(state, family_names(model))
    assert layout in LAYOUTS
    assert layout is not None
    assert layout.from_native is not None
    assert same_state(layout.from_native(layout.to_native(state, set(model.state_dict()))), state)
    native = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    back = layout.to_native(layout.from_native(native), set(model.state_dict()))
    assert same_state({n: t for n, t in back.items() if not n.endswith("num_batches_tracked")}, native)


@pytest.mark.parametrize(
    ("name", "mean"), [("efficientnetv2_b0", 0.485), ("efficientnetv2_s", 0.5), ("mobilenetv2", 0.5)]
)
def test_images_are_prepared_as_keras_prepares_them(name, mean):
    state = {n: t for n, t in tensors(name).items() if not n.startswith("normalization")}
    model = featx.create_model(NETWORKS[name]["model"], num_classes=10, checkpoint_path=state)
    assert model.data_config.mean[0] == mean


def test_names_of_keras_2_are_read():
    """Slashes and capitals in MobileNetV3, and another name for kernels of depthwise convolutions."""
    new = tensors("mobilenetv3_small")
    old = {
        name.replace("_bn/", "/BatchNorm/")
        .replace("_depthwise/kernel", "_depthwise/depthwise_kernel")
        .replace("_squeeze_excite_", "/squeeze_excite/")
        .replace("_depthwise", "/depthwise")
        .replace("_project", "/project")
        .replace("_expand/", "/expand/"): tensor
        for name, tensor in new.items()
    }
    assert "expanded_conv_3/squeeze_excite/conv_1/kernel" in old
    assert "expanded_conv_1/depthwise/BatchNorm/gamma" in old
    tops = ("conv/", "conv_1/", "conv_2/", "logits/")
    old = {name.capitalize() if name.startswith(tops) else name: tensor for name, tensor in old.items()}
    old = {name.replace("/batchnorm/", "/BatchNorm/"): tensor for name, tensor in old.items()}
    assert {"Conv/kernel", "Conv/BatchNorm/gamma", "Conv_1/BatchNorm/beta", "Logits/bias"} <= old.keys()
    loaded = [
        featx.create_model("mobilenetv3_small_100", num_classes=10, checkpoint_path=state).state_dict()
        for state in (new, old)
    ]
    assert same_state(*loaded)


def test_a_model_that_keras_does_not_have_is_refused_by_its_block_or_tensor():
    layout = next(one for one in LAYOUTS if one.system == "keras-mobilenetv2")
    assert layout.from_native is not None
    with pytest.raises(CheckpointError, match=r"Keras has no block of the modules \['bn1', .*'se"):
        layout.from_native(featx.create_model("efficientnet_b0", device="meta").state_dict())
    state = featx.create_model("mobilenetv2_035").state_dict()
    with pytest.raises(CheckpointError, match=r"Keras has no place for 1 of these tensors: .*extra"):
        layout.from_native({**state, "extra": torch.ones(1)})
