"""Every family in PyTorch's tracers, compilers and exporters: what they make of it computes the same."""

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, SMALL_VARIANTS, images, random_extractor, randomize, relative_difference
from support.export_cases import TOLERANCE
from support.truncation import make_shallow
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import featx
from featx import ArgumentError, FeatureExtractWrapper
from featx.models.vit import ViT
from featx.models.vit_rotary import RotaryViT
from featx.registry import lookup

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = [
    pytest.mark.usefixtures("tolerant_of_torch"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # of sizes that models compare
]

SIZES = (65, 99), (96, 64)  # the first fills no cell of the deepest map
FEW_BLOCKS = {"vit": {"depth": 1}, "deit": {"depth": 1}}


def few_blocks(name: str) -> dict[str, int]:
    """Arguments that leave one block of those of a transformer, which are all alike."""
    return FEW_BLOCKS.get(name.partition("_")[0].removesuffix("3"), {})


def classifier(name: str, **fields: Any) -> nn.Module:
    """Of blocks that are alike, tracers and exporters do the same with all: one stays."""
    torch.manual_seed(0)
    model = featx.create_model(name, **fields, **few_blocks(name))
    make_shallow(model)
    return randomize(model)


def extractor(name: str) -> nn.Module:
    return FeatureExtractWrapper(classifier(name))


def quick(*names: str) -> list:
    """The small variants as parameters of a test; those that are not named only with the marker `sweep`."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.sweep) for name in SMALL]


# classifiers run the same modules: of their symbolic graphs the nodes are compared in every run, too
KINDS = pytest.mark.parametrize("build", [extractor, pytest.param(classifier, marks=pytest.mark.sweep)])


def tensors(returned: Tensor | list[Tensor]) -> list[Tensor]:
    return [returned] if isinstance(returned, Tensor) else list(returned)


@torch.no_grad()
def difference(made, original: nn.Module, x: Tensor) -> float:
    pairs = zip(tensors(made(x)), tensors(original(x)), strict=True)
    return max(relative_difference(ours, true) for ours, true in pairs)


@KINDS
@pytest.mark.parametrize("name", SMALL_VARIANTS)
def test_a_trace_computes_what_the_model_does(name, build):
    model, x = build(name), images(2, 3, *SIZES[0])
    traced = torch.jit.trace(model, x, check_trace=False)
    assert difference(traced, model, x) < 1e-6  # positions of a ViT: products in another order
    assert difference(traced, model, images(3, 3, *SIZES[0], seed=1)) < 1e-6


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilevit_xxs", "mobilevitv2_050"])
def test_a_trace_resizes_at_every_size_as_the_model_does(name):
    model = extractor(name)
    traced = torch.jit.trace(model, images(1, 3, *SIZES[0]), check_trace=False)
    assert difference(traced, model, images(2, 3, 224, 96)) < 1e-6


@pytest.mark.parametrize(("antialias", "excess"), [(True, 0.0), (False, 0.0), (False, 0.1)])
@pytest.mark.parametrize("size", [(3, 9), (14, 14), (20, 5)])
def test_a_traced_grid_is_interpolated_as_pytorch_does(antialias, excess, size):
    from featx.models.layers.pos_embed import interpolate_bicubic

    def resize(grid: Tensor) -> Tensor:
        return interpolate_bicubic(grid, size, antialias=antialias, excess=excess)

    grid = images(1, 8, 14, 14)
    assert relative_difference(torch.jit.trace(resize, grid)(grid), resize(grid)) < 1e-5


@KINDS
@pytest.mark.parametrize("name", SMALL_VARIANTS)
def test_a_symbolic_graph_computes_what_the_model_does_at_every_size(name, build):
    model = build(name)
    graph = torch.fx.symbolic_trace(model)
    for size in SIZES:
        assert difference(graph, model, images(2, 3, *size)) == 0
    with pytest.raises(featx.InputError, match="expected 3 channels on axis 1"):
        graph(images(2, 4, *SIZES[0]))


class NodeExtractor(nn.Module):
    """What anomalib's TimmFeatureExtractor does with a module: one node of its symbolic graph per layer."""

    def __init__(self, backbone: nn.Module, layers: list[str]) -> None:
        super().__init__()
        self.layers = layers
        self.feature_extractor = create_feature_extractor(backbone, return_nodes={name: name for name in layers})
        probed = self.feature_extractor(torch.zeros(1, 3, 64, 64))
        self.out_dims = [probed[name].shape[1] for name in layers]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.feature_extractor.eval()
        with torch.no_grad():
            return self.feature_extractor(x)


@pytest.mark.parametrize("name", SMALL_VARIANTS)
def test_nodes_of_the_symbolic_graph_are_the_levels(name):
    model = classifier(name)
    levels, is_vit = model.feature_info, isinstance(model, ViT | RotaryViT)
    maps = FeatureExtractWrapper(model.raw() if is_vit else model)  # a node is a block, before the last norm
    made = NodeExtractor(model, levels.names())
    if not is_vit:
        assert made.out_dims == levels.channels()
    for size in SIZES:
        x = images(2, 3, *size)
        with torch.no_grad():
            nodes, expected = made(x), maps(x)
        for level, map_ in zip(levels, expected, strict=True):
            node = nodes[level.name]
            if node.ndim == 3:  # tokens of a ViT
                node = node[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, map_.shape[2:])
            assert torch.equal(node, map_)


@pytest.mark.parametrize("name", quick("test_efficientnet", "resnest14d", "mobilevit_xxs", "vit_tiny_patch16_224"))
def test_a_symbolic_graph_for_training_draws_and_learns_as_the_model(name):
    drops = {"drop_path_rate": 0.3} if hasattr(lookup(name).config, "drop_path_rate") else {}
    model = classifier(name, num_classes=3, **drops).train()
    graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    x = images(3, 3, *SIZES[0])
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    made = graph(x)
    assert torch.equal(made, expected)
    made.square().mean().backward()
    expected.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in graph.named_parameters()}
    assert all(torch.equal(gradients[name], parameter.grad) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("dynamo", [False, True])
def test_an_onnx_graph_resizes_positions(dynamo, tmp_path):
    check_onnx(random_extractor("vit_tiny_patch16_224", depth=1), dynamo, tmp_path)


@KINDS
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", quick("test_efficientnet"))
def test_an_onnx_graph_computes_what_the_model_does(name, dynamo, build, tmp_path):
    check_onnx(build(name), dynamo, tmp_path)


def check_onnx(model: nn.Module, dynamo: bool, tmp_path: Path) -> None:
    x = images(2, 3, *SIZES[0])
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name

    def run(x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(array) for array in session.run(None, {feed: x.numpy()})]

    assert difference(run, model, x) < TOLERANCE


@KINDS
@pytest.mark.parametrize("name", quick("test_efficientnet"))
def test_an_exported_program_takes_every_batch_and_size(name, build):
    model, free = build(name), dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (images(2, 3, 97, 130),), dynamic_shapes=(free,), strict=False)
    for shape in [(1, 3, 128, 160), (3, 3, 224, 224), (2, 3, 97, 99)]:
        assert difference(program.module(), model, images(*shape)) < 1e-6  # positions, as above


def steps(model: nn.Module, compiled: nn.Module, x: Tensor) -> tuple[float, float]:
    """Largest difference of values and of gradients in a step of training, relative to the largest."""
    seen = []
    for one in (model, compiled):
        model.zero_grad()
        outputs = tensors(one(x))
        sum((output * images(*output.shape)).mean() for output in outputs).backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        seen.append(([output.detach() for output in outputs], grads))
    (true, grads), (ours, made) = seen
    return max(map(relative_difference, ours, true)), relative_difference(made, grads)


def check_compiled(model: nn.Module, backend: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)
    for shape in [(2, 3, 64, 96), (3, 3, 97, 65)]:
        x = images(*shape).to(next(model.parameters()).dtype)
        if model.training:
            values, gradients = steps(model, compiled, x)
            assert values < TOLERANCE
            assert gradients < TOLERANCE
        else:
            assert difference(compiled, model, x) < TOLERANCE


def swept(*case: object) -> Any:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    needs_compiler = pytest.mark.skipif(compiler is None, reason="no C++ compiler")
    return pytest.param(*case, marks=[needs_compiler, pytest.mark.sweep])


# transformers compile for a size in seconds, and for symbolic sizes in minutes: a ViT of one block is below
CONVOLUTIONAL = [name for name in SMALL if not name.startswith(("vit", "mobilevit_", "mobilevitv2"))]
COMPILED = [
    ("aot_eager", True, True, "test_efficientnet"),
    *(swept("aot_eager", True, True, name) for name in CONVOLUTIONAL if name != "test_efficientnet"),
    *(
        swept("aot_eager", training, False, name)
        for name in ("resnet18", "mobilevit_xxs")
        for training in (True, False)
    ),
    swept("aot_eager", False, True, "convnext_atto"),
    swept("inductor", True, True, "resnet18"),
]


@pytest.mark.parametrize(("backend", "training", "dynamic", "name"), COMPILED)
def test_a_compiled_model_computes_and_learns_what_the_model_does(backend, training, dynamic, name):
    # in double precision: batch norms over a dozen values let single precision's rounding grow to percents of gradients
    check_compiled(extractor(name).double().train(training), backend, dynamic)


@pytest.mark.sweep
def test_a_vit_learns_where_sizes_are_symbolic():
    model = random_extractor("vit_tiny_patch16_224", depth=1, dim=12, heads=1).train()
    check_compiled(model, "aot_eager", dynamic=True)


@pytest.mark.parametrize("build", [classifier, extractor])
def test_scripting_is_refused_with_what_to_use_instead(build):
    for model in (build("test_efficientnet"), nn.Sequential(build("test_efficientnet"))):
        with pytest.raises(ArgumentError, match=r"use torch\.jit\.trace\(model, images\)"):
            torch.jit.script(model)
