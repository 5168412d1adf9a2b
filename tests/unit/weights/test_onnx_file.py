"""ONNX files: weights that PyTorch's exporters wrote come back under their names, and anything else is refused."""

import os
import struct
import warnings
from pathlib import Path
from random import Random

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.fuzzing import damaged, in_time
from torch import nn

import featx
from featx import CheckpointError
from featx.weights import onnx_file
from featx.weights.readers import read_checkpoint


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        deep = nn.Sequential(nn.Linear(16, 8, bias=False), nn.Linear(8, 8))
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), deep)

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attn(y, y, y)[0]
        return x + self.mlp(y)


class Net(nn.Module):
    """Linear layers with and without bias, in a list, in nested Sequentials, packed, and one on two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.pos, self.gamma = nn.Parameter(torch.zeros(1, 16, 8)), nn.Parameter(torch.zeros(8))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(8, 8, bias=False)), nn.Linear(8, 8))
        self.norm = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.fc(self.norm((self.layers(x) * self.gamma).mean(1)))


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    chance = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=chance) - 0.5 + 1.5 * ("var" in name))
    return model


def export(model: nn.Module, path: Path, dynamo: bool, images: torch.Tensor) -> None:
    how = {"verbose": False} if dynamo else {"training": torch.onnx.TrainingMode.PRESERVE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images,), str(path), dynamo=dynamo, **how)


@pytest.fixture(scope="module", params=[False, True], ids=["TorchScript", "dynamo"])
def exported(request, tmp_path_factory):
    model, path = randomized(Net().eval()), tmp_path_factory.mktemp("exported") / "w.onnx"
    export(model, path, request.param, torch.rand(2, 3, 16, 16))
    return model, path


def test_an_exported_model_gets_its_weights_back(exported):
    model, path = exported
    read = read_checkpoint(path)
    expected = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert [name for name in expected if name not in read] == []
    assert [name for name, tensor in expected.items() if not torch.equal(read[name], tensor)] == []
    assert {name for name in read if name not in expected} <= {name for name in read if "::" in name or "val_" in name}


def test_layers_of_equal_weights_each_get_them(tmp_path):
    """The exporter of TorchScript stores equal tensors once."""
    model = Net().eval()
    for block in model.blocks:
        randomized(block)
    export(model, tmp_path / "w.onnx", False, torch.rand(2, 3, 16, 16))
    read, blocks = read_checkpoint(tmp_path / "w.onnx"), model.blocks.state_dict()
    assert [name for name, tensor in blocks.items() if not torch.equal(read[f"blocks.{name}"], tensor)] == []


@pytest.mark.parametrize("name", ["resnet10t", "mobilevit_xxs"])
def test_a_model_of_ours_loads_the_file_that_it_was_exported_to(tmp_path, name):
    model = randomized(featx.create_model(name, num_classes=3).eval())
    images = torch.rand(2, 3, 64, 64)
    export(model, tmp_path / "w.onnx", False, images)
    state = read_checkpoint(tmp_path / "w.onnx")
    state |= {name: tensor for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked")}
    loaded = featx.create_model(name, num_classes=3, checkpoint_path=state).eval()
    assert torch.equal(loaded(images), model(images))


def test_an_export_without_optimization_has_all_weights(tmp_path):
    model = randomized(featx.create_model("resnet10t", num_classes=3).eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = torch.rand(2, 3, 64, 64)
        torch.onnx.export(model, (images,), str(tmp_path / "w.onnx"), dynamo=True, optimize=False, verbose=False)
    read = read_checkpoint(tmp_path / "w.onnx")
    expected = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert [name for name, tensor in expected.items() if not torch.equal(read[name], tensor)] == []


@pytest.mark.parametrize("dynamo", [False, True], ids=["TorchScript", "dynamo"])
def test_weights_that_an_exporter_folded_are_refused_with_what_to_do(tmp_path, dynamo):
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = torch.rand(2, 3, 8, 8)
        torch.onnx.export(model, (images,), str(tmp_path / "w.onnx"), dynamo=dynamo, verbose=False)
    refuse(tmp_path / "w.onnx", r"folded batch norms .* are gone .*TrainingMode\.PRESERVE .*optimize=False")


# files made by hand


def constant(name: str, values: torch.Tensor) -> TensorProto:
    return numpy_helper.from_array(values.numpy(), name)


def written(path: Path, tensors: list[TensorProto], nodes: list = ()) -> Path:
    graph = helper.make_graph(list(nodes), "graph", [], [], initializer=tensors)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def linear(name: str, weight: str = "onnx::MatMul_1", bias: str | None = "fc.bias") -> list:
    added = [helper.make_node("Add", ["y", bias], ["z"])] if bias else []
    return [helper.make_node("MatMul", ["x", weight], ["y"], name), *added]


WEIGHT = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("node", "bias", "expected"),
    [
        ("/fc/MatMul", "fc.bias", "fc.weight"),
        ("/fc/MatMul_1", None, "fc.weight"),
        ("MatMul_12", "a.0.fc.bias", "a.0.fc.weight"),
        ("MatMul_12", None, "onnx::MatMul_1"),
        ("", None, "onnx::MatMul_1"),
        ("/MatMul", None, "onnx::MatMul_1"),
        ("/MatMul", "bias", "onnx::MatMul_1"),
        ("/attn/MatMul", "attn.in_proj_bias", "attn.in_proj_weight"),
        ("/a/a.0/a.0.1/MatMul", None, "a.0.1.weight"),
        ("/a/a.0/MatMul", "a.a.0.bias", "a.a.0.weight"),
        ("/b/layer.10/fc/MatMul", "other.fc.bias", "b.layer.10.fc.weight"),
    ],
)
def test_a_product_is_named_for_its_module(tmp_path, node, bias, expected):
    tensors = [constant("onnx::MatMul_1", WEIGHT), *([constant(bias, torch.ones(3))] if bias else [])]
    read = read_checkpoint(written(tmp_path / "w.onnx", tensors, linear(node, bias=bias)))
    assert set(read) == {expected, *([bias] if bias else [])}
    assert torch.equal(read[expected], WEIGHT if expected.startswith("onnx") else WEIGHT.T)


def test_a_name_that_the_file_has_is_not_given_to_another_tensor(tmp_path):
    tensors = [constant("onnx::MatMul_1", WEIGHT), constant("fc.weight", torch.ones(2, 2))]
    read = read_checkpoint(written(tmp_path / "w.onnx", tensors, linear("/fc/MatMul", bias=None)))
    assert torch.equal(read["fc.weight"], torch.ones(2, 2))
    assert torch.equal(read["onnx::MatMul_1"], WEIGHT)


def test_constants_of_the_exporter_are_left_out_and_other_tensors_of_its_own_stay(tmp_path):
    tensors = [
        constant("onnx::Reshape_1", torch.tensor([1, 2])),
        constant("val_3", torch.tensor(0.5)),
        constant("onnx::Concat_2", torch.ones(1, 1, 3)),
        constant("steps", torch.tensor([3])),
        helper.make_tensor("words", TensorProto.STRING, [1], [b"text"]),
    ]
    assert set(read_checkpoint(written(tmp_path / "w.onnx", tensors))) == {"onnx::Concat_2", "steps"}


TYPES = [torch.float16, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", [torch.float32, *TYPES], ids=str)
@pytest.mark.parametrize("shape", [(2, 3), (0, 4), ()], ids=str)
def test_numbers_of_all_types_and_shapes_are_read(tmp_path, dtype, shape):
    values = torch.arange(6).reshape(2, 3).to(dtype)
    values = values if shape == (2, 3) else values[0, 1] if not shape else values.new_zeros(shape)
    read = read_checkpoint(written(tmp_path / "w.onnx", [constant("a", values)]))
    assert read["a"].dtype == dtype
    assert torch.equal(read["a"], values)


def test_values_that_are_not_raw_are_read_too(tmp_path):
    tensors = [
        helper.make_tensor("a", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("b", TensorProto.DOUBLE, [2], [3.0, 4.0]),
        helper.make_tensor("c", TensorProto.BFLOAT16, [2], struct.pack("<HH", 0x3F80, 0x4000), raw=True),
    ]
    read = read_checkpoint(written(tmp_path / "w.onnx", tensors))
    assert {name: tensor.tolist() for name, tensor in read.items()} == {"a": [1, 2], "b": [3, 4], "c": [1, 2]}
    assert read["c"].dtype is torch.bfloat16


# files made to do harm


def refuse(path: Path, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem) as refused:
        read_checkpoint(path)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 1000


def elsewhere(name: str = "a", shape: tuple[int, ...] = (2,), **place: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.fixture
def folder(tmp_path):
    """A folder with a data file in it, one beside it, and a link from inside to outside."""
    folder = tmp_path / "inside"
    (folder / "deep").mkdir(parents=True)
    for path in (tmp_path / "secret.bin", folder / "w.bin", folder / "deep" / "w.bin"):
        path.write_bytes(struct.pack("<4f", 1, 2, 3, 4))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    return folder


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ({"location": "w.bin"}, [1, 2]),
        ({"location": "w.bin", "offset": "8"}, [3, 4]),
        ({"location": "./deep/w.bin", "offset": "4", "length": "8", "checksum": "0"}, [2, 3]),
    ],
)
def test_values_in_a_file_of_the_folder_are_read(folder, place, values):
    read = read_checkpoint(written(folder / "w.onnx", [elsewhere(**place)]))
    assert read["a"].tolist() == values


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "deep/../../secret.bin", "{}/secret.bin", "link.bin", "up/secret.bin", "", ".", "..\\x"],
)
def test_values_outside_the_folder_are_not_read(folder, location):
    path = written(folder / "w.onnx", [elsewhere(location=location.format(folder.parent))])
    refuse(path, "outside the folder of the file: they were not read")


@pytest.mark.parametrize("location", ["nothing.bin", "deep", "pipe", "x" * 300])
def test_a_file_of_values_that_cannot_be_read_is_named(folder, location):
    refuse(
        written(folder / "w.onnx", [elsewhere(location=location)]), "which holds values of 'a'|with the values of 'a'"
    )


@pytest.mark.parametrize(
    "place",
    [
        {"offset": "12"},
        {"offset": "-8"},
        {"offset": "9" * 30},
        {"offset": "0x8"},
        {"length": "4"},
        {"length": "16"},
        {"offset": "٨"},
    ],
)
def test_a_place_that_a_file_has_not_is_refused(folder, place):
    refuse(written(folder / "w.onnx", [elsewhere(location="w.bin", **place)]), "not a whole checkpoint")


def test_tensors_that_share_external_values_many_times_over_are_refused(folder):
    tensors = [elsewhere(f"a{number}", (4,), location="w.bin") for number in range(2)]
    refuse(written(folder / "w.onnx", tensors), "would take 32 bytes, but .*w.bin.* have 16")


def test_a_shape_that_the_values_do_not_fill_is_refused(tmp_path):
    for number, shape in enumerate([(3,), (-2,), (1 << 40, 1 << 40), (1 << 62,), (1,) * 40]):
        tensor = constant("a", torch.ones(2))
        tensor.ClearField("dims")
        tensor.dims.extend(shape)
        refuse(written(tmp_path / f"{number}.onnx", [tensor]), "not a whole checkpoint")


def test_invalid_booleans_two_tensors_of_a_name_and_two_kinds_of_values_are_refused(tmp_path):
    invalid = helper.make_tensor("a", TensorProto.BOOL, [2], b"\1\7", raw=True)
    twice = constant("a", torch.ones(2))
    both = constant("a", torch.ones(2))
    both.float_data.extend([1, 2])
    for number, tensors in enumerate([[invalid], [twice, twice], [both]]):
        refuse(written(tmp_path / f"{number}.onnx", tensors), "not a whole checkpoint")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x08\x07", "it has 0 graphs"),
        (b"\x3a\x00", "has no weights"),
        (b"\x3a\x00\x3a\x00", "it has 2 graphs"),
        (b"\x38\x00", "the field 7 at byte 1 is of kind 0"),
        (b"\x3b\x00", "field 7 of kind 3"),
        (b"\x3a\xff\xff\xff\xff\x0f", "are declared"),
        (b"\x80" * 11, "more than 64 bits"),
    ],
)
def test_what_is_not_a_model_is_refused(tmp_path, content, problem):
    (tmp_path / "w.onnx").write_bytes(content)
    refuse(tmp_path / "w.onnx", problem)


def test_more_entries_than_any_network_has_are_refused(tmp_path, monkeypatch):
    path = written(tmp_path / "w.onnx", [constant(f"a{n}", torch.ones(1)) for n in range(10)], linear("") * 5)
    for name, most in (("MAX_MEMBERS", 9), ("MOST_NODES", 4), ("MOST_FIELDS", 30)):
        with monkeypatch.context() as patched:
            patched.setattr(onnx_file, name, most)
            refuse(path, f"it has more than .*{most}.* as no network has")
    assert len(read_checkpoint(path)) == 10


def test_a_damaged_file_is_read_or_refused(tmp_path):
    tensors = [constant("onnx::MatMul_1", WEIGHT), constant("fc.bias", torch.ones(3)), elsewhere(location="w.bin")]
    whole = written(tmp_path / "w.onnx", tensors, linear("/fc/MatMul")).read_bytes()
    (tmp_path / "w.bin").write_bytes(bytes(8))
    chance = Random(0)
    outcomes = set()
    for _ in range(1500):
        (tmp_path / "w.onnx").write_bytes(damaged(whole, chance))
        try:
            with in_time():
                outcomes.add(type(read_checkpoint(tmp_path / "w.onnx")))
        except CheckpointError as error:
            outcomes.add(type(error))
    assert outcomes == {dict, CheckpointError}


def test_onnx_reads_the_same_values(exported):
    """The reader agrees with the onnx package on every initializer that has kept its name."""
    _, path = exported
    read = read_checkpoint(path)
    stored = {one.name: numpy_helper.to_array(one, str(path.parent)) for one in onnx.load(path).graph.initializer}
    common = [name for name in stored if name in read]
    assert len(common) > 10
    assert [name for name in common if not torch.equal(read[name], torch.from_numpy(stored[name].copy()))] == []
