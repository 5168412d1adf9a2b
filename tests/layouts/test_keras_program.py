"""Files that Keras itself writes, of its published networks and of fine-tuned ones, give the logits that it computes.

Keras runs in a process of its own, on PyTorch, with random weights and norm statistics.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import featx

pytest.importorskip("h5py")
pytestmark = pytest.mark.sweep

WRITE = """
import sys
import keras
import numpy as np
from keras import applications

folder = sys.argv[1]
x = np.load(f"{folder}/images.npy")
SHAPE = x.shape[1:]
draw = np.random.default_rng(0)

def randomized(network):
    for variable in network.weights:
        positive = "variance" in variable.path or "gamma" in variable.path
        deviation = 0.3 if len(variable.shape) == 1 else 0.05
        values = draw.uniform(0.5, 1.5, variable.shape) if positive else draw.normal(0, deviation, variable.shape)
        variable.assign(values.astype(np.float32))
    return network

def write(name, network):
    np.save(f"{folder}/{name}.npy", network(x, training=False).detach().numpy())
    for suffix in ("keras", "h5"):
        network.save(f"{folder}/{name}.{suffix}")

KINDS = {
    "mobilenetv2_100": (applications.MobileNetV2, {}),
    "tf_mobilenetv3_small_100": (applications.MobileNetV3Small, {"include_preprocessing": False}),
    "tf_efficientnetv2_b0": (applications.EfficientNetV2B0, {"include_preprocessing": False}),
    "convnext_tiny": (applications.ConvNeXtTiny, {"include_preprocessing": False}),
}
for name, (build, fields) in KINDS.items():
    write(name, randomized(build(weights=None, classifier_activation=None, input_shape=SHAPE, **fields)))
    base = build(weights=None, include_top=False, pooling="avg", input_shape=SHAPE, **fields)
    if name != "tf_mobilenetv3_small_100":  # whose last convolution is a part of its classifier
        layers = [keras.Input(SHAPE), randomized(base), keras.layers.Dense(7)]
        write(f"{name}-7", randomized(keras.Sequential(layers)))
"""
NAMES = ["mobilenetv2_100", "tf_mobilenetv3_small_100", "tf_efficientnetv2_b0", "convnext_tiny"]
FINE_TUNED = [f"{name}-7" for name in NAMES if "mobilenetv3" not in name]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    np.save(folder / "images.npy", np.random.default_rng(1).normal(size=(1, 96, 96, 3)).astype(np.float32))
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    subprocess.run([sys.executable, "-c", WRITE, folder], env=environment, capture_output=True, check=True)
    return folder


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("name", NAMES + FINE_TUNED)
def test_files_give_the_logits_of_keras(written, name, suffix):
    model, _, classes = name.partition("-")
    chosen = {"num_classes": int(classes)} if classes else {}
    network = featx.create_model(model, checkpoint_path=written / f"{name}.{suffix}", **chosen).eval()
    x = torch.from_numpy(np.load(written / "images.npy")).permute(0, 3, 1, 2).contiguous()
    expected = np.load(written / f"{name}.npy")
    with torch.no_grad():
        difference = np.abs(network(x).numpy() - expected).max() / np.abs(expected).max()
    assert difference <= 1e-5  # single precision, the same operations in another order
