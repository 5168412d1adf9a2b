"""Images at addresses that fsspec supports, and file systems that stop answering."""

from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support.solid_images import ALL, BLUE, COLORS, LIME, RED, colors, pixel_of, png, save_photos, save_tar

from featx import ArgumentError, ImageError
from featx.bulk import find_items


@pytest.fixture
def photos(tmp_path) -> Path:
    return save_photos(tmp_path / "photos")


@pytest.fixture
def tar(tmp_path) -> Path:
    return save_tar(tmp_path / "000.tar")


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    for name, color in COLORS.items():
        system.pipe(f"/photos/{name}", png(color))
    system.pipe("/photos/notes.txt", b"a.png\nmemory://photos/b/d.png\n")
    yield system
    system.rm("/photos", recursive=True)


def test_an_address_of_a_folder_gives_its_images(memory):
    items = find_items("memory://photos")
    assert colors(items) == ALL
    assert items.where(0) == "memory:///photos/a.png"


def test_ids_of_several_addresses_begin_with_them(photos):
    given = [f"file://{photos}/b", f"file://{photos}/*.png"]
    expected = [f"file://{photos}/{name}" for name in ("b/c.jpg", "b/d.png", "a.png")]
    assert find_items(given).ids == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("memory://photos/b/*.png", {"d.png": BLUE}),
        ("memory://photos/**/*.png", {"a.png": RED, "b/d.png": BLUE}),
        ("memory://photos/b/c.jpg", {"c.jpg": LIME}),
        ("memory://photos/notes.txt", {"a.png": RED, "memory://photos/b/d.png": BLUE}),
    ],
)
def test_addresses_of_files_patterns_and_lists_are_read(memory, address, expected):
    assert colors(find_items(address)) == expected


def test_an_address_of_a_tar_gives_the_images_in_it(memory, tar):
    memory.pipe("/photos/000.tar", tar.read_bytes())
    assert colors(find_items("memory://photos/000.tar")) == {"x.png": RED, "sub/y.png": BLUE}


def test_an_address_of_a_pattern_of_tars_gives_the_images_in_them(memory, tar):
    for name in ("000.tar", "001.tar"):
        memory.pipe(f"/photos/{name}", tar.read_bytes())
    items = find_items("memory://photos/*.tar")
    assert items.ids == [f"{name}.tar/{member}" for name in ("000", "001") for member in ("x.png", "sub/y.png")]
    assert items.where(3) == "memory:///photos/001.tar/sub/y.png"
    assert set(colors(items).values()) == {RED, BLUE}


@pytest.mark.parametrize(
    ("address", "problem"),
    [("memory://nowhere", "no such file or folder: memory://nowhere"), ("moon://photos", "moon://photos: ")],
)
def test_an_address_that_leads_nowhere_is_refused(address, problem):
    with pytest.raises(ArgumentError, match=problem):
        find_items(address)


def test_an_address_that_vanished_is_an_error_of_its_own(memory):
    items = find_items("memory://photos")
    memory.rm("/photos/a.png")
    with pytest.raises(ImageError, match="cannot be fetched: FileNotFoundError"):
        items.read(0)


class Faltering:
    """Has a file system not answer the first so many times that it is asked for a file."""

    def __init__(self, monkeypatch, silent):
        self.asked, self.silent, self.answer = 0, silent, MemoryFileSystem.cat_file
        monkeypatch.setattr("featx.bulk.filesystems.FIRST_WAIT", 0.001)
        monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *args, **kwargs: self.ask(*args, **kwargs))

    def ask(self, *args, **kwargs):
        self.asked += 1
        if self.asked <= self.silent:
            raise TimeoutError("no answer")
        return self.answer(*args, **kwargs)


@pytest.mark.parametrize("address", ["memory://photos", "memory://photos/000.tar"])
def test_an_address_that_does_not_answer_at_first_is_asked_again(memory, tar, monkeypatch, address):
    memory.pipe("/photos/000.tar", tar.read_bytes())
    items = find_items(address)
    faltering = Faltering(monkeypatch, silent=2)
    assert items.read(0)
    assert faltering.asked == 3


def test_an_address_that_never_answers_fails_after_some_attempts(memory, monkeypatch):
    items = find_items("memory://photos")
    faltering = Faltering(monkeypatch, silent=10**6)
    with pytest.raises(ImageError, match="cannot be fetched: TimeoutError: no answer"):
        items.read(0)
    assert faltering.asked == 4


def test_an_address_in_a_list_that_cannot_be_read_fails_alone(photos):
    (photos / "list.txt").write_text("moon://a.png\na.png\n")
    items = find_items(photos / "list.txt")
    with pytest.raises(ImageError, match=r"cannot be fetched: .*moon"):
        items.read(0)
    assert pixel_of(items.read(1)) == RED
