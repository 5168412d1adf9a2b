"""Files without weights, without values, or larger than memory: a specific error and no side effect."""

import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from support.untrusted_files import Strided, Tiny, entry, refuse, rewritten, saved, write_safetensors

import featx
from featx import CheckpointError
from featx.weights.convert import inspect


def refuse_tensors(problem: str, **tensors: torch.Tensor) -> None:
    model = Tiny()
    with pytest.raises(CheckpointError, match=problem):
        featx.load_weights(model, {"a": torch.zeros(2), "count": torch.tensor(1), **tensors})
    assert model.a.tolist() == [1, 2]
    assert model.count == 5


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
        ("count", torch.tensor(5.5), r"mistyped   count: torch.float32, the model needs torch.int64"),
        ("count", torch.tensor(torch.inf), r"mistyped   count: torch.float32, the model needs torch.int64"),
        ("a", torch.tensor(1.0), r"misshaped  a: \(\), the model needs \(2,\)"),
        ("count", torch.tensor([1, 2]), r"misshaped  count: \(2,\), the model needs \(\)"),
        ("count", torch.tensor([[1]]), r"misshaped  count: \(1, 1\), the model needs \(\)"),
        ("a", torch.zeros(2, device="meta"), "no values  a: it is on the meta device"),
        ("a", torch.zeros(0), r"misshaped  a: \(0,\)"),
        ("a", torch.zeros(2, 1), r"misshaped  a: \(2, 1\)"),
    ],
)
def test_tensors_of_another_kind_are_refused(name, tensor, problem):
    refuse_tensors(problem, **{name: tensor})


@pytest.mark.parametrize("count", [torch.tensor([5]), torch.tensor(5.0), torch.tensor([5], dtype=torch.int32)])
def test_numbers_that_load_state_dict_accepts_are_loaded(count):
    model, reference = Tiny(), Tiny()
    reference.load_state_dict({"a": torch.ones(2), "count": count})
    featx.load_weights(model, {"a": torch.ones(2), "count": count})
    assert model.count.dtype == torch.int64
    assert model.count.item() == reference.count.item() == 5


@pytest.mark.parametrize(("dtype", "value"), [("F8_E4M3", 1.0), ("F8_E5M2", 0.5), ("F8_E8M0", 2.0**-71)])
def test_small_floats_are_widened(tmp_path, dtype, value):
    header = {"a": entry(0, 2, dtype=dtype), "count": entry(2, 10, (), "I64")}
    path, model = write_safetensors(tmp_path / "w.safetensors", header, bytes([0x38, 0x38]) + bytes(8)), Tiny()
    featx.load_weights(model, path)
    assert model.a.tolist() == [value, value]


def test_floats_of_four_bits_are_refused(tmp_path):
    header = {"a": entry(0, 2, (4,), "F4"), "count": entry(2, 10, (), "I64")}
    refuse(
        write_safetensors(tmp_path / "w.safetensors", header, bytes(10)), "'a' is of type 'F4', which cannot be read"
    )


# memory

BOMBS = """
import sys, torch, featx
from featx.weights.readers import read_checkpoint

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
