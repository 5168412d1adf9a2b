"""Hostile and damaged PyTorch files."""

import io
import pickle
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from support.untrusted_files import Runs, Strided, Tiny, damage, refuse, rewritten, saved
from torch import nn

import featx
from featx import CheckpointError
from featx.weights.readers import read_checkpoint


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
    refuse(tmp_path / "w.pt", rf"more than tensors \({Tiny.__module__}.Tiny\)")


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


def test_a_storage_that_is_said_to_end_behind_its_record_is_refused(tmp_path):
    whole = saved({"a": torch.zeros(77), "b": torch.zeros(1000)})
    (tmp_path / "w.pt").write_bytes(rewritten(whole, lambda name, data: data.replace(b"KM", b"KN")))
    refuse(tmp_path / "w.pt", "not a whole PyTorch file")


def test_records_that_overlap_are_refused(tmp_path):
    """One record of 1 MB, listed sixteen times."""
    raw = rewritten(saved({"a": torch.zeros(1 << 18)}), lambda name, data: data)
    at, end = raw.index(b"PK\x01\x02"), raw.rindex(b"PK\x05\x06")
    entries = raw[at:end] + b"".join(raw[at:end].replace(b"/data/0", b"/data/%x" % n) for n in range(1, 16))
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, *[raw[at:end].count(b"PK\x01\x02") * 16] * 2, len(entries), at, 0)
    (tmp_path / "w.pt").write_bytes(raw[:at] + entries + tail)
    refuse(tmp_path / "w.pt", "its records overlap")


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
