"""Folders and patterns are searched completely, whatever links they contain."""

import os
from glob import glob
from pathlib import Path

import pytest

from featx.images import find_images
from featx.walk import KNOWN, LINKED, fits, is_sidecar, matching, walked


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def tree(tmp_path) -> Path:
    """Files in folders, and links: to itself, up, to a sibling and out."""
    touch(tmp_path / "other", "o.jpg")
    folder = touch(tmp_path / "in", "a.jpg", ".hidden.jpg", "b/c.jpg", "b/d/e.jpg", "b/d/f.png", "x[1]/g.jpg")
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    (folder / "b/up").symlink_to(folder)
    (folder / "out").symlink_to(tmp_path / "other")
    (folder / "file.jpg").symlink_to(folder / "a.jpg")
    return folder


def test_a_walk_gives_all_files_and_follows_no_link_to_a_folder(tree):
    told = {}
    found = sorted(walked(f"{tree}/", told.setdefault))
    files = [".hidden.jpg", "a.jpg", "b/c.jpg", "b/d/e.jpg", "b/d/f.png", "file.jpg", "self.jpg", "x[1]/g.jpg"]
    assert found == files
    assert told == {f"{tree}/b/up": KNOWN, f"{tree}/out": LINKED}


def test_a_folder_that_cannot_be_read_is_reported_with_the_reason_and_stops_nothing(tree, monkeypatch):
    lock(monkeypatch, "d")
    told = {}
    assert sorted(walked(str(tree / "b"), told.setdefault)) == ["c.jpg"]
    assert told[f"{tree}/b/d"] == "Permission denied"
    told = {}
    assert matching(f"{tree}/b/**/*.jpg", told.setdefault) == [f"{tree}/b/c.jpg"]
    assert told == {f"{tree}/b/d": "Permission denied", f"{tree}/b/up": KNOWN}


def lock(monkeypatch, name: str) -> None:
    """Have folders of this name refuse to be read; the user of tests may read everything."""
    scandir = os.scandir

    def locked(path):
        if os.path.basename(path) == name:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)


def test_entries_that_are_skipped_are_not_entered(tree):
    assert sorted(walked(str(tree), lambda *_: None, lambda entry: entry.name in ("d", "a.jpg"))) == [
        ".hidden.jpg",
        "b/c.jpg",
        "file.jpg",
        "self.jpg",
        "x[1]/g.jpg",
    ]


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "*.jpg",
        "*/*",
        "b/*.jpg",
        "?.jpg",
        "[ab].jpg",
        "b/*/e.jpg",
        "b/*/*.p*",
        "x[[]1]/*",
        "*/d/*",
        "none/*",
        "*/*/",
    ],
)
def test_patterns_match_what_glob_matches(tree, pattern):
    expected = sorted(glob(f"{tree}/{pattern}", include_hidden=True))
    assert matching(f"{tree}/{pattern}", lambda *_: None) == [path.rstrip("/") for path in expected]


@pytest.mark.parametrize(
    "pattern", ["**", "**/*", "**/*.jpg", "*/**/*.jpg", "**/d/*", "b/**/d/**/*.png", "**/**/e.jpg"]
)
def test_patterns_of_any_depth_match_what_glob_matches_but_for_links_in_a_circle(tree, pattern):
    (tree / "b/up").unlink()
    expected = {path for path in glob(f"{tree}/{pattern}", recursive=True, include_hidden=True) if os.path.isfile(path)}
    assert {path for path in matching(f"{tree}/{pattern}", lambda *_: None) if os.path.isfile(path)} == expected


def test_patterns_are_relative_to_where_the_program_runs(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert matching("b/*.jpg", lambda *_: None) == ["b/c.jpg"]
    assert matching("./b/*.jpg", lambda *_: None) == ["b/c.jpg"]
    assert matching("*.jpg", lambda *_: None) == [".hidden.jpg", "a.jpg", "file.jpg", "self.jpg"]


def test_links_in_circles_end(tmp_path):
    folders = [tmp_path / name for name in "abcdefgh"]
    for folder in folders:
        touch(folder, "1.jpg")
    for folder in folders:
        for other in folders:
            (folder / f"to {other.name}").symlink_to(other)
    told = {}
    found = matching(f"{tmp_path}/**/*.jpg", told.setdefault)
    assert set(found) >= {f"{folder}/1.jpg" for folder in folders}
    assert len(found) < 100
    assert set(told.values()) == {KNOWN}


def test_a_pattern_that_is_not_a_path_matches_nothing():
    assert matching("a\0/*", lambda *_: None) == []


def test_folders_of_any_depth_are_walked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    Path("a.jpg").touch()
    os.chdir(tmp_path)
    try:
        name = f"{'d/' * 1200}a.jpg"
        assert list(walked(".", lambda *_: None)) == [name]
        assert matching("**/*.jpg", lambda *_: None) == [name]
    finally:
        for depth in range(1200, -1, -1):  # tidying up recurses
            os.chdir(f"{tmp_path}/{'d/' * depth}")
            for path in Path().iterdir():
                path.rmdir() if path.is_dir() else path.unlink()
        os.chdir(tmp_path)


@pytest.mark.parametrize(
    ("path", "pattern", "does"),
    [
        ("a.gif", "*.gif", True),
        ("b/a.gif", "*.gif", True),
        ("b/a.gif", "b", True),
        ("b/a.gif", "b/", True),
        ("c/b/a.gif", "b", True),
        ("ab/a.gif", "b", False),
        ("b/a.gif", "a", False),
        ("b/a.gif", "b/*", True),
        ("c/b/a.gif", "b/*", False),
        ("c/b/a.gif", "*/b/*", True),
        ("c/b/a.gif", "**/b/*", True),
        ("b/a.gif", "**/b/**", True),
        ("b/c/d/a.gif", "b/c", True),
        ("b/c/d/a.gif", "b/**/a.*", True),
        ("b/c/d/a.gif", "b/*/a.*", False),
        ("a.gif", "./a.gif", True),
        ("b/a.gif", "/a.gif", False),
        ("a.gif", "/a.gif", True),
        ("a.gif", "*.jpg", False),
        ("a/" * 400 + "b", "**/" * 400 + "c", False),
    ],
)
def test_a_path_fits_a_pattern_by_a_name_or_from_its_beginning(path, pattern, does):
    assert fits(path, pattern) is does


@pytest.mark.parametrize("path", ["._a.jpg", "b/._a.jpg", ".DS_Store", "b/Thumbs.db", "__MACOSX/b/a.jpg", "__MACOSX/"])
def test_what_systems_leave_beside_images_is_known(path):
    assert is_sidecar(path)


@pytest.mark.parametrize("path", ["a.jpg", ".a.jpg", "._b/a.jpg", "._b/", "__MACOSX.jpg", "a.__MACOSX/b.jpg"])
def test_images_are_not_taken_for_what_systems_leave(path):
    assert not is_sidecar(path)


def test_images_to_show_are_found_beside_what_systems_leave(tmp_path):
    touch(tmp_path, "a.jpg", "._a.jpg", "__MACOSX/b.jpg", ".DS_Store")
    assert find_images([tmp_path]) == [tmp_path / "a.jpg"]
