"""Files of extractors, and the runtimes that run them: the original's maps, from any of them."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from conftest import images, randomise, relative_difference
from torch import nn

import featx
from featx import ArgumentError, CheckpointError, ContractError, FeatureExtractWrapper, InputError, MissingPackageError
from featx.runtime import runtimes
from featx.runtime.onnx import read_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

TOLERANCE = 1e-4  # of the largest value: other kernels sum in another order
PORTABLE = ["onnxruntime", "openvino"]
NATIVE = [
    *("resnest14d", "repvgg_a0", "mobilenetv2_035", "mobilenetv3_small_050", "test_efficientnet", "rexnet_100"),
    *("hrnet_w18_small", "convnext_atto", "convnextv2_atto", "mobilevit_xxs", "mobilevitv2_050"),
    *("vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224"),
]
BRIDGED = ["timm/test_vit", "timm/test_byobnet", "torchvision/mobilenet_v3_small"]

pytestmark = pytest.mark.usefixtures("tolerant_of_torch")


class Small(nn.Module):
    """Two levels, whose names are alike where they are made safe."""

    feature_info = ({"chs": 4, "reduction": 2, "name": "a.0"}, {"chs": 8, "reduction": 4, "name": "a_0"})
    is_rewritten = True
    in_chans = 3
    data_config = featx.DataConfig(size=(32, 32), mean=(0.1, 0.2, 0.3))

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.a_0 = nn.Conv2d(4, 8, 3, 2, 1)

    def forward_features(self, x):
        x = self.a(x)
        return [x, self.a_0(x)]


def small(**arguments):
    torch.manual_seed(0)
    return FeatureExtractWrapper(randomise(Small()), **arguments)


def extractor(name, **arguments):
    torch.manual_seed(0)
    return randomise(featx.create_model(name, features_only=True, **arguments))


@torch.no_grad()
def worst(made, original, x):
    pairs = zip(made(x), original(x), strict=True)
    return max(relative_difference(ours, reference) for ours, reference in pairs)


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    """An ONNX file of the small network, deepest map first, as a dict."""
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    featx.export(small(out_indices=[1, 0], output="dict"), path)
    return path


def onnx_round_trip(original, path, size):
    """The file's maps are the original's in both runtimes, for one image and for another batch."""
    featx.export(original, path, example=images(2, 3, *size))
    for runtime in PORTABLE:
        made = featx.load_exported(path, runtime=runtime)
        assert made.feature_info == original.feature_info
        assert made.data_config == original.data_config
        assert made.size_divisor == original.size_divisor
        for batch in (1, 3):
            assert worst(made, original, images(batch, 3, *size, seed=batch)) < TOLERANCE


def test_maps_of_a_file_are_those_of_the_original(tmp_path):
    original = extractor("resnet18", out_indices=[3, 1])
    onnx_round_trip(original, tmp_path / "model.onnx", (64, 96))
    made = featx.load_exported(tmp_path / "model.onnx")
    assert made.feature_info.names() == ["layer3", "layer1"]
    assert worst(made, original, images(2, 3, 97, 65)) < TOLERANCE


@pytest.mark.sweep
@pytest.mark.parametrize("name", [*NATIVE, *BRIDGED])
def test_maps_of_files_of_every_family_are_those_of_the_original(name, tmp_path):
    original = extractor(name)
    fixed = original._inner.fixed_size
    onnx_round_trip(original, tmp_path / "model.onnx", fixed or (64, 64))


@pytest.mark.sweep
def test_a_dilated_model_is_exported(tmp_path):
    onnx_round_trip(extractor("mobilenetv2_035", output_stride=8), tmp_path / "model.onnx", (64, 96))


@pytest.mark.sweep
def test_a_transformers_model_is_exported(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1])
    original = FeatureExtractWrapper(randomise(transformers.ResNetModel(config)))
    onnx_round_trip(original, tmp_path / "model.onnx", (64, 64))


@pytest.mark.sweep
@pytest.mark.parametrize("runtime", PORTABLE)
def test_tokens_stay_where_the_position_grid_is_resized(runtime):
    original = extractor("vit_wee_patch16_reg1_gap_256", output="tokens")
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
    """Adds its map to itself turned, which only square images allow."""

    def forward_features(self, x):
        x = self.a(x)
        return [x + x.transpose(2, 3), self.a_0(x)]


def test_a_graph_for_squares_refuses_others():
    made = featx.optimize(FeatureExtractWrapper(randomise(Squares())), runtime="onnxruntime")
    made(images(2, 3, 32, 32))
    with pytest.raises(InputError, match="which its graph is not right for"):
        made(images(2, 3, 32, 48))


@pytest.mark.parametrize("runtime", PORTABLE)
def test_optimised_extractors_can_be_copied_and_pickled(runtime):
    original = small()
    made = featx.optimize(original, runtime=runtime)
    twin = pickle.loads(pickle.dumps(made))
    assert torch.equal(twin(images())[1], made(images())[1])
    assert worst(twin, original, images()) < TOLERANCE
    assert twin.feature_info == original.feature_info


def test_large_weights_are_beside_the_file_and_travel_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("featx.runtime.onnx.LARGEST", 0)
    original = small()
    featx.export(original, tmp_path / "large.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    made = featx.load_exported(tmp_path / "large.onnx")
    assert worst(pickle.loads(pickle.dumps(made)), original, images()) < TOLERANCE


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
    from featx.runtime.openvino import computes_bfloat16

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
    """Resizes its own weights, which no image changes."""

    def forward_features(self, x):
        grid = nn.functional.interpolate(
            self.a_0.weight[:4, :1].transpose(0, 1), (4, 4), mode="bicubic", antialias=True
        )
        x = self.a(x) * grid.mean((0, 2, 3))[None, :, None, None]
        return [x, self.a_0(x)]


def test_what_depends_on_weights_alone_is_computed_once(tmp_path):
    featx.export(FeatureExtractWrapper(randomise(Resizes())), tmp_path / "m.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert not kinds & {"Resize", "ReduceMean"}


def test_a_file_is_loaded_without_the_models_code(file):
    code = (
        f"import sys, torch, featx; maps = featx.load_exported({str(file)!r})(torch.zeros(1, 3, 32, 32)); "
        "print(list(maps), [name for name in sys.modules if name in ('timm', 'onnxscript', 'featx.models.resnet')])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "['a_0', 'a.0'] []"


@pytest.mark.parametrize("name", ["model.onx", "model", "model.pt"])
def test_other_endings_are_refused(name, tmp_path):
    for call in (lambda: featx.export(small(), tmp_path / name), lambda: featx.load_exported(tmp_path / name)):
        with pytest.raises(ArgumentError, match=r"expected a file that ends in \.onnx or \.pt2"):
            call()


def test_a_folder_that_does_not_exist_is_said(tmp_path):
    with pytest.raises(featx.OutputError, match=r"cannot write .*m\.onnx: .*No such file"):
        featx.export(small(), tmp_path / "no" / "m.onnx")


def test_a_file_that_does_not_exist_is_said(tmp_path):
    with pytest.raises(featx.WeightsNotFoundError, match=r"there is no file .*m\.onnx"):
        featx.load_exported(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x0a\x50", b"no protobuf at all"])
def test_files_that_are_damaged_are_refused(content, tmp_path):
    for name in ("m.onnx", "m.pt2"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"m\.(onnx|pt2)"):
            featx.load_exported(tmp_path / name)


def test_a_file_of_another_program_is_refused(file, tmp_path):
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match=r"m\.onnx was not written by featx\.export: it has no description"):
        featx.load_exported(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 99),
        ("conditions", [["__import__", "os"]]),
        ("conditions", [["Add"]]),
        ("conditions", [["FloorDiv", 1]]),
        ("free", []),
        ("conditions", ["unknown"]),
        ("levels", [[1, 2]]),
        ("out_indices", [7]),
        ("output", "tuple"),
        ("layout", "nhwc"),
        ("dtype", "int3"),
        ("shape", [1]),
    ],
)
def test_descriptions_that_are_none_are_refused(key, value, file, tmp_path):
    model = onnx.load(file)
    (entry,) = model.metadata_props
    entry.value = json.dumps({**json.loads(entry.value), key: value})
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match=r"m\.onnx describes no extractor that this version of featx knows"):
        read_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": torch.bfloat16}, r"it computes in .* not in torch\.bfloat16: pass one of them"),
        ({"dtype": torch.int8}, r"int8 is calibrated on images: pass example="),
    ],
)
def test_what_onnx_runtime_cannot_compute_in_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        featx.optimize(small(), runtime="onnxruntime", **arguments)


@pytest.mark.parametrize("runtime", PORTABLE)
def test_a_model_elsewhere_than_on_the_cpu_is_refused(runtime):
    with pytest.raises(ArgumentError, match=r"it runs on cpu, and the model is on \['meta'\]"):
        featx.optimize(small().to("meta"), runtime=runtime)


def test_what_was_built_is_not_built_again(file):
    for call in (featx.optimize, lambda made: featx.export(made, "m.onnx")):
        with pytest.raises(ArgumentError, match=r"takes an extractor with weights, and this one was built without"):
            call(featx.load_exported(file))


def test_moving_or_converting_it_is_refused(file):
    made = featx.load_exported(file)
    with pytest.raises(ArgumentError, match=r"built by runtime='onnxruntime' for cpu and torch\.float32, and cannot"):
        made.double()
    assert made.cpu().float() is made


def test_images_elsewhere_are_refused(file):
    with pytest.raises(InputError, match=r"images are on meta, and this was built by runtime='onnxruntime' for cpu"):
        featx.load_exported(file)(images().to("meta"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dynamic": "all"}, "dynamic='all': choose one of"),
        ({"dtype": "int8"}, "dtype='int8': expected a torch.dtype"),
    ],
)
def test_unknown_arguments_of_export_are_refused(arguments, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        featx.export(small(), tmp_path / "m.onnx", **arguments)


def test_another_runtime_than_the_files_is_refused(file):
    with pytest.raises(ArgumentError, match=r"runtime='aot': \.onnx files run on onnxruntime or openvino"):
        featx.load_exported(file, runtime="aot")


def test_missing_packages_are_said(file, monkeypatch):
    monkeypatch.setattr("featx.runtime.available.find_spec", lambda package: None)
    with pytest.raises(
        MissingPackageError, match=r"runtime='openvino' cannot be used: .*pip install 'featx\[openvino\]'"
    ):
        featx.optimize(small(), runtime="openvino")
    with pytest.raises(MissingPackageError, match=r"cannot be run by onnxruntime: .*pip install 'featx\[onnx\]'"):
        featx.load_exported(file)


def test_the_command_writes_a_file(tmp_path, monkeypatch, capsys):
    import featx.cli

    path = tmp_path / "m.onnx"
    words = ("--random-weights", "0", "--out-indices", "1,0", "--size", "64")
    monkeypatch.setattr(sys, "argv", ["featx", "export", "mobilenetv3_small_050", str(path), *words])
    with pytest.raises(SystemExit) as exit_:
        featx.cli.main()
    assert not exit_.value.code
    assert "m.onnx: 2 maps, weights: random, seed 0" in capsys.readouterr().out.replace("\n", "")
    assert featx.load_exported(path).feature_info.reduction() == [4, 2]


needs_compiler = pytest.mark.skipif(runtimes()["aot"] is not None, reason="no C++ compiler")


@needs_compiler
@pytest.mark.sweep
def test_a_package_is_loaded_without_the_models_code(tmp_path):
    original, path = extractor("resnet18", out_indices=[2, 0]), tmp_path / "model.pt2"
    featx.export(original, path, example=images(2, 3, 64, 96))
    made = featx.load_exported(path)
    assert made.feature_info == original.feature_info
    for batch in (1, 3):
        assert worst(made, original, images(batch, 3, 64, 96)) < TOLERANCE
    with pytest.raises(InputError, match=r"for any batch of images of 64x96 pixels, got 1 of 64x64"):
        made(images(1, 3, 64, 64))
    torch.save({"images": images(1, 3, 64, 96), "maps": made(images(1, 3, 64, 96))}, tmp_path / "seen.pt")
    code = (
        f"import sys, torch, featx; seen = torch.load({str(tmp_path / 'seen.pt')!r}); "
        f"maps = featx.load_exported({str(path)!r})(seen['images']); "
        "print([torch.allclose(*pair, atol=1e-5) for pair in zip(maps, seen['maps'])], "
        "'featx.models.resnet' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[True, True] False"


@needs_compiler
@pytest.mark.sweep
def test_packages_run_on_the_machine_they_were_compiled_for(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    featx.export(small(), path, dtype=torch.bfloat16)
    made = featx.load_exported(path)
    assert made(images(2, 3, 32, 32))[0].dtype == torch.bfloat16
    assert 0.99 < min(made.agreement.values()) < 1
    twin = pickle.loads(pickle.dumps(made))
    assert torch.equal(twin(images(2, 3, 32, 32))[0], made(images(2, 3, 32, 32))[0])
    monkeypatch.setattr("featx.runtime.aot.machine", lambda device: {"torch": "1.0", "cpu": "DEFAULT"})
    with pytest.raises(CheckpointError, match=r"was compiled for PyTorch .*, here is 1\.0.*: export it again here"):
        featx.load_exported(path)


@needs_compiler
@pytest.mark.sweep
def test_compiled_extractors_compile_for_each_shape_and_stay_right():
    original = small()
    made = featx.optimize(original, runtime="compile")
    for shape in ((2, 3, 32, 32), (1, 3, 48, 40)):
        assert worst(made, original, images(*shape)) < TOLERANCE
        with torch.inference_mode():
            assert worst(made, original, images(*shape, seed=1)) < TOLERANCE
    assert len(made._engine._by_shape) == 2
    assert worst(pickle.loads(pickle.dumps(made)), original, images(2, 3, 32, 32)) < TOLERANCE


def test_a_missing_compiler_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingPackageError, match=r"runtime='aot' cannot be used: it needs a C\+\+ compiler"):
        featx.export(small(), tmp_path / "m.pt2")
    with pytest.raises(MissingPackageError, match=r"runtime='compile' cannot be used: it needs a C\+\+ compiler"):
        featx.optimize(small(), runtime="compile")
