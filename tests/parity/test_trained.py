"""Networks with trained weights show in photographs what they were trained to see, and random weights do not."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image, ImageDraw
from support.keras_graph import run_h5
from support.trained_networks import dinov2_onnx, dinov2_small, keras_file, lite0, photographs
from torch import Tensor, nn

import featx
from featx.explain import class_attention, gradcam

pytestmark = pytest.mark.trained

SIZE, PATCHES = 224, 16  # pixels and patches a side
# Outlines of what scikit-image's photographs show, in fractions of width and height.
OUTLINES = {
    "coffee": [(0.19, 0.1), (0.4, 0.03), (0.7, 0.03), (0.79, 0.2), (0.72, 0.5), (0.55, 0.6), (0.35, 0.55), (0.2, 0.3)],
    "astronaut": [
        *((0.28, 0.05), (0.45, 0.0), (0.6, 0.05), (0.6, 0.3), (0.74, 0.55)),
        *((0.74, 1.0), (0.05, 1.0), (0.1, 0.6), (0.25, 0.4), (0.33, 0.25)),
    ],
    "rocket": [(0.46, 0.3), (0.55, 0.3), (0.55, 1.0), (0.46, 1.0)],
}


@pytest.fixture(scope="module")
def dinov2() -> nn.Module:
    return dinov2_small(out_indices=[-1])


def untrained(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return featx.create_model("vit_small_patch14_dinov2", features_only=True, out_indices=[-1]).eval()


def inside(name: str, side: int = PATCHES) -> Tensor:
    """(side, side), whether most of a cell of the photograph is inside the outline."""
    fine = 8 * side
    image = Image.new("L", (fine, fine))
    ImageDraw.Draw(image).polygon([(x * fine, y * fine) for x, y in OUTLINES[name]], fill=1)
    return torch.from_numpy(np.array(image)).float().reshape(side, 8, side, 8).mean((1, 3)) > 0.5


def separation(values: Tensor, is_object: Tensor) -> float:
    """Probability that a cell of the object and one of the background are in order, by the better of both orders."""
    object_, background = values[is_object], values[~is_object]
    in_order = (object_[:, None] > background).float().mean() + 0.5 * (object_[:, None] == background).float().mean()
    return max(in_order.item(), 1 - in_order.item())


@torch.no_grad()
def test_lite0_gives_the_classes_of_photographs_with_its_published_confidence():
    model = lite0()
    assert model.load_report.layout == "lukemelas"
    expected = {
        "coffee": ("espresso", 967, 0.95),
        "chelsea": ("tiger cat", 282, 0.39),
        "motorcycle_left": ("moped", 665, 0.54),
        "rocket": ("missile", 657, 0.27),
    }
    found = model(photographs(model, list(expected))).softmax(1).max(1)
    assert found.indices.tolist() == [index for _, index, _ in expected.values()]
    assert [round(value, 2) for value in found.values.tolist()] == [value for *_, value in expected.values()]


@torch.no_grad()
def test_lite0_is_equal_to_timm_with_the_same_weights():
    timm = pytest.importorskip("timm")
    model = lite0()
    reference = timm.create_model("tf_efficientnet_lite0").eval()
    reference.load_state_dict(model.state_dict())
    images = photographs(model, ("coffee", "chelsea"))
    torch.testing.assert_close(model(images), reference(images), rtol=0, atol=1e-4)  # logits up to 15


@torch.no_grad()
def test_tokens_of_dinov2_are_those_of_onnx_runtime(dinov2, tmp_path):
    """The final tokens of the graph that the weights were read from, after the last norm."""
    runtime = pytest.importorskip("onnxruntime")
    graph = tokens_of_graph(dinov2_onnx(), tmp_path / "tokens.onnx")
    images = photographs(dinov2, list(OUTLINES), SIZE)
    session = runtime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    expected = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])[:, 1:]
    tokens = dinov2(images)[0].flatten(2).transpose(1, 2)
    assert expected.abs().max() > 5
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-4)


def tokens_of_graph(source: Path, target: Path) -> Path:
    """A copy of the graph that ends in the output of the backbone's last norm."""
    model = onnx.load(source)
    used = {"backbone.layernorm.weight", "backbone.layernorm.bias"}
    (last,) = (node for node in model.graph.node if node.output and used & set(node.input) and node.op_type == "Add")
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None))
    del model.graph.node[list(model.graph.node).index(last) + 1 :]
    onnx.save(model, target)
    return target


@torch.no_grad()
def separations_by_pca(model: nn.Module) -> list[float]:
    """How well the first principal component of each photograph's map separates the object from the background."""
    found = []
    for name, image in zip(OUTLINES, photographs(model, list(OUTLINES), SIZE), strict=True):
        values = model(image[None])[0][0].flatten(1).T
        centered = values - values.mean(0)
        component = torch.linalg.svd(centered, full_matrices=False)[2][0]
        found.append(separation(centered @ component, inside(name).flatten()))
    return found


LEAST_BY_PCA = 0.75  # 0.5 is chance; DINOv2's smallest value is 0.82, that of random weights 0.56


def test_the_first_component_of_dinov2_separates_objects_from_the_background(dinov2):
    assert min(separations_by_pca(dinov2)) > LEAST_BY_PCA


@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_component_of_random_weights_does_not(seed):
    assert min(separations_by_pca(untrained(seed))) < LEAST_BY_PCA


@torch.no_grad()
def separations_by_attention(model: nn.Module) -> list[float]:
    with featx.capture_attention(model, [-1]) as seen:
        model(photographs(model, list(OUTLINES), SIZE))
    (map_,) = seen.maps.values()
    attention = class_attention(map_, (PATCHES, PATCHES))
    return [separation(one, inside(name)) for name, one in zip(OUTLINES, attention, strict=True)]


LEAST_BY_ATTENTION = 0.65  # DINOv2's smallest value is 0.71, that of random weights 0.52


def test_the_class_token_of_dinov2_attends_to_objects(dinov2):
    assert min(separations_by_attention(dinov2)) > LEAST_BY_ATTENTION


@pytest.mark.parametrize("seed", [0, 1])
def test_the_class_token_of_random_weights_attends_anywhere(seed):
    assert min(separations_by_attention(untrained(seed))) < LEAST_BY_ATTENTION


ESPRESSO = 967


def cup_by_gradcam(model: nn.Module, images: Tensor) -> float:
    (found,) = gradcam(model, images, "blocks.6", ESPRESSO)
    return separation(found, inside("coffee", found.shape[-1]))


def test_gradcam_of_espresso_is_on_the_cup():
    """0.96 with trained weights, 0.58 with random ones."""
    model = lite0()
    images = photographs(model, ["coffee"], SIZE)
    torch.manual_seed(0)
    random = featx.create_model("tf_efficientnet_lite0").eval()
    assert cup_by_gradcam(model, images) > 0.85 > cup_by_gradcam(random, images)


@torch.no_grad()
def test_a_fine_tuned_file_of_keras_gives_what_its_stored_graph_computes():
    model = featx.create_model("mobilenetv2_100", num_classes=19, checkpoint_path=keras_file()).eval()
    x = photographs(model, ["chelsea", "coffee"], 160)
    expected = run_h5(keras_file(), x)
    difference = (model(x) - expected).abs().max() / expected.abs().max()
    assert difference <= 1e-4  # 52 convolutions in another order
    assert model.load_report.layout == "keras-mobilenetv2"
