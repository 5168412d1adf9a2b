"""Files made to do harm, or damaged so that they might: an error that says what is wrong, and nothing else happens."""

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import featx
from featx import CheckpointError
from featx.weights.convert import inspect
from featx.weights.read import read_checkpoint


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("count", torch.tensor(5))


def refuse(path: Path, problem: str) -> None:
    """Loading the file raises CheckpointError, which says `problem` and the file, and changes nothing."""
    model = Tiny()
    with pytest.raises(CheckpointError, match=problem) as refused:
        featx.load_weights(model, path)
    assert str(path) in str(refused.value)
    assert model.a.tolist() == [1, 2]
    assert model.count == 5


def refuse_tensors(problem: str, **tensors: torch.Tensor) -> None:
    model = Tiny()
    with pytest.raises(CheckpointError, match=problem):
        featx.load_weights(model, {"a": torch.zeros(2), "count": torch.tensor(1), **tensors})
    assert model.a.tolist() == [1, 2]
    assert model.count == 5


# safetensors


def entry(start: int, end: int, shape=(2,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def write_safetensors(path: Path, header: dict | bytes, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "problem"),
    [
        ({"a": entry(0, 8), "count": entry(4, 12, (), "I64")}, 12, "invalid offset"),
        ({"a": entry(0, 8), "count": entry(12, 20, (), "I64")}, 20, "invalid offset"),
        ({"a": entry(0, 8), "count": entry(8, 16, (), "I64")}, 12, "not fully covered"),
        ({"a": entry(0, 8)}, 12, "not fully covered"),
        ({"a": entry(8, 0)}, 8, "not a whole safetensors file"),
        ({"a": entry(0, 2**63)}, 8, "not a whole safetensors file"),
        ({"a": entry(0, 8, (3,))}, 8, "invalid shape"),
        ({"a": entry(0, 8, dtype="F64")}, 8, "invalid shape"),
        ({"a": entry(0, 8, dtype="F31")}, 8, "unknown variant `F31`"),
        ({"a": entry(0, 12, (16,), "F6_E2M3")}, 12, "F6_E2M3"),
        ({"a": entry(0, 8, (-2,))}, 8, "invalid value"),
        ({"a": entry(0, 8, (2**40, 2**40))}, 8, "overflow"),
        ({"a": entry(0, 0, (2**40, 2**40, 0))}, 0, "overflow"),
        ({"a": entry(0, 0, (2**63, 0))}, 0, "not a whole safetensors file"),
        (b'{"a":' + b"[" * 100_000, 0, "recursion limit"),
        (b"[1]", 0, "invalid type"),
        (b"\xff\xfe", 0, "not a whole safetensors file"),
        ({"__metadata__": {"a": 1}, "a": entry(0, 8)}, 8, "expected a string"),
        (b'{"a":%a,"a":%a}' % ((entry(0, 8),) * 2), 8, r"twice, .*\['a'\]"),
        (b'{"a":%a,"a":%a}' % (entry(0, 8), entry(0, 8, dtype="I32")), 8, r"twice, .*\['a'\]"),
        (b'{"a":%a,"a":%a}' % (entry(0, 8), entry(8, 16)), 16, "invalid offset"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header, data, problem):
    text = header.replace(b"'", b'"') if isinstance(header, bytes) else header
    refuse(write_safetensors(tmp_path / "w.safetensors", text, bytes(data)), problem)


@pytest.mark.parametrize("length", [10 << 30, 2**63, 2**64 - 1])
def test_a_safetensors_header_that_is_said_to_be_huge_is_refused(tmp_path, length):
    refuse(write_safetensors(tmp_path / "w.safetensors", {"a": entry(0, 8)}, bytes(8), length), "header too large")


def test_a_safetensors_file_cut_anywhere_is_refused(tmp_path):
    path = write_safetensors(tmp_path / "w.safetensors", {"a": entry(0, 8)}, bytes(8))
    whole = path.read_bytes()
    assert read_checkpoint(path)["a"].tolist() == [0, 0]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="not a whole"):
            read_checkpoint(path)


def test_any_byte_of_a_safetensors_header_may_be_damaged(tmp_path):
    path = write_safetensors(
        tmp_path / "w.safetensors", {"a": entry(0, 8), "count": entry(8, 16, (), "I64")}, bytes(16)
    )
    damage(path, seed=0, times=400)


# PyTorch's files


def saved(held: object, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(held, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def rewritten(file: bytes, change=lambda name, data: data, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A PyTorch file with its members changed."""
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as old, zipfile.ZipFile(new, "w", compression) as archive:
        for name in old.namelist():
            archive.writestr(name, change(name, old.read(name)))
    return new.getvalue()


class Runs:
    """What runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Strided:
    """A tensor whose shape and strides say more than its storage holds."""

    def __init__(self, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> None:
        self.shape, self.stride, self.offset = shape, stride, offset

    def __reduce__(self):
        storage = torch.storage.TypedStorage(
            wrap_storage=torch.zeros(2).untyped_storage(), dtype=torch.float32, _internal=True
        )
        return torch._utils._rebuild_tensor_v2, (storage, self.offset, self.shape, self.stride, False, OrderedDict())


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A file that exists after something ran."""
    return tmp_path / "ran"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_pytorch_file_that_would_run_a_command_is_refused(tmp_path, trap, legacy, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(saved({"a": torch.zeros(2), "more": [{"deep": Runs(f"touch {trap}")}]}, legacy))
    refuse(path, r"more than tensors \(posix.system\).*could run code.*weights_only=False.*as safetensors")
    assert not trap.exists()


@pytest.mark.parametrize("module", ["os", "posix", "subprocess", "builtins", "torch.serialization", "featx.nothing"])
def test_a_bare_pickle_that_calls_a_function_by_name_is_refused(tmp_path, trap, module):
    path = tmp_path / "w.pt"
    path.write_bytes(f"c{module}\nsystem\n(S'touch {trap}'\ntR.".encode())
    refuse(path, r"more than tensors \([\w.]*system\).*could run code")
    assert not trap.exists()


def test_a_class_of_ones_own_in_a_pytorch_file_is_named(tmp_path):
    (tmp_path / "w.pt").write_bytes(saved({"a": torch.zeros(2), "args": Tiny()}))
    refuse(tmp_path / "w.pt", r"more than tensors \(\w*test_hostile.Tiny\)")


def test_a_torchscript_program_is_refused_with_what_to_do(tmp_path, tolerant_of_torch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "w.pt"))
    refuse(tmp_path / "w.pt", r"more than tensors \(TorchScript\).*state_dict\(\)")


def test_a_tar_file_of_the_first_pytorch_is_refused_with_what_to_do(tmp_path):
    with tarfile.open(tmp_path / "w.pt", "w:") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    refuse(tmp_path / "w.pt", r"state_dict\(\) as safetensors")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (Strided((1000,), (1,)), "not a whole PyTorch file"),
        (Strided((2,), (10**12,)), "not a whole PyTorch file"),
        (Strided((2,), (1,), offset=1), "not a whole PyTorch file"),
        (Strided((2,), (1,), offset=-1), "not a whole PyTorch file"),
        (Strided((2,), (-1,)), "not a whole PyTorch file"),
        (Strided((-2,), (1,)), "not a whole PyTorch file"),
        (Strided((2**40, 2**40), (1, 1)), "not a whole PyTorch file"),
        (Strided((10**6, 10**6), (0, 0)), "the tensors' shapes ask for 4000000000008 bytes"),
    ],
)
def test_a_tensor_that_is_larger_than_its_storage_is_refused(tmp_path, legacy, tensor, problem):
    (tmp_path / "w.pt").write_bytes(saved({"a": tensor, "count": torch.tensor(1)}, legacy))
    refuse(tmp_path / "w.pt", problem)


def test_a_storage_that_is_said_to_end_behind_the_file_is_refused(tmp_path):
    huge = rewritten(saved({"a": torch.zeros(77)}), lambda name, data: data.replace(b"KM", b"J\x00\x00\x00\x40"))
    (tmp_path / "w.pt").write_bytes(huge)
    refuse(tmp_path / "w.pt", "not a whole PyTorch file")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("tensor", "kind"),
    [(torch.zeros(2, device="meta"), "without values"), (torch.eye(2).to_sparse(), "sparse")],
)
def test_tensors_that_hold_no_plain_values_are_refused_by_name(tmp_path, legacy, tensor, kind):
    (tmp_path / "w.pt").write_bytes(saved({"a": tensor}, legacy))
    with pytest.raises(CheckpointError, match=f"expected plain tensors.*'a': '{kind}'"):
        featx.load_weights(Tiny(), tmp_path / "w.pt")


def test_a_compressed_pytorch_file_is_not_taken_for_values(tmp_path):
    (tmp_path / "w.pt").write_bytes(rewritten(saved({"a": torch.ones(2)}), compression=zipfile.ZIP_DEFLATED))
    refuse(tmp_path / "w.pt", r"is compressed.*data\.pkl.*save it again")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pytorch_file_cut_anywhere_is_refused(tmp_path, legacy):
    path, whole = tmp_path / "w.pt", saved({"a": torch.ones(2), "count": torch.tensor(1)}, legacy)
    for length in range(0, len(whole) - 1, 1 + len(whole) // 250):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"not a whole|or is damaged|could run code"):
            read_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_any_byte_of_a_pytorch_file_may_be_damaged(tmp_path, legacy):
    (tmp_path / "w.pt").write_bytes(saved({"a": torch.ones(2), "count": torch.tensor(1)}, legacy))
    damage(tmp_path / "w.pt", seed=1, times=400)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02r\x00\x00\x00\xf0.",
        b"\x80\x02000.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.",
        b"\x80\x02\x8a\xff.",
        b"\x80\x02h\x00.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02]" + b"]" * 100_000 + b"a" * 100_000 + b".",
        pickle.dumps([1, 2]),
        b"\x80\x63",
    ],
)
def test_a_pickle_of_nonsense_is_refused(tmp_path, program):
    (tmp_path / "w.pt").write_bytes(program)
    refuse(tmp_path / "w.pt", r"not a whole PyTorch file|or is damaged")


def damage(path: Path, seed: int, times: int) -> None:
    """With any byte changed the file is read, or refused with CheckpointError."""
    chance, whole = random.Random(seed), path.read_bytes()
    for _ in range(times):
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([chance.randrange(256)]) + whole[place + 1 :])
        try:
            featx.load_weights(Tiny(), path, finite=False)
        except CheckpointError:
            continue


# what is no file of weights at all


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".npz", ".ckpt"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "pointer.*Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html><html>Not found</html>", "is a web page"),
        (b"<html>Sign in</html>", "is a web page"),
    ],
)
def test_what_often_lies_where_weights_are_expected_is_called_by_its_name(tmp_path, suffix, content, problem):
    (tmp_path / f"w{suffix}").write_bytes(content)
    refuse(tmp_path / f"w{suffix}", problem)


def test_a_folder_that_is_called_like_a_file_is_refused(tmp_path):
    (tmp_path / "w.safetensors").mkdir()
    with pytest.raises(featx.WeightsNotFoundError, match=r"w\.safetensors is not a folder with one of"):
        featx.load_weights(Tiny(), tmp_path / "w.safetensors")


# values and types


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_that_are_not_finite_are_refused_by_name(value, dtype):
    refuse_tensors(r"not finite a: .*finite=False", a=torch.tensor([0, value], dtype=dtype))


def test_values_that_are_not_finite_are_taken_if_asked_for(tmp_path):
    torch.save({"a": torch.tensor([1, float("nan")]), "count": torch.tensor(1)}, tmp_path / "w.pt")
    model = Tiny()
    featx.load_weights(model, tmp_path / "w.pt", finite=False)
    assert model.a.isnan().tolist() == [False, True]


def test_large_values_are_finite():
    model = Tiny()
    featx.load_weights(model, {"a": torch.tensor([3e38, 3e38]), "count": torch.tensor(1)})
    assert model.a.isfinite().all()


def test_inspect_names_the_tensors_that_are_not_finite(tmp_path):
    torch.save(
        {"a": torch.tensor([1, float("nan")]), "b": torch.ones(1), "c": torch.tensor(-torch.inf)}, tmp_path / "w.pt"
    )
    assert inspect(tmp_path / "w.pt").not_finite == ("a", "c")


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("a", torch.tensor([1, 2]), r"mistyped   a: torch.int64, the model needs torch.float32"),
        ("a", torch.tensor([True, False]), r"mistyped   a: torch.bool"),
        ("a", torch.tensor([1j, 2]), r"mistyped   a: torch.complex64"),
        ("count", torch.tensor(5.0), r"mistyped   count: torch.float32, the model needs torch.int64"),
        ("a", torch.tensor(1.0), r"misshaped  a: \(\), the model needs \(2,\)"),
        ("count", torch.tensor([1]), r"misshaped  count: \(1,\), the model needs \(\)"),
        ("a", torch.zeros(2, device="meta"), "no values  a: it is on the meta device"),
        ("a", torch.zeros(0), r"misshaped  a: \(0,\)"),
        ("a", torch.zeros(2, 1), r"misshaped  a: \(2, 1\)"),
    ],
)
def test_tensors_of_another_kind_are_refused(name, tensor, problem):
    refuse_tensors(problem, **{name: tensor})


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_small_floats_are_widened_or_refused(tmp_path, dtype):
    header = {"a": entry(0, 2, dtype=dtype), "count": entry(2, 10, (), "I64")}
    path, model = write_safetensors(tmp_path / "w.safetensors", header, bytes([0x38, 0x38]) + bytes(8)), Tiny()
    expected = read_checkpoint(path)["a"].float()
    featx.load_weights(model, path)
    assert torch.equal(model.a.detach(), expected)


def test_floats_of_four_bits_are_refused(tmp_path):
    header = {"a": entry(0, 2, (4,), "F4"), "count": entry(2, 10, (), "I64")}
    refuse(write_safetensors(tmp_path / "w.safetensors", header, bytes(10)), "'a': 'of less than a byte'")


# memory

BOMBS = """
import sys, torch, featx
from featx.weights.read import read_checkpoint

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

model = torch.nn.Conv2d(3, 16, 3)
for path in sys.argv[1:]:
    before = peak()
    try:
        featx.load_weights(model, path)
    except featx.CheckpointError:
        print((peak() - before) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_bombs_take_no_memory(tmp_path):
    def bomb(name: str, data: bytes) -> bytes:
        return data + bytes(150 << 20) if name.endswith("data.pkl") else data

    state = {"weight": torch.ones(2)}
    files = {
        "zip.pt": rewritten(saved(state), bomb, zipfile.ZIP_DEFLATED),
        "stride.pt": saved({"weight": Strided((16, 10**9), (0, 0))}),
        "legacy.pt": saved({"weight": Strided((16, 10**9), (0, 0))}, legacy=True),
        "length.pt": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 33) + b"abc.",
        "text.bin": b"\x80\x02X" + struct.pack("<I", 2**31 - 1) + b"abc.",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    write_safetensors(tmp_path / "a.safetensors", {"a": entry(0, 8)}, bytes(8), 10 << 30)
    paths = sorted(map(str, tmp_path.iterdir()))
    ran = subprocess.run([sys.executable, "-c", BOMBS, *paths], capture_output=True, text=True, check=True, timeout=120)
    grown = [int(line) for line in ran.stdout.split()]
    assert len(grown) == len(paths)
    assert max(grown) < 64  # MiB
