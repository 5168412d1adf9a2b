"""Pickles in PyTorch's files that need far more memory or time than they have bytes; and valid ones."""

import argparse
import io
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction

import pytest
import torch
from support.pickle_builder import (
    call,
    integer,
    legacy,
    named,
    storage,
    tensor,
    text,
    tuples,
    with_attribute,
    zipped,
)
from support.untrusted_files import Tiny, damage, refuse, saved
from torch import nn

import featx
from featx.weights.checkpoint import LoadOptions, read_tensors
from featx.weights.readers import read_checkpoint
from featx.weights.serialization import write_checkpoint

# pieces of pickles


SET = b"cbuiltins\nset\n"
DOUBLED = b"c_codecs\nencode\n" * 30 + call("_codecs\nencode", text("x" * 100), text("latin1"))
DOUBLED += 30 * (text("hex") + b"\x86R")

NAMESPACE = b"cargparse\nNamespace\n)\x81"
MANY_KEYS = b"}(" + b"".join(text(f"k{n}") + b"N" for n in range(40_000)) + b"uq\1"  # remembered as value 1
MANY_SIDES = b"(" + b"N" * 100_000 + b"tq\1"
LONG_TEXT = text("x" * (2 << 20)) + b"q\1"
ENCODED = call("_codecs\nencode", b"h\1", text("latin1"))

PROGRAMS = {
    "bytes of zero": named(call("builtins\nbytearray", integer(3 << 30))),
    "bytes of zero, as Python 2 names them": named(call("__builtin__\nbytearray", integer(3 << 30))),
    "a tensor without values": named(call("torch\nFloatTensor", integer(1 << 30))),
    "a tensor without values, made anew": named(b"ctorch\nFloatTensor\n(" + integer(1 << 30) + b"t\x81"),
    "a storage without values": named(call("torch.storage\nUntypedStorage", integer(1 << 30))),
    "a parameter without values": named(call("torch.nn.parameter\nParameter", integer(1 << 30))),
    "bytes doubled thirty times": named(DOUBLED),
    "bytes of another alphabet": named(call("builtins\nbytearray", text("x"), text("idna"))),
    "a key of 2**60 values": named(b"K\1", tuples(60)),
    "a key of many tuples": named(b"K\1", b"(" + b")" * 101 + b"t"),
    "a function of 2**60 values": named(b"(" + tuples(60) + b"t)R"),
    "a class of 2**60 values": named(tuples(60) + b")\x81"),
    "a storage of 2**60 values": named(b"(" + tuples(60) + tuples(60) + b"tQ"),
    "a set of 2**60 values": named(call("builtins\nset", b"]" + tuples(60) + b"a")),
    "a set of complex numbers": named(call("builtins\nset", b"]" + call("builtins\ncomplex", b"K\1", b"K\2") + b"a")),
    "2**60 values counted": named(call("collections\nCounter", b"]" + tuples(60) + b"a")),
    "a pair of 2**60 values": named(call("collections\nOrderedDict", b"](](" + tuples(60) + b"K\1ee")),
    "numbers of one hash": b"}(" + b"".join(integer((2**61 - 1) * n) + b"N" for n in range(1, 20_000)) + b"u",
    "tuples of one hash": b"}(" + b"".join(b"M" + struct.pack("<H", n) + b"\x85N" for n in range(9000)) + b"u",
    "many sets": named(b"(" + b"\x8f" * 300_000 + b"t"),
    "many lists": named(b"(" + b"]" * 300_000 + b"t"),
    "many marks": named(b"(" * 300_000),
    "many dictionaries": named(b"(ccollections\nOrderedDict\nq\0" + b"h\0)R" * 200_000 + b"t"),
    "many steps": b"]" + b"Na" * 1_000_001,
    "a long key": named(b"N", text("a" * 2000)),
    "a key of bytes": named(b"N", call("_codecs\nencode", text("a"), text("latin1"))),
    "values that the file has not": named(tensor(storage(1 << 30))),
    "a negative number of values": named(tensor(storage(-1))),
    "values of no type": named(tensor(storage(kind="NoStorage"))),
    "a method of a tensor replaced": named(with_attribute("to", SET)),
    "a property of a tensor set": named(with_attribute("data", tensor())),
    "a method of a parameter replaced": named(
        call("torch._utils\n_rebuild_parameter_with_state", tensor(), b"\x88N", named(SET, text("detach")))
    ),
    "a method of a dictionary replaced": call("collections\nOrderedDict") + named(SET, text("items")) + b"b",
    "a device of a long name": named(call("torch\ndevice", text("cpu" * 100))),
    "a namespace with arguments": named(b"cargparse\nNamespace\n(" + text("a") + b"t\x81"),
    "a namespace of no dictionary": named(NAMESPACE + b"]b"),
    "a namespace of two states": named(NAMESPACE + b"}}\x86b"),
    "a method of a namespace replaced": named(NAMESPACE + named(SET, text("_get_kwargs")) + b"b"),
    "a state set by a function of the file": named(
        NAMESPACE + named(b"c_codecs\nencode\n", text("__setstate__")) + b"b" + named(b"N") + b"b"
    ),
    "a namespace with a number for a name": named(NAMESPACE + b"}K\1Nsb"),
    "a namespace as a key": named(b"N", NAMESPACE),
    "the class of a namespace filled": named(b"cargparse\nNamespace\n" + named(b"N") + b"b"),
    "a class beside namespaces": named(b"cargparse\nArgumentParser\n)\x81"),
    "a namespace of another module": named(b"argparse\nsys\n)R"),
    "a special attribute of a dictionary": call("collections\nOrderedDict") + named(SET, text("__deepcopy__")) + b"b",
    "many namespaces of many attributes": named(b"(" + MANY_KEYS + (NAMESPACE + b"h\1b") * 5000 + b"t"),
    "many dictionaries of many attributes": named(
        b"(" + MANY_KEYS + (call("collections\nOrderedDict") + b"h\1b") * 5000 + b"t"
    ),
    "many counts of many keys": named(b"(" + MANY_KEYS + call("collections\nCounter", b"h\1") * 5000 + b"t"),
    "many copies of a long text": named(b"(" + LONG_TEXT + ENCODED * 1000 + b"t"),
    "many copies of long bytes": named(
        b"(" + LONG_TEXT + ENCODED + b"q\2" + call("builtins\nbytearray", b"h\2") * 1000 + b"t"
    ),
    "many sizes of many sides": named(
        b"(" + MANY_SIDES.replace(b"N", b"K\1") + call("torch\nSize", b"h\1") * 5000 + b"t"
    ),
    "a value that is not there": b"\x85",
    "a mark that is not there": b"t",
    "a memory that is not there": b"h\7",
    "a key without a value": b"}(" + text("a") + b"u",
}
REFUSED = r"holds more than tensors|not a whole PyTorch file|has an invalid dictionary key|would build far more"


KINDS = {"zip": zipped, "legacy": legacy}


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_make_a_whole(tmp_path, kind):
    (tmp_path / "w.pt").write_bytes(KINDS[kind](named(tensor())))
    assert read_checkpoint(tmp_path / "w.pt")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in PROGRAMS if not name.startswith("many")])
def test_a_pickle_that_costs_more_than_it_is_worth_is_refused(tmp_path, name, kind):
    (tmp_path / "w.pt").write_bytes(KINDS[kind](PROGRAMS[name]))
    refuse(tmp_path / "w.pt", REFUSED)


COSTS = """
import sys, time, torch, featx
from featx.weights.convert import inspect
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
for path in sys.argv[1:]:
    before, start = peak(), time.process_time()
    try:
        inspect(path)
    except featx.CheckpointError as error:
        print((peak() - before) // 1024, round(time.process_time() - start), len(str(error)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_refused_takes_little_memory_and_time_and_few_words(tmp_path):
    paths = [tmp_path / f"{number}.pt" for number in range(len(PROGRAMS))]
    for path, program in zip(paths, PROGRAMS.values(), strict=True):
        path.write_bytes(zipped(program))
    ran = subprocess.run([sys.executable, "-c", COSTS, *paths], capture_output=True, text=True, check=True, timeout=120)
    costs = [[int(word) for word in line.split()] for line in ran.stdout.splitlines()]
    assert len(costs) == len(PROGRAMS)
    memory, seconds, letters = zip(*costs, strict=True)
    assert max(memory) < 256  # MiB
    assert max(seconds) < 10
    assert max(letters) < 500


@pytest.mark.parametrize("keys", [b"]", b"}", b"]K\0a"])
def test_tensors_of_an_old_file_whose_values_are_not_there_are_refused(tmp_path, keys):
    (tmp_path / "w.pt").write_bytes(legacy(named(tensor()), keys))
    refuse(tmp_path / "w.pt", "no values for some of its tensors")


KEYS = ["a", "a" * 1024, 3, 2**61 - 2, 0.5, None, True, ("a", 1), (("a",), "b"), (1,) * 99]
NO_KEYS = ["a" * 1025, 2**61, -(2**61), (1,) * 101, ((),) * 101, (((1,) * 90,) * 90,), ("a" * 1025,), (2**61,)]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: str(key)[:20])
def test_dictionaries_have_short_texts_numbers_and_few_of_them_as_keys(tmp_path, key):
    torch.save({"model": {"a": torch.ones(2), "count": torch.tensor(1)}, "more": {key: 1}}, tmp_path / "w.pt")
    featx.load_weights(Tiny(), tmp_path / "w.pt")


@pytest.mark.parametrize("key", NO_KEYS, ids=lambda key: str(key)[:20])
def test_other_keys_are_refused(tmp_path, key):
    torch.save({"model": {"a": torch.ones(2), "count": torch.tensor(1)}, "more": {key: 1}}, tmp_path / "w.pt")
    refuse(tmp_path / "w.pt", r"has an invalid dictionary key \((str|int|tuple)\): expected strings of at most 1024")


# what is taken

OLD = {
    "a list of pairs, as of Python 2": call("collections\nOrderedDict", b"](](" + text("a") + tensor() + b"ee"),
    "the first way to write tensors": named(
        call("torch._utils\n_rebuild_tensor", storage(), b"K\0", b"K\2\x85", b"K\1\x85")
    ),
    "a tensor filled later": named(b"ctorch\nFloatTensor\n)\x81(" + storage() + b"K\0K\2\x85K\1\x85tb"),
    "a tensor from a call filled later": named(call("torch\nFloatTensor") + b"(" + storage() + b"K\0K\2\x85K\1\x85tb"),
    "attributes of a dictionary": call("collections\nOrderedDict")
    + named(call("collections\nOrderedDict"), text("_metadata"))
    + b"b"
    + text("a")
    + tensor()
    + b"s",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OLD)
def test_what_old_releases_wrote_is_read(tmp_path, name, kind):
    (tmp_path / "w.pt").write_bytes(KINDS[kind](OLD[name]))
    assert read_checkpoint(tmp_path / "w.pt")["a"].tolist() == [1, 1]


def state() -> dict[str, torch.Tensor]:
    return {"a": torch.tensor([3.0, 4.0]), "count": torch.tensor(7)}


def zeros(*kinds: torch.dtype) -> list[torch.Tensor]:
    return [torch.zeros(2, dtype=kind) for kind in kinds]


BESIDE = {
    "hyper_parameters": {"lr": 0.1, "betas": (0.9, 0.999), "names": ["a", "b"], "seed": None, "deep": [[[{"x": {}}]]]},
    "callbacks": {"EarlyStopping{'monitor': 'loss'}": {"best": torch.tensor(1.0), "epochs": {1, 2, 3}}},
    "lr_schedulers": [{"milestones": Counter([30, 60]), "base": {3: 1e-3, (1, 2): 0.5, None: True}}],
    "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0, 1]}]},
    "rng": torch.get_rng_state(),
    "others": [b"bytes", bytearray(b"more"), 1 + 2j, torch.Size([2, 3]), torch.float16, torch.device("cpu"), 10**30],
    "loops": OrderedDict(epoch=OrderedDict(total=5)),
    "kinds": zeros(torch.bfloat16, torch.float16, torch.bool, torch.complex64),
    "odd": [torch.zeros(2, device="meta"), torch.eye(2).to_sparse(), torch.zeros(0), torch.zeros(4)[1::2]],
    "history": [float(n) for n in range(20_000)],
    "classes": {f"class {n}": n for n in range(20_000)},
    "parameter": nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_training_saves_beside_tensors_is_no_hindrance(tmp_path, legacy):
    new = [] if legacy else zeros(torch.float8_e4m3fn, torch.uint16)
    held = {"epoch": 3, "state_dict": OrderedDict(state()), **BESIDE, "new": new}
    (tmp_path / "w.pt").write_bytes(saved(held, legacy))
    model = Tiny()
    featx.load_weights(model, tmp_path / "w.pt")
    assert model.a.tolist() == [3, 4]
    assert model.count == 7


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_classes_that_the_user_allows_are_read(tmp_path, legacy):
    (tmp_path / "w.pt").write_bytes(saved({"args": Fraction(1, 2), "model": state()}, legacy))
    refuse(tmp_path / "w.pt", r"more than tensors \(fractions.Fraction\)")
    with torch.serialization.safe_globals([Fraction]):
        featx.load_weights(Tiny(), tmp_path / "w.pt")


ARGUMENTS = argparse.Namespace(lr=1, tags={1}, betas=(0.9, 0.999), model="resnet50", none=None)
ARGUMENTS.nested = argparse.Namespace(opt=["a"], device=torch.device("cpu"))
ARGUMENTS.itself = ARGUMENTS


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.pth.tar", "w.ckpt"])
def test_arguments_of_a_script_beside_the_tensors_are_no_hindrance(tmp_path, name, legacy, mapped):
    if name == "w.ckpt" and legacy:
        pytest.skip("other files of this extension are MindSpore's")
    (tmp_path / name).write_bytes(saved({"args": ARGUMENTS, "model": state()}, legacy))
    model = Tiny()
    featx.load_weights(model, tmp_path / name, mmap=mapped)
    assert (model.a.tolist(), model.count) == ([3, 4], 7)
    read = read_checkpoint(tmp_path / name)["args"]
    assert type(read) is argparse.Namespace
    assert read.itself is read
    assert vars(read.nested) == vars(ARGUMENTS.nested)


def test_reading_arguments_leaves_the_classes_that_pytorch_reads_as_they_were(tmp_path):
    (tmp_path / "w.pt").write_bytes(saved({"args": ARGUMENTS, "model": state()}))
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / "w.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_checkpoint(tmp_path / "w.pt")
        assert argparse.Namespace in torch.serialization.get_safe_globals()
    (tmp_path / "bad.pt").write_bytes(zipped(named(NAMESPACE + b"]b")))
    with suppress(featx.CheckpointError):
        read_checkpoint(tmp_path / "bad.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_threads_read_files_with_arguments_at_once(tmp_path):
    (tmp_path / "w.pt").write_bytes(saved({"args": ARGUMENTS, "model": state()}))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda _: read_checkpoint(tmp_path / "w.pt"), range(64)))
    assert all(held["model"]["a"].tolist() == [3, 4] for held in read)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_any_byte_of_a_file_with_arguments_may_be_damaged(tmp_path, legacy):
    (tmp_path / "w.pt").write_bytes(saved({"args": ARGUMENTS, "model": state()}, legacy))
    damage(tmp_path / "w.pt", seed=2, times=400)


def test_a_name_that_is_all_extension_or_a_tar_archive_is_no_file_of_weights(tmp_path):
    for name in (".pth.tar", "w.tar"):
        (tmp_path / name).write_bytes(saved(state()))
        with pytest.raises(featx.CheckpointError, match=r"cannot tell what kind of file this is.*\.pth\.tar"):
            read_checkpoint(tmp_path / name)
    with tarfile.open(tmp_path / "w.pth.tar", "w:") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    refuse(tmp_path / "w.pth.tar", r"more than tensors \(a tar archive\)")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_are_plain_whatever_was_saved(tmp_path, legacy):
    marked, buffer = nn.Parameter(torch.tensor([3.0, 4.0])), torch.tensor(7)
    marked.sharded = buffer.is_persistent = True
    negated = torch.tensor([1 + 2j]).conj().imag
    (tmp_path / "w.pt").write_bytes(saved({"a": marked, "count": buffer, "b": negated}, legacy))
    read = read_tensors(tmp_path / "w.pt", LoadOptions())[1].state
    assert {type(tensor) for tensor in read.values()} == {torch.Tensor}
    assert not any(vars(tensor) for tensor in read.values())
    assert not any(tensor.is_neg() or tensor.requires_grad for tensor in read.values())
    assert (read["a"].tolist(), read["count"].tolist(), read["b"].tolist()) == ([3, 4], 7, [-2])


def test_a_parameter_in_the_place_of_a_buffer_fills_it(tmp_path):
    torch.save({"a": torch.ones(2), "running": nn.Parameter(torch.tensor([5.0]))}, tmp_path / "w.pt")
    model = nn.Module()
    model.a = nn.Parameter(torch.zeros(2))
    model.register_buffer("running", torch.zeros(1))
    featx.load_weights(model, tmp_path / "w.pt")
    assert type(model.running) is torch.Tensor
    assert not model.running.requires_grad
    assert model.running == 5


def test_two_readers_of_one_archive_do_not_see_two_programs(tmp_path):
    """There is a second member of the same name: what is checked is what is read."""
    (tmp_path / "w.pt").write_bytes(zipped(named(tensor())))
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "w.pt", "a") as archive:
        warnings.simplefilter("ignore")
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        archive.writestr(name, b"\x80\2" + PROGRAMS["bytes of zero"] + b".")
    with suppress(featx.CheckpointError):
        assert read_checkpoint(tmp_path / "w.pt")["a"].tolist() == [1, 1]


# names


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\nb", "a\0", "\x9b31m", "a\u202e", "a" * 1025])
def test_names_that_cannot_be_printed_are_refused_and_not_printed(name, tmp_path):
    torch.save({name: torch.ones(2)}, tmp_path / "w.pt")
    for checkpoint in ({name: torch.ones(2)}, tmp_path / "w.pt"):
        with pytest.raises(
            featx.CheckpointError, match=r"expected (names|strings) of at most|invalid dictionary key"
        ) as refused:
            featx.load_weights(Tiny(), checkpoint)
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_more_tensors_than_any_network_has_are_refused(tmp_path, suffix):
    one = torch.ones(1)
    many = {f"layer.{n}.weight": one for n in range(20_001)}
    write_checkpoint(many if suffix == "pt" else {name: one.clone() for name in many}, tmp_path / f"w.{suffix}")
    with pytest.raises(featx.CheckpointError, match="the tensors of a network, at most 20000, got 20001"):
        featx.load_weights(Tiny(), tmp_path / f"w.{suffix}")


def test_messages_about_many_long_names_are_short(tmp_path):
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [".".join(letters[(n + k) % 26] + letters[(n * k) % 26] for k in range(200)) for n in range(4000)]
    wanted, one = nn.Module(), torch.ones(1)
    for name in names[:500]:
        wanted.register_buffer(name.replace(".", "_"), torch.zeros(1))
    for checkpoint in ({f"{name}.{n}": one for n, name in enumerate(names)}, dict.fromkeys(names, 3)):
        with pytest.raises(featx.CheckpointError) as refused:
            featx.load_weights(wanted, checkpoint)
        assert len(str(refused.value).splitlines()) <= 12
        assert len(str(refused.value)) < 4000


def test_a_header_of_safetensors_with_too_many_tensors_is_refused_unread(tmp_path):
    objects = b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(100_001))
    header = b"{" + objects + b"}"
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refuse(tmp_path / "w.safetensors", "header of .* no network has that many tensors")
