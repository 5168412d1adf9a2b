"""Files of Keras: variables are named for their layers; what refers elsewhere or is too large is refused."""

import io
import sys
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from support.fuzzing import damaged, in_time
from support.keras_files import write_h5, write_keras

import featx
from featx import CheckpointError
from featx.weights.keras_file import layer_name, snake_case
from featx.weights.readers import read_checkpoint

h5py = pytest.importorskip("h5py")

KERNEL, NORM = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3), np.array([1, 2, 3], np.float32)
STATE = {"Conv1/kernel": KERNEL, "bn_Conv1/gamma": NORM, "bn_Conv1/moving_mean": NORM + 1}


def refuse(path: Path, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem) as refused:
        read_checkpoint(path)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 1000


def same(read: dict[str, torch.Tensor], expected: dict[str, np.ndarray]) -> bool:
    return read.keys() == expected.keys() and all(np.array_equal(read[name].numpy(), expected[name]) for name in read)


@pytest.mark.parametrize("name", ["w.h5", "w.hdf5"])
@pytest.mark.parametrize(("root", "end"), [("model_weights/", ""), ("model_weights/", ":0"), ("", ":0")])
def test_variables_of_an_h5_file_are_named_for_their_layers(tmp_path, name, root, end):
    assert same(read_checkpoint(write_h5(tmp_path / name, STATE, root, end)), STATE)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("model_weights/Conv1/Conv1/kernel:0", "Conv1/kernel"),
        ("Conv/BatchNorm/Conv/BatchNorm/gamma:0", "Conv/BatchNorm/gamma"),
        ("mobilenetv2_1.00_224/Conv1/kernel:0", "Conv1/kernel"),
        ("mobilenet/expanded_conv/depthwise/BatchNorm/beta:0", "expanded_conv/depthwise/BatchNorm/beta"),
        ("Conv1/kernel", "Conv1/kernel"),
        ("kernel", "kernel"),
    ],
)
def test_a_path_gives_the_layer_and_the_variable(path, name):
    assert layer_name(path) == name


def test_classes_are_named_as_in_files():
    names = {"Conv2D": "conv2d", "DepthwiseConv2D": "depthwise_conv2d", "BatchNormalization": "batch_normalization"}
    assert {name: snake_case(name) for name in names} == names


LAYERS = [
    ("InputLayer", "input", {}),
    ("Conv2D", "Conv1", {"kernel": KERNEL}),
    ("BatchNormalization", "bn_Conv1", {"gamma": NORM, "beta": -NORM, "mean": NORM + 1, "variance": NORM * 2}),
    ("Conv2D", "again", {"kernel": KERNEL + 1, "bias": NORM}),
    ("Dense", "predictions", {"kernel": KERNEL[0, 0], "bias": NORM + 5}),
]


def test_variables_of_a_keras_file_get_the_names_of_the_configuration(tmp_path):
    read = read_checkpoint(write_keras(tmp_path / "w.keras", LAYERS))
    expected = {
        "Conv1/kernel": KERNEL,
        "bn_Conv1/gamma": NORM,
        "bn_Conv1/beta": -NORM,
        "bn_Conv1/moving_mean": NORM + 1,
        "bn_Conv1/moving_variance": NORM * 2,
        "again/kernel": KERNEL + 1,
        "again/bias": NORM,
        "predictions/kernel": KERNEL[0, 0],
        "predictions/bias": NORM + 5,
    }
    assert same(read, expected)


def test_weights_of_keras_3_without_their_configuration_are_refused_with_what_to_do(tmp_path):
    path = write_keras(tmp_path / "w.keras", LAYERS)
    with zipfile.ZipFile(path) as archive:
        (tmp_path / "w.weights.h5").write_bytes(archive.read("model.weights.h5"))
    refuse(tmp_path / "w.weights.h5", r"no names of layers.*model\.save\('name\.keras'\)")


def test_without_h5py_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(featx.MissingPackageError, match=r"featx\[keras\]"):
        read_checkpoint(write_keras_bytes(tmp_path / "w.h5"))


def write_keras_bytes(path: Path) -> Path:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    return path


@pytest.mark.parametrize("kind", ["f2", "f8", ">f4", "i1", ">i8", "u1"])
def test_numbers_of_other_types_compressed_or_in_chunks_are_read(tmp_path, kind):
    values = np.arange(24).astype(kind).reshape(4, 6)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset(
            "a/a/kernel:0", data=values, chunks=(2, 3), compression="gzip", shuffle=True, fletcher32=True
        )
        file["a/a/bias:0"] = values[0, 0]
        file["a/a/none:0"] = values[:0]
    read = read_checkpoint(tmp_path / "w.h5")
    assert np.array_equal(read["a/kernel"].numpy(), values)
    assert (read["a/bias"].item(), tuple(read["a/none"].shape)) == (0, (0, 6))


# files made to do harm


def test_links_and_values_in_other_files_are_not_followed(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(8))
    write_h5(tmp_path / "other.h5", STATE)
    changes = {
        "soft": lambda file: file.__setitem__("b", h5py.SoftLink("/Conv1")),
        "link": lambda file: file.__setitem__("b", h5py.ExternalLink(str(tmp_path / "other.h5"), "/model_weights")),
        "external": lambda file: file.create_dataset(
            "b/b/k", (2,), "f4", external=[(str(tmp_path / "secret.bin"), 0, 8)]
        ),
        "virtual": lambda file: file.create_virtual_dataset("b/b/k", virtual(tmp_path / "other.h5")),
    }
    for name, change in changes.items():
        path = write_h5(tmp_path / f"{name}.h5", STATE, root="")
        with h5py.File(path, "a") as file:
            change(file)
        refuse(path, "link to another place" if name in ("soft", "link") else "in other files, which were not read")


def virtual(path: Path) -> "h5py.VirtualLayout":
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(path, "model_weights/bn_Conv1/bn_Conv1/gamma", (3,))
    return layout


def test_groups_in_themselves_end(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["a"] = file.create_group("b")
        file["a/itself"] = file["a"]
    refuse(tmp_path / "w.h5", "groups in groups")


@pytest.mark.parametrize("value", ["text", np.array([b"abc"]), np.zeros(2, [("x", "f4")]), np.zeros(2, "c8"), True])
def test_values_that_are_not_numbers_are_refused(tmp_path, value):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["a/a/kernel"] = value
    refuse(tmp_path / "w.h5", "are not numbers of the types")


def test_a_dataset_without_values_is_refused(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["a/a/kernel"] = h5py.Empty("f4")
    refuse(tmp_path / "w.h5", "has no values")


def test_datasets_that_would_take_more_than_the_file_has_are_refused(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("a/a/kernel", (1 << 20, 1 << 10), "f4", chunks=(1024, 1024), compression="gzip")
    refuse(tmp_path / "w.h5", "its tensors would take 4294967296 bytes")


def test_filters_that_are_no_part_of_hdf5_are_refused(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("a/a/kernel", data=np.zeros((64, 64), "f4"), compression="lzf")
    refuse(tmp_path / "w.h5", "compressed in a way that was not read")


def test_a_keras_file_with_other_members_is_refused(tmp_path):
    whole = write_keras(tmp_path / "w.keras", LAYERS)
    with zipfile.ZipFile(whole) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    changes = {
        "is compressed or too large|are compressed": (zipfile.ZIP_DEFLATED, {}),
        "lists no layers": (zipfile.ZIP_STORED, {"config.json": b'{"config": {"layers": 3}}'}),
        "more than 16 models": (zipfile.ZIP_STORED, {"config.json": deep(30)}),
        "not a whole .keras file": (zipfile.ZIP_STORED, {"config.json": b"[" * 5000}),
        "not a whole HDF5 file": (zipfile.ZIP_STORED, {"model.weights.h5": b"nothing"}),
    }
    for number, (problem, (compression, changed)) in enumerate(changes.items()):
        path = tmp_path / f"{number}.keras"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in {**members, **changed}.items():
                archive.writestr(name, content)
        refuse(path, problem)


def deep(levels: int) -> bytes:
    opening = b'{"class_name": "Functional", "config": {"name": "a", "layers": ['
    return opening * levels + b"]}}" * levels


@pytest.mark.parametrize("name", ["w.h5", "w.keras"])
def test_a_file_that_is_damaged_anywhere_is_read_or_refused(tmp_path, name):
    path = write_h5(tmp_path / name, STATE) if name == "w.h5" else write_keras(tmp_path / name, LAYERS)
    whole, chance, outcomes = path.read_bytes(), Random(0), set()
    for _ in range(400):
        path.write_bytes(damaged(whole, chance))
        try:
            with in_time():
                read_checkpoint(path)
            outcomes.add("read")
        except CheckpointError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_an_h5_file_of_nothing_is_refused(tmp_path):
    with h5py.File(stored := io.BytesIO(), "w") as file:
        file.create_group("model_weights")
    (tmp_path / "w.h5").write_bytes(stored.getvalue())
    with pytest.raises(CheckpointError, match="it has no weights"):
        read_checkpoint(tmp_path / "w.h5")
