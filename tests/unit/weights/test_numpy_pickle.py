"""Pickles of NumPy arrays, as Detectron2 writes them: arrays are read, anything else is refused and nothing runs."""

import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from conftest import randomize
from support.fuzzing import damaged, in_time
from support.pickle_builder import call, integer, named, text
from support.untrusted_files import Runs, Tiny, refuse, saved

import featx
from featx import CheckpointError
from featx.weights.layout import find_layout
from featx.weights.load import family_names
from featx.weights.readers import read_checkpoint

STATE = {"a": np.array([3, 4], np.float32), "count": np.array(7)}
KINDS = [np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.bool_]
PROTOCOLS = [2, 3, 4, 5]


def write(path: Path, held: object, protocol: int = 4) -> Path:
    path.write_bytes(held if isinstance(held, bytes) else pickle.dumps(held, protocol))
    return path


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_of_a_model_zoo_is_loaded(tmp_path, protocol):
    held = {"model": STATE, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    model = Tiny()
    report = featx.load_weights(model, write(tmp_path / "w.pkl", held, protocol))
    assert (model.a.tolist(), model.count.tolist()) == ([3, 4], 7)
    assert set(report.loaded) == {"a", "count"}


def test_a_file_of_detectron2_fills_a_backbone(tmp_path):
    reference = featx.create_model("resnet50", features_only=True, out_indices=[4])
    randomize(reference)
    layout = find_layout("detectron2", family_names(reference))
    assert layout.from_native is not None
    state = {name: t for name, t in reference.state_dict().items() if not name.endswith("num_batches_tracked")}
    named = {f"backbone.bottom_up.{name}": tensor.numpy() for name, tensor in layout.from_native(state).items()}
    path = write(tmp_path / "model_final.pkl", {"model": named, "__author__": "Detectron2 Model Zoo"}, 3)
    how = {"checkpoint_path": path, "layout": "detectron2"}
    model = featx.create_model("resnet50", features_only=True, out_indices=[4], **how)
    read = model.state_dict()
    assert [name for name, tensor in state.items() if not torch.equal(read[name], tensor)] == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_arrays_of_all_types_shapes_and_orders_are_read(tmp_path, kind, protocol):
    values = np.arange(24).reshape(2, 3, 4).astype(kind)
    big = values.astype(values.dtype.newbyteorder(">"))
    held = {
        "plain": values,
        "columns": np.asfortranarray(values),
        "part": values[:, ::2, 1:],
        "big": big,
        "scalar": values[1, 2, 3],
        "point": np.array(values[1, 2, 3]),
        "empty": values[:0],
    }
    read = read_checkpoint(write(tmp_path / "w.pkl", held, protocol))
    assert read.keys() == held.keys()
    for name, array in held.items():
        native = np.ascontiguousarray(array).astype(kind).reshape(np.shape(array))
        assert read[name].dtype == torch.from_numpy(native).dtype, name
        assert torch.equal(read[name], torch.from_numpy(native)), name


def test_containers_of_arrays_and_what_is_beside_them_are_read(tmp_path):
    held = OrderedDict(model=OrderedDict(STATE), iteration=3, scores=[1.5, None, ("x", True)], itself={})
    held["itself"]["again"] = held["itself"]
    read = read_checkpoint(write(tmp_path / "w.pkl", held, 2))
    assert {name: tensor.tolist() for name, tensor in read["model"].items()} == {"a": [3, 4], "count": 7}
    assert read["scores"] == [1.5, None, ("x", True)]


def python2_string(data: bytes) -> bytes:
    return b"T" + struct.pack("<I", len(data)) + data


def array(shape: bytes, content: bytes, code: bytes = text("f4"), core: str = "numpy.core") -> bytes:
    """A vector as NumPy describes it. shape: pickled sides. content: pickled values."""
    new = call(f"{core}.multiarray\n_reconstruct", b"cnumpy\nndarray\n", b"K\0\x85", python2_string(b"b"))
    order = b"(K\3" + python2_string(b"<") + b"NNN" + integer(-1) * 2 + b"K\0tb"
    kind = call("numpy\ndtype", code, b"K\0", b"K\1") + order
    return new + b"(K\1" + shape + kind + b"\x89" + content + b"tb"


TWO = struct.pack("<2f", 1, -2)  # bytes that are not UTF-8


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_a_file_of_python_2_is_read(tmp_path, core):
    key = python2_string(b"conv1_w")
    program = b"\x80\2" + named(array(b"K\2\x85", python2_string(TWO), python2_string(b"f4"), core), key) + b"."
    read = read_checkpoint(write(tmp_path / "w.pkl", program))
    assert read["conv1_w"].tolist() == [1, -2]


def test_pytorch_writes_files_of_this_extension_too(tmp_path):
    write(tmp_path / "w.pkl", saved({"a": torch.ones(2)}))
    assert read_checkpoint(tmp_path / "w.pkl")["a"].tolist() == [1, 1]


def test_tensors_are_independent_of_each_other(tmp_path):
    one = np.ones(2, np.float32)
    read = read_checkpoint(write(tmp_path / "w.pkl", {"a": one, "b": one.view(), "c": one[:1]}))
    read["a"].add_(1)
    assert (read["b"].tolist(), read["c"].tolist()) == ([1, 1], [1])


# what is refused


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_that_would_run_a_command_is_refused(tmp_path, protocol):
    trap = tmp_path / "ran"
    path = write(tmp_path / "w.pkl", {"model": STATE, "more": [Runs(f"touch {trap}")]}, protocol)
    refuse(path, r"holds more than NumPy arrays \((posix|os).system\).*could run code.*numpy.savez")
    assert not trap.exists()


@pytest.mark.parametrize(
    "value",
    [torch.ones(2), np.array(["text"]), np.array([{}], object), np.zeros(2, [("x", "f4")]), Path("x"), np.dtype("c8")],
    ids=["tensor", "text", "objects", "records", "path", "complex"],
)
def test_other_objects_are_refused(tmp_path, value):
    held = {"a": np.zeros(2, value) if isinstance(value, np.dtype) else value}
    refuse(write(tmp_path / "w.pkl", held), r"holds more than NumPy arrays|is of the type|not a whole pickle")


VALUES = python2_string(TWO)
PROGRAMS = {
    "no values": call("numpy.core.multiarray\n_reconstruct", b"cnumpy\nndarray\n", b"K\0\x85", VALUES),
    "another class": call("numpy.core.multiarray\n_reconstruct", b"cnumpy\ndtype\n", b"K\0\x85", VALUES),
    "a shape of more values": array(integer(1 << 40) + b"\x85", VALUES),
    "a shape of fewer values": array(b"K\1\x85", VALUES),
    "a negative side": array(integer(-2) + b"\x85", VALUES),
    "a shape that overflows": array((integer(1 << 32) * 3) + b"\x87", VALUES),
    "many dimensions": array(b"(" + b"K\1" * 40 + b"t", VALUES),
    "a side that is a truth": array(b"\x88\x85", VALUES),
    "no shape": array(b"K\2", VALUES),
    "no bytes": array(b"K\2\x85", b"]"),
    "text that is not bytes": array(b"K\2\x85", text("\u20ac" * 8)),
    "objects": array(b"K\1\x85", VALUES, text("O8")),
    "a type that is a number": array(b"K\2\x85", VALUES, b"K\4"),
    "no type": array(b"K\2\x85", VALUES).replace(b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n"),
    "another function": call("numpy.core.multiarray\nfrombuffer", VALUES),
    "a class made anew": b"cnumpy\nndarray\n)\x81",
    "an array called": array(b"K\2\x85", VALUES) + b")R",
    "a persistent id": text("storage") + b"Q",
    "an array as a key": b"}" + array(b"K\2\x85", VALUES) + b"Ns",
    "a dictionary filled as an array": b"}" + b"(K\1K\2\x85NNNtb",
    "a name that is no text": b"K\1K\2\x93",
    "other text encodings": call("_codecs\nencode", text("a" * 100), text("utf-7")),
    "a length beyond the file": b"\x8e" + struct.pack("<Q", 1 << 60) + b"abc",
    "a memory beyond the file": b"N\x72\xff\xff\xff\xf0" + b"j\xff\xff\xff\x0f",
    "many lists": b"(" + b"]" * 300_000 + b"t",
    "many copies of the bytes": b"("
    + python2_string(bytes(1 << 20))
    + b"q\1"
    + array(integer(1 << 18) + b"\x85", b"h\1") * 200
    + b"t",
    "many encodings of a text": b"("
    + text("x" * (1 << 20))
    + b"q\1"
    + call("_codecs\nencode", b"h\1", text("latin1")) * 200,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_numpy_does_not_write_is_refused(tmp_path, name):
    (tmp_path / "w.pkl").write_bytes(b"\x80\2" + named(PROGRAMS[name]) + b".")
    refuse(
        tmp_path / "w.pkl",
        "holds more than|not a whole pickle of NumPy arrays|invalid dictionary key|would build far more|is of the type",
    )


def test_a_file_that_would_need_many_times_its_size_takes_little_memory(tmp_path):
    import tracemalloc

    path = write(tmp_path / "w.pkl", b"\x80\2" + named(PROGRAMS["many copies of the bytes"]) + b".")
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="would build far more"):
        read_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 160 << 20  # 64 MiB are always allowed


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_that_is_damaged_anywhere_is_read_or_refused(tmp_path, protocol):
    whole, chance = pickle.dumps({"model": STATE, "__author__": "x"}, protocol), Random(protocol)
    path, outcomes = tmp_path / "w.pkl", set()
    for _ in range(500):
        path.write_bytes(damaged(whole, chance))
        try:
            with in_time():
                featx.load_weights(Tiny(), path, finite=False)
            outcomes.add("read")
        except CheckpointError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
    assert os.listdir(tmp_path) == ["w.pkl"]


def test_a_pickle_of_something_else_is_refused(tmp_path):
    for held in ([1, 2], "text", 3, None):
        refuse(write(tmp_path / "w.pkl", held), "expected named tensors")
