"""Exported ONNX files: the maps of the original, and its description."""

import pickle

import pytest
import torch
from conftest import images, random_extractor, randomize, relative_difference, worst
from support.export_cases import PORTABLE, TOLERANCE, Small, small
from support.export_cases import file as file
from torch import nn

import featx
from featx import ContractError, FeatureExtractWrapper, InputError, OutputError
from featx.whole_files import alone, part_name

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

NATIVE = [
    *("resnest14d", "repvgg_a0", "mobilenetv2_035", "mobilenetv3_small_050", "test_efficientnet", "rexnet_100"),
    *("hrnet_w18_small", "convnext_atto", "convnextv2_atto", "mobilevit_xxs", "mobilevitv2_050"),
    *("vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224"),
]

BRIDGED = ["timm/test_vit", "timm/test_byobnet", "torchvision/mobilenet_v3_small"]
pytestmark = pytest.mark.usefixtures("tolerant_of_torch")


def onnx_round_trip(original, path, size):
    """The file's maps equal the original's in both runtimes, for one image and for another batch size."""
    featx.export(original, path, example=images(2, 3, *size))
    for runtime in PORTABLE:
        made = featx.load_exported(path, runtime=runtime)
        assert made.feature_info == original.feature_info
        assert made.data_config == original.data_config
        assert made.size_divisor == original.size_divisor
        for batch in (1, 3):
            assert worst(made, original, images(batch, 3, *size, seed=batch)) < TOLERANCE


def test_maps_of_a_file_are_those_of_the_original(tmp_path):
    original = random_extractor("resnet18", out_indices=[3, 1])
    onnx_round_trip(original, tmp_path / "model.onnx", (64, 96))
    made = featx.load_exported(tmp_path / "model.onnx")
    assert made.feature_info.names() == ["layer3", "layer1"]
    assert worst(made, original, images(2, 3, 97, 65)) < TOLERANCE


@pytest.mark.sweep
@pytest.mark.parametrize("name", [*NATIVE, *BRIDGED])
def test_maps_of_files_of_every_family_are_those_of_the_original(name, tmp_path):
    original = random_extractor(name)
    fixed = original._inner.fixed_size
    onnx_round_trip(original, tmp_path / "model.onnx", fixed or (64, 64))


@pytest.mark.sweep
def test_a_dilated_model_is_exported(tmp_path):
    onnx_round_trip(random_extractor("mobilenetv2_035", output_stride=8), tmp_path / "model.onnx", (64, 96))


@pytest.mark.sweep
def test_a_transformers_model_is_exported(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1])
    original = FeatureExtractWrapper(randomize(transformers.ResNetModel(config)))
    onnx_round_trip(original, tmp_path / "model.onnx", (64, 64))


@pytest.mark.sweep
@pytest.mark.parametrize("runtime", PORTABLE)
def test_tokens_stay_where_the_position_grid_is_resized(runtime):
    original = random_extractor("vit_wee_patch16_reg1_gap_256", output="tokens")
    made = featx.optimize(original, runtime=runtime, example=images(2, 3, 64, 64))
    x = images(3, 3, 64, 64)
    with torch.no_grad():
        for (prefix, map_), (true_prefix, true_map) in zip(made(x), original(x), strict=True):
            assert relative_difference(prefix, true_prefix) < TOLERANCE
            assert relative_difference(map_, true_map) < TOLERANCE
    with pytest.raises(InputError, match=r"for any batch of images of 64x64 pixels, got 2 of 64x96, which its graph"):
        made(images(2, 3, 64, 96))


@pytest.mark.parametrize("runtime", PORTABLE)
def test_order_and_kind_of_output_and_preprocessing_are_restored(file, runtime):
    original, made = small(out_indices=[1, 0], output="dict"), featx.load_exported(file, runtime=runtime)
    with torch.no_grad():
        ours, reference = made(images()), original(images())
    assert list(ours) == list(reference) == ["a_0", "a.0"]
    assert all(relative_difference(ours[name], reference[name]) < TOLERANCE for name in ours)
    assert made.feature_info.out_indices == (1, 0)
    assert made.data_config == Small.data_config
    assert made.in_chans == 3
    assert made.agreement is None
    assert not made.train().training


def test_outputs_are_named_as_levels_and_axes_for_what_they_are(file):
    graph = onnx.load(file).graph
    assert [value.name for value in graph.output] == ["a_0", "a_0_2"]
    axes = graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["batch", 3, "height", "width"]
    onnx.checker.check_model(onnx.load(file))


@pytest.mark.parametrize(
    ("dynamic", "taken", "refused", "message"),
    [
        ("none", (2, 3, 32, 48), (3, 3, 32, 48), r"for batches of 2 images of 32x48 pixels, got 3 of 32x48"),
        ("batch", (3, 3, 32, 48), (2, 3, 48, 48), r"for any batch of images of 32x48 pixels, got 2 of 48x48"),
        ("size", (1, 3, 40, 56), (1, 3, 3, 40), r"smaller than one cell"),
    ],
)
def test_dynamic_says_which_images_a_file_takes(dynamic, taken, refused, message, tmp_path):
    original = small()
    featx.export(original, tmp_path / "m.onnx", example=images(2, 3, 32, 48), dynamic=dynamic)
    made = featx.load_exported(tmp_path / "m.onnx")
    assert worst(made, original, images(*taken)) < TOLERANCE
    with pytest.raises(InputError, match=message):
        made(images(*refused))


@pytest.mark.parametrize("runtime", PORTABLE)
def test_a_model_without_prefix_tokens_gives_none_beside_its_maps(runtime):
    original = small(output="tokens")
    made = featx.optimize(original, runtime=runtime)
    with torch.no_grad():
        for (prefix, map_), (_, reference) in zip(made(images()), original(images()), strict=True):
            assert prefix.shape == (2, 0, reference.shape[1])
            assert relative_difference(map_, reference) < TOLERANCE


class Squares(Small):
    """Adds a map to its transpose, which only square images allow."""

    def forward_features(self, x):
        x = self.a(x)
        return [x + x.transpose(2, 3), self.a_0(x)]


def test_a_graph_for_squares_refuses_others():
    made = featx.optimize(FeatureExtractWrapper(randomize(Squares())), runtime="onnxruntime")
    made(images(2, 3, 32, 32))
    with pytest.raises(InputError, match="which its graph does not support"):
        made(images(2, 3, 32, 48))


@pytest.mark.parametrize("runtime", PORTABLE)
def test_optimized_extractors_can_be_copied_and_pickled(runtime):
    original = small()
    made = featx.optimize(original, runtime=runtime)
    twin = pickle.loads(pickle.dumps(made))
    assert torch.equal(twin(images())[1], made(images())[1])
    assert worst(twin, original, images()) < TOLERANCE
    assert twin.feature_info == original.feature_info


def test_large_weights_are_beside_the_file_and_travel_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("featx.runtime.onnx.file.LARGEST", 0)
    original = small()
    featx.export(original, tmp_path / "large.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    made = featx.load_exported(tmp_path / "large.onnx")
    assert worst(pickle.loads(pickle.dumps(made)), original, images()) < TOLERANCE


def test_a_file_that_replaces_one_with_large_weights_takes_their_file_away(tmp_path, monkeypatch):
    file = tmp_path / "m.onnx"
    monkeypatch.setattr("featx.runtime.onnx.file.LARGEST", 0)
    featx.export(small(), file)
    monkeypatch.undo()
    featx.export(small(), file)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert worst(featx.load_exported(file), small(), images()) < TOLERANCE


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    left = tmp_path / part_name("m.onnx")
    left.mkdir()
    (left / "m.onnx").write_bytes(b"half of it")
    featx.export(small(), tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_two_exports_at_once_to_a_file_are_refused(tmp_path):
    with alone(tmp_path / "m.onnx"), pytest.raises(OutputError, match=r"another process is writing .*m\.onnx"):
        featx.export(small(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runtime", PORTABLE)
def test_int8_is_calibrated_and_says_how_similar_its_maps_are(runtime):
    original = small()
    made = featx.optimize(original, dtype=torch.int8, runtime=runtime, example=images())
    assert list(made.agreement) == ["a.0", "a_0"]
    assert 0.99 < min(made.agreement.values()) < 1 - 1e-7
    assert {map_.dtype for map_ in made(images())} == {torch.float32}
    assert worst(made, original, images()) < 0.05  # in the range that it was calibrated for


def test_an_int8_file_keeps_its_agreement(tmp_path):
    featx.export(small(), tmp_path / "m.onnx", dtype=torch.int8, example=images(4, 3, 32, 32))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert min(featx.load_exported(tmp_path / "m.onnx").agreement.values()) > 0.99


def test_openvino_computes_in_bfloat16_where_the_processor_does():
    from featx.runtime.backends.openvino import computes_bfloat16

    if not computes_bfloat16():
        pytest.skip("no bfloat16")
    made = featx.optimize(small(), dtype=torch.bfloat16, runtime="openvino")
    assert 0.99 < min(made.agreement.values()) < 1
    assert {map_.dtype for map_ in made(images())} == {torch.bfloat16}


def test_maps_that_are_not_the_originals_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("featx.runtime.agreement.WRONG", 0)
    with pytest.raises(ContractError, match=r"the map a\.0 differs by .* of its largest value from the model's"):
        featx.export(small(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


class Resizes(Small):
    """Resizes its own weights, which do not depend on the images."""

    def forward_features(self, x):
        grid = nn.functional.interpolate(
            self.a_0.weight[:4, :1].transpose(0, 1), (4, 4), mode="bicubic", antialias=True
        )
        x = self.a(x) * grid.mean((0, 2, 3))[None, :, None, None]
        return [x, self.a_0(x)]


def test_what_depends_on_weights_alone_is_computed_once(tmp_path):
    featx.export(FeatureExtractWrapper(randomize(Resizes())), tmp_path / "m.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert not kinds & {"Resize", "ReduceMean"}
