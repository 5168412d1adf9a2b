"""Faults in a long run are reported, affect only their own image, and never shift rows."""

import errno
import os
import random
import resource
import signal
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.extraction import names, noise, noises
from support.filesystem_limits import file_size_limit, mounted
from support.fork_server import Killer, fork_server
from torch import Tensor, nn

import featx
from featx import FeatureDataset, FeatureExtractWrapper, InputError, OutputError, extract
from featx.bulk import Items, find_items
from featx.bulk import inference as model_module

SIZE = 16


class Invert(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / x


class Net(nn.Module):
    """One over the mean of four by four pixels: infinite for what is black, and different for all else."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.invert = nn.AvgPool2d(4), Invert()
        self.feature_info = [{"chs": 3, "reduction": 4, "name": "invert"}]
        self.data_config = featx.DataConfig((SIZE, SIZE), mean=(0, 0, 0), std=(1, 1, 1), crop=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.invert(self.pool(x))


@pytest.fixture
def net() -> FeatureExtractWrapper:
    return FeatureExtractWrapper(Net()).eval()


def expected(net: FeatureExtractWrapper, path: Path) -> Tensor:
    with Image.open(path) as image, torch.inference_mode():
        return net(featx.transform(net)(image)[None])[0][0]


# a hundred broken images among a thousand


def bomb(path: Path) -> None:
    """A PNG of 400 million pixels in some dozen bytes."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def cut(path: Path) -> None:
    noise(1).resize((200, 200)).save(path, "JPEG")
    os.truncate(path, path.stat().st_size // 2)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


BROKEN = {
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text": (lambda path: path.write_text("a letter"), "not an image in any format that Pillow reads"),
    "cut": (cut, "truncated"),
    "bomb": (bomb, "decompression bomb"),
    "black": (lambda path: Image.new("RGB", (20, 24)).save(path), "infinite values or NaN"),
    "float": (lambda path: Image.new("F", (20, 24), 0.5).save(path, "TIFF"), "floating-point pixels"),
    "strip": (lambda path: Image.new("RGB", (2000, 3), "red").save(path), "one side is more than 100 times the other"),
    "loop": (loop, "Too many levels of symbolic links"),
    "pipe": (pipe, "it is not a file"),
    "vanished": (lambda path: path.unlink(), "No such file or directory"),
}


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.sweep)])
def test_every_tenth_image_broken_in_ten_ways_costs_its_row_and_changes_no_other(tmp_path, net, count):
    folder = noises(tmp_path / "in", count)
    items = find_items(folder)  # so that those that vanish were listed
    victims = random.Random(0).sample(items.ids, count // 10)
    kinds = dict(zip(victims, [*BROKEN] * (count // 100), strict=True))
    for victim, kind in kinds.items():
        BROKEN[kind][0](folder / victim)
    summary = extract(items, net, tmp_path / "out", rows_per_shard=64)
    assert summary.written == 9 * count // 10
    assert {id_: BROKEN[kind][1] in summary.failed[id_] for id_, kind in kinds.items()} == dict.fromkeys(kinds, True)
    assert Counter(kinds[id_] for id_ in summary.failed) == dict.fromkeys(BROKEN, count // 100)
    dataset = FeatureDataset(tmp_path / "out")
    assert dataset.ids == [id_ for id_ in items.ids if id_ not in kinds]
    for features in dataset:
        assert torch.equal(features.maps["invert"], expected(net, folder / features.id))


def test_maps_of_different_images_differ(tmp_path, net):
    folder = noises(tmp_path / "in", 20)
    maps = [expected(net, path) for path in sorted(folder.iterdir())]
    assert all(not torch.equal(maps[one], maps[other]) for one in range(20) for other in range(one))


# memory


class Small(FeatureExtractWrapper):
    """Has memory for so many images at once."""

    room = 3
    seen: list[int]

    def forward(self, x: Tensor):
        self.seen.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return super().forward(x)


def small(room: int) -> Small:
    made = Small(Net()).eval()
    made.room, made.seen = room, []
    return made


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tmp_path, net):
    folder, model = noises(tmp_path / "in", 20), small(3)
    extract(folder, model, tmp_path / "out", batch_size=16, streams=1)
    assert max(model.seen[5:]) <= 2  # what fitted is kept to
    assert len(FeatureDataset(tmp_path / "out")) == 20
    for features in FeatureDataset(tmp_path / "out"):
        assert torch.equal(features.maps["invert"], expected(net, folder / features.id))


def test_a_batch_size_is_found_that_fits(tmp_path):
    folder, model = noises(tmp_path / "in", 20), small(6)
    extract(folder, model, tmp_path / "out", batch_size=None, streams=1)
    assert max(size for size in model.seen if size <= 6) == 4
    assert max(model.seen) == 8  # which did not fit
    assert extract(folder, model, tmp_path / "out", batch_size=None).made == 0


def test_without_memory_for_one_image_it_ends_with_what_to_know(tmp_path):
    with pytest.raises(InputError, match="there is not enough memory for one image of 16x16 pixels"):
        extract(noises(tmp_path / "in", 2), small(0), tmp_path / "out")


def test_other_errors_of_the_model_are_not_taken_for_want_of_memory(tmp_path, monkeypatch):
    def broken(self, x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(model_module.InferenceModel, "_run", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        extract(noises(tmp_path / "in", 2), small(9), tmp_path / "out")


# where results go


def test_a_file_that_cannot_grow_ends_the_run_and_leaves_no_part_of_it(tmp_path, net):
    images = noises(tmp_path / "in", 200)
    with file_size_limit(20_000), pytest.raises(OutputError, match=r"cannot write .*maps-000000\.safetensors: .*arge"):
        extract(images, net, tmp_path / "out", rows_per_shard=200)
    assert names(tmp_path / "out") == ["index.parquet", "meta.json"]
    assert extract(images, net, tmp_path / "out").written == 200


def test_a_full_disk_ends_the_run_which_resumes_when_there_is_room(tmp_path, net):
    images = noises(tmp_path / "in", 200)
    with mounted(tmp_path / "disk", "size=48k") as libc:
        with pytest.raises(OutputError, match=r"cannot write .*maps-00000\d\.safetensors: .*No space left on device"):
            extract(images, net, tmp_path / "disk/out", rows_per_shard=20)
        left = names(tmp_path / "disk/out")
        assert "maps-000000.safetensors" in left
        assert not [name for name in left if name.startswith(".")]
        assert len(FeatureDataset(tmp_path / "disk/out")) > 0
        assert libc.mount(b"none", bytes(tmp_path / "disk"), b"tmpfs", 32, b"size=1m") == 0  # larger
        summary = extract(images, net, tmp_path / "disk/out", rows_per_shard=20)
        assert summary.written == 200
        assert summary.made == 10 - len([name for name in left if name.startswith("maps-")])
        for features in FeatureDataset(tmp_path / "disk/out"):
            assert torch.equal(features.maps["invert"], expected(net, images / features.id))


def test_a_disk_that_takes_no_writing_is_refused_before_the_model_runs(tmp_path, net):
    with mounted(tmp_path / "disk", "ro"), pytest.raises(OutputError, match=r"cannot write to .*: .*Read-only"):
        extract(noises(tmp_path / "in", 2), net, tmp_path / "disk/out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path, net):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(OutputError, match=r"cannot write to .*out: .*Permission denied"):
        extract(noises(tmp_path / "in", 2), net, tmp_path / "out")


@pytest.mark.parametrize("out", ["file", "file/out"])
def test_a_file_is_not_a_folder_for_maps(tmp_path, net, out):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=rf"cannot write to .*{out}: "):
        extract(noises(tmp_path / "in", 2), net, tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_up_while_the_index_is_written_is_reported(tmp_path, net, monkeypatch):
    import pyarrow.parquet

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "ParquetWriter", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*index\.parquet: .*No space left"):
        extract(noises(tmp_path / "in", 2), net, tmp_path / "out")
    monkeypatch.undo()
    assert extract(tmp_path / "in", net, tmp_path / "out").made == 0
    assert (tmp_path / "out/index.parquet").exists()


# processes that end


@dataclass(frozen=True)
class Deadly:
    """Noises, one of which ends whoever reads it."""

    folder: Path
    names: Sequence[str]
    killer: int

    def where(self, index: int) -> str:
        return f"deadly/{self.names[index]}"

    def read(self, index: int) -> bytes:
        if index == self.killer:
            os.kill(os.getpid(), signal.SIGKILL)
        return (self.folder / self.names[index]).read_bytes()


@pytest.mark.sweep
def test_an_image_that_ends_the_process_that_decodes_it_fails_alone(tmp_path, net):
    folder = noises(tmp_path / "in", 12)
    items = Items([Deadly(folder, [path.name for path in sorted(folder.iterdir())], 5)], [""])
    summary = extract(items, net, tmp_path / "out", decoders="processes", workers=2)
    assert summary.failed == {"0005.png": "the process that decoded it died"}
    assert summary.written == 11
    for features in FeatureDataset(tmp_path / "out"):
        assert torch.equal(features.maps["invert"], expected(net, folder / features.id))


def whole_run(images: Path, out: Path) -> None:
    torch.set_num_threads(1)
    extract(images, FeatureExtractWrapper(Net()).eval(), out, rows_per_shard=4, batch_size=2)


@pytest.fixture
def started() -> Iterator[Callable[[Path, Path], ForkServerProcess]]:
    """Starts a process that extracts a folder of images into another one."""
    with fork_server(__name__, "featx.bulk", "torchvision.transforms.v2") as context:

        def start(images: Path, out: Path) -> ForkServerProcess:
            process = context.Process(target=whole_run, args=(images, out))
            process.start()
            return process

        yield start


@pytest.mark.sweep
def test_runs_killed_at_any_moment_resume_to_the_same_files(tmp_path, started):
    images = noises(tmp_path / "in", 120)
    kill = Killer(lambda number: started(images, tmp_path / f"whole-{number}"))
    whole = {path.name: path.read_bytes() for path in sorted((tmp_path / "whole-0").glob("maps-*"))}
    assert len(whole) == 30
    kills = found = 0
    for turn in range(20):
        out = tmp_path / f"{turn}"
        kills += kill(started(images, out))
        found += len(list(out.glob("maps-*"))) if out.exists() else 0
        process = started(images, out)
        process.join()
        assert process.exitcode == 0
        assert {path.name: path.read_bytes() for path in sorted(out.glob("maps-*"))} == whole
        assert not list(out.glob(".*.part"))
        assert FeatureDataset(out).ids == sorted(path.name for path in images.iterdir())
    assert kills > 10  # the others were done before
    assert found > 20  # files that were there when a run was killed


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.sweep
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Peak memory of processes that extract 500 and 5,000 tiny images, in shards of 100."""
    noises(tmp_path / "in", 100)
    peaks = {}
    context = get_context("spawn")
    for count in (500, 5_000):
        (tmp_path / "list.csv").write_text(
            "id,path\n" + "".join(f"{i},in/{i % 100:04d}.png\n" for i in range(count)), encoding="utf-8"
        )
        ours, theirs = context.Pipe()
        process = context.Process(target=peak_of, args=(tmp_path / "list.csv", tmp_path / f"{count}", theirs))
        process.start()
        peaks[count] = ours.recv()
        process.join()
    assert peaks[5_000] < 1.1 * peaks[500]


def peak_of(images: Path, out: Path, told) -> None:
    torch.set_num_threads(1)
    extract(images, FeatureExtractWrapper(Net()).eval(), out, rows_per_shard=100)
    told.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
