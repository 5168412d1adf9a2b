"""Weight files that change during or after loading: tensors stay, and bytes of two files never mix."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import randomize
from support.changed_files import CASES, NAME, save_converted, save_folder
from support.weight_places import INDEX, REPO, sharded, stored, tensors, values_from, write
from support.weight_places import published as published

import featx
from featx import CheckpointError
from featx.weights import readers

KINDS = ("w.safetensors", "w.pth", "legacy.pth", "w.npz", "w.ckpt")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def exit_codes(tmp_path_factory):
    command = [sys.executable, "-m", "support.changed_files", tmp_path_factory.mktemp("changed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(ran.stdout), ran.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case runs in a forked process")
@pytest.mark.parametrize("case", CASES)
def test_a_model_outlives_what_is_done_to_its_file(exit_codes, case):
    codes, errors = exit_codes
    assert codes[case] == 0, errors


@pytest.mark.parametrize(
    ("name", "save"), [("model.safetensors", save_folder), ("w.safetensors", save_converted), ("w.pth", save_converted)]
)
def test_a_save_that_does_not_end_leaves_the_old_file(tmp_path, monkeypatch, name, save):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    model = featx.create_model(NAME)
    (tmp_path / name).write_bytes(stored(name))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(featx.OutputError, match="No space left"):
        save(model, tmp_path / name)
    assert (tmp_path / name).read_bytes() == stored(name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


# while it is read


def meddling(monkeypatch, name, before=None, after=None):
    """Let the reader of such files find the file changed by `before`, and change it with `after` at its end."""
    suffix = Path(name).suffix
    reader = readers.READERS[suffix]

    def meddled(path, file, mapped):
        if before is not None:
            before(path)
        held = reader(path, file, mapped)
        if after is not None:
            after(path)
        return held

    monkeypatch.setitem(readers.READERS, suffix, meddled)


def longer(path):
    with path.open("ab") as file:
        file.write(b"more")


def shorter(path):
    os.truncate(path, path.stat().st_size - 1)


def overwritten(path):
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))  # as a clock that is coarser than this test has it


CHANGES = [longer, shorter, overwritten]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_written_to_while_it_is_read_is_an_error(tmp_path, monkeypatch, name, when, change):
    (tmp_path / name).write_bytes(stored(name))
    meddling(monkeypatch, name, **{when: change})
    with pytest.raises(CheckpointError, match=rf"{name} was changed while it was read: load it again"):
        values_from(tmp_path / name)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_end(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(stored(name))
    (tmp_path / "new").write_bytes(stored(name, tensors(2)))
    meddling(monkeypatch, name, before=lambda path: os.replace(tmp_path / "new", path))
    assert values_from(tmp_path / name) == [1, 1]
    monkeypatch.undo()
    assert values_from(tmp_path / name) == [2, 2]


def test_shards_of_two_saves_never_mix(tmp_path, monkeypatch):
    folder, new = write(tmp_path / "w", sharded(1)), write(tmp_path / "new", sharded(2))

    def replaced(path):
        for shard in new.glob("*.safetensors"):
            os.replace(shard, folder / shard.name)

    meddling(monkeypatch, "w.safetensors", after=replaced)
    with pytest.raises(CheckpointError, match=rf"{INDEX} was changed while it was read"):
        values_from(folder / INDEX)
    monkeypatch.undo()
    assert values_from(folder) == [2, 2]


def test_a_shard_that_vanishes_after_it_was_read_is_an_error(tmp_path, monkeypatch):
    folder = write(tmp_path / "w", sharded(1))
    meddling(monkeypatch, "w.safetensors", after=lambda path: (folder / "one.safetensors").unlink(missing_ok=True))
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        values_from(folder / INDEX)


# what is mapped

PAGES = """
import os, sys, torch, featx
def memory(line):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(line)) * 1024
def measure(name, path, mmap):
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
    resident, before = memory("VmRSS"), memory("RssAnon")
    model = featx.create_model(f"vit_{name}_patch16_224", checkpoint_path=path, mmap=mmap)
    total = sum(float(p.sum()) for p in model.parameters())
    size = os.path.getsize(path)
    return (memory("VmHWM") - resident) / size, (memory("RssAnon") - before) / size
for kind in ("safetensors", "pth"):
    for mmap in (None, True):
        measure("tiny", f"tiny.{kind}", mmap)
        print(*measure("small", f"small.{kind}", mmap))
"""


@linux
def test_a_file_takes_its_size_in_memory_and_a_mapped_one_nothing(tmp_path):
    for name in ("tiny", "small"):
        state = featx.create_model(f"vit_{name}_patch16_224").state_dict()
        for kind in ("safetensors", "pth"):
            (tmp_path / f"{name}.{kind}").write_bytes(stored(f"w.{kind}", state))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is returned
    command = [sys.executable, "-c", PAGES]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    shares = [tuple(map(float, line.split())) for line in ran.stdout.splitlines()]
    assert max(peak for peak, _ in shares) < 1.15
    assert [round(own) for _, own in shares] == [1, 0, 1, 0]


def is_mapped(path: Path) -> bool:
    """Whether this process maps the file, or the file that the path is a link to."""
    return str(path.resolve()) in Path("/proc/self/maps").read_text()


@linux
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize(("mmap", "expected"), [(None, False), (False, False), (True, True)])
def test_files_are_mapped_only_if_asked_for(tmp_path, name, mmap, expected):
    state = randomize(featx.create_model(NAME)).state_dict()
    (tmp_path / name).write_bytes(stored(name, state))
    model = featx.create_model(NAME, checkpoint_path=tmp_path / name, mmap=mmap)
    assert is_mapped(tmp_path / name) == expected
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    with torch.no_grad():
        model.get_parameter("conv_stem.weight").zero_()  # pages are private
    assert featx.load_weights(model, tmp_path / name).loaded
    assert torch.equal(model.conv_stem.weight, state["conv_stem.weight"])


@linux
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(("mmap", "expected"), [(None, True), (False, False)])
def test_the_hubs_cache_is_mapped_unless_refused(published, tmp_path, name, mmap, expected):
    published.files = {name: stored(name, randomize(featx.create_model(NAME)).state_dict())}
    model = featx.create_model(NAME, checkpoint_path=f"hf-hub:{REPO}", mmap=mmap)
    (file,) = (tmp_path / "cache").glob(f"**/{name}")
    assert is_mapped(file) == expected
    own = featx.create_model(NAME, checkpoint_path=file)  # who names a file may save over it
    del model
    assert not is_mapped(file)
    assert own.training


@linux
def test_every_function_that_takes_a_file_takes_mmap(tmp_path):
    path = tmp_path / "w.pth"
    segmenter = featx.create_segmenter("linear", NAME, num_classes=2)
    torch.save(segmenter.state_dict(), path)
    mapped = featx.create_segmenter("linear", NAME, num_classes=2, checkpoint_path=path, mmap=True)
    assert is_mapped(path)
    assert torch.equal(mapped.state_dict()["head.classifier.weight"], segmenter.state_dict()["head.classifier.weight"])


def test_values_at_odd_places_are_read_and_mapped(tmp_path):
    header = {
        "small": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
        "none": {"dtype": "F64", "shape": [0, 4], "data_offsets": [11, 11]},
        "one": {"dtype": "BF16", "shape": [], "data_offsets": [11, 13]},
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    data = bytes([1, 2, 3]) + torch.tensor([0.5, -2.0]).numpy().tobytes() + bytes([0x80, 0x3F])
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    for mapped in (False, True):
        state = readers.read_checkpoint(path, mapped)
        assert state["small"].tolist() == [1, 2, 3]
        assert state["a"].tolist() == [0.5, -2.0]
        assert state["none"].shape == (0, 4)
        assert state["one"].item() == 1
        assert all(tensor.data_ptr() % tensor.dtype.itemsize == 0 for tensor in state.values())
