"""A conversion is written whole or not at all: beside another one, on a full disk, and when it is killed."""

import asyncio
import os
import shutil
import tarfile
import threading
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from support.extraction import extract_threes, index, small_extractor, ten_colors
from support.filesystem_limits import file_size_limit, mounted
from support.fork_server import Killer, fork_server
from zarr.storage import LocalStore

import featx
from featx import FeatureDataset, FeatxError, OutputError
from featx.bulk import check_files, converters, merge, stats, write_index
from featx.bulk.converters import Format, convert
from featx.bulk.parquet_reader import cell_text
from featx.viz import save_figure
from featx.whole_files import alone

FORMATS = get_args(Format)


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> Path:
    """Vectors of nine images, and one that failed."""
    folder = tmp_path_factory.mktemp("vectors")
    extract_threes(ten_colors(folder / "in"), small_extractor(), folder / "maps", pooling="mean")
    return folder / "maps"


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a folder, or the file itself, and of tars their members, without the time they were written."""
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    found = {str(one.relative_to(path)): one.read_bytes() for one in files if one.suffix != ".tar"}
    for one in files:
        if one.suffix == ".tar":
            with tarfile.open(one) as tar:
                found |= {f"{one.name}/{member.name}": tar.extractfile(member).read() for member in tar}
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_of_two_conversions_at_once_one_is_whole_and_the_other_is_refused(maps, tmp_path, format, monkeypatch):
    convert(maps, tmp_path / "expected", format)
    ended: list[object] = []
    meeting, read = threading.Barrier(2), FeatureDataset.__init__

    def meet(dataset: FeatureDataset, *given: object, **named: object) -> None:
        read(dataset, *given, **named)  # pyright: ignore[reportArgumentType]
        meeting.wait(30)  # so that both are about to write

    monkeypatch.setattr(FeatureDataset, "__init__", meet)

    def run() -> None:
        try:
            ended.append(convert(maps, tmp_path / "out", format))
        except FeatxError as error:
            ended.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [one for one in ended if isinstance(one, OutputError)]
    assert [one for one in ended if one not in refused] == [9]
    assert len(refused) == 1
    assert "another process is writing" in str(refused[0]) or "out exists: name a new one" in str(refused[0])
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out"]


def test_a_conversion_that_is_being_written_is_reported_with_its_process(maps, tmp_path):
    with (
        alone(tmp_path / "out"),
        pytest.raises(OutputError, match=r"another process is writing .*out \(\.out\.lock is held by process \d+ on "),
    ):
        convert(maps, tmp_path / "out", "npy")


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_an_error_and_leaves_nothing(maps, tmp_path, format):
    with mounted(tmp_path / "disk", "size=4k"):
        with pytest.raises(OutputError, match=r"cannot write .*disk/out: .*No space left on device"):
            convert(maps, tmp_path / "disk/out", format)
        assert not list((tmp_path / "disk").iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_cannot_grow_is_an_error_and_leaves_nothing(maps, tmp_path, format):
    with file_size_limit(100), pytest.raises(OutputError, match=r"cannot write .*out: .*arge"):
        convert(maps, tmp_path / "out", format)
    assert not list(tmp_path.iterdir())


def test_a_write_of_zarr_that_outlasts_an_error_leaves_nothing(maps, tmp_path, monkeypatch):
    prompt = LocalStore.set_if_not_exists

    async def late(self, key, value):
        await asyncio.sleep(0.1)
        await prompt(self, key, value)

    monkeypatch.setattr(LocalStore, "set_if_not_exists", late)  # of the group, beside the array's, which fails at once
    with file_size_limit(100), pytest.raises(OutputError, match=r"cannot write .*out: .*arge"):
        convert(maps, tmp_path / "out", "zarr")
    time.sleep(0.3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_names_with_colons_are_written_like_any(maps, tmp_path, format, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert convert(maps, "a:b", format) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["a:b"]


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_a_file_is_not_a_folder_for_a_conversion(maps, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"file exists: name a new one|cannot write .*file/out: "):
        convert(maps, tmp_path / place, "npy")
    assert (tmp_path / "file").read_text() == "mine"


def test_arrays_are_not_mapped(maps, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a mapped file ends the process where the disk is full")

    monkeypatch.setattr(converters.np.lib.format, "open_memmap", refuse)
    monkeypatch.setattr(converters.np, "memmap", refuse)
    assert convert(maps, tmp_path / "out", "npy") == 9


@pytest.mark.sweep
@pytest.mark.parametrize("format", FORMATS)
def test_a_conversion_killed_at_any_moment_is_whole_or_not_there(tmp_path, format):
    """It is done again by the same command, which leaves nothing of the one that was killed."""
    images = tmp_path / "in"
    extract_threes(ten_colors(images), small_extractor(), tmp_path / "maps", pooling="mean")
    killed = 0
    with fork_server(__name__, "pyarrow.parquet", "webdataset", "zarr") as context:

        def started(out: Path) -> ForkServerProcess:
            process = context.Process(target=convert, args=(tmp_path / "maps", out, format))
            process.start()
            return process

        kill = Killer(lambda number: started(tmp_path / f"whole-{number}"))
        for turn in range(12):
            out = tmp_path / "turns" / f"{turn}"
            killed += kill(started(out))
            if not (was_whole := out.exists()):
                assert convert(tmp_path / "maps", out, format) == 9
            assert contents(out) == contents(tmp_path / "whole-0")
            left = {path.name for path in out.parent.iterdir() if path.name.startswith(f".{turn}.")}
            # one killed after its last step leaves the file of its lock, which nothing holds
            assert left <= ({f".{turn}.lock"} if was_whole else set())
    assert killed > 4  # the others were done before


@pytest.mark.parametrize("format", FORMATS)
def test_names_that_are_no_unicode_are_written_by_every_format_and_the_index(tmp_path, format):
    images = ten_colors(tmp_path / "in")
    os.rename(os.fsencode(images / "3.png"), os.fsencode(images) + b"/\xff.png")
    extract_threes(images, small_extractor(), tmp_path / "maps", pooling="mean")
    assert FeatureDataset(tmp_path / "maps").by_id(r"\xff.png").size == (40, 40)
    assert convert(tmp_path / "maps", tmp_path / "out", format) == 9
    assert r"\xff.png" in [row["id"] for row in index(tmp_path / "maps")]
    if format == "parquet":
        assert r"\xff.png" in pq.read_table(tmp_path / "out").column("id").to_pylist()


COMMANDS = {
    "index": lambda maps, place: write_index(place / "maps"),
    "merge": lambda maps, place: merge([maps], place / "maps"),
    "convert": lambda maps, place: convert(maps, place / "out", "npy"),
    "save": lambda maps, place: featx.save(featx.create_model("test_efficientnet"), place / "out"),
    "picture": lambda maps, place: save_figure(Figure(), place / "out.png"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_takes_no_writing_is_an_error_of_every_writer(maps, tmp_path, name):
    with mounted(tmp_path, "size=1m") as libc:
        shutil.copytree(maps, tmp_path / "maps")
        assert libc.mount(b"none", bytes(tmp_path), b"tmpfs", 33, b"") == 0  # the same, read-only
        with pytest.raises(OutputError, match=r"cannot write .*: .*Read-only file system"):
            COMMANDS[name](maps, tmp_path)


def test_stored_maps_on_a_disk_that_takes_no_writing_are_read(maps, tmp_path):
    with mounted(tmp_path, "size=1m") as libc:
        shutil.copytree(maps, tmp_path / "maps")
        assert libc.mount(b"none", bytes(tmp_path), b"tmpfs", 33, b"") == 0
        assert stats(tmp_path / "maps").written == 9
        assert check_files(tmp_path / "maps").sound == 4


def test_texts_that_utf_8_cannot_hold_are_written_to_tables_as_escapes():
    assert cell_text("\ud800 ä\udcff\0") == "\\ud800 ä\\udcff\0"
    assert pa.array([cell_text("\udcff")]).to_pylist() == ["\\udcff"]
