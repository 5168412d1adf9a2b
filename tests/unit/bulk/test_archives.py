"""Zip and tar files of images; a damaged archive affects only its own images."""

import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.solid_images import BLUE, RED, colors, pixel_of, png, save_photos, save_tar

from featx import ArgumentError, ImageError
from featx.bulk import find_items


def save_zip(path: Path, *names: str, how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as file:
        for name in names or ("x.png", "x.txt", "sub/y.png", "__MACOSX/._x.png"):
            file.writestr(name, png("red" if "x" in name else "blue"))
    return path


def kinds(items) -> dict[str, int]:
    return dict(items.left_out.kinds)


# zips


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_gives_its_images_under_their_names(tmp_path, how):
    path = save_zip(tmp_path / "a.zip", how=how)
    items = find_items(path)
    assert colors(items) == {"x.png": RED, "sub/y.png": BLUE}
    assert items.where(1) == f"{path}/sub/y.png"
    assert kinds(items) == {".txt": 1, "sidecars of macOS or Windows": 1}


def test_zips_are_read_in_folders_and_patterns_without_other_images(tmp_path):
    save_zip(tmp_path / "0.zip", "x.png")
    save_zip(tmp_path / "1.ZIP", "y.png")
    assert colors(find_items(tmp_path)) == {"0.zip/x.png": RED, "1.ZIP/y.png": BLUE}
    assert find_items(f"{tmp_path}/*").ids == ["0.zip/x.png", "1.ZIP/y.png"]
    assert find_items(f"{tmp_path}/*.zip").ids == ["x.png"]
    save_tar(tmp_path / "2.tar")
    items = find_items(tmp_path)
    assert items.ids == ["x.png", "sub/y.png"]
    assert kinds(items) == {".zip": 2, ".txt": 1}


def test_a_zip_at_an_address_is_read(tmp_path):
    system = fsspec.filesystem("memory")
    system.pipe("/archives/a.zip", save_zip(tmp_path / "a.zip").read_bytes())
    try:
        assert colors(find_items("memory://archives/a.zip")) == {"x.png": RED, "sub/y.png": BLUE}
        assert colors(find_items("memory://archives")) == {"x.png": RED, "sub/y.png": BLUE}
    finally:
        system.rm("/archives", recursive=True)


def test_threads_read_a_zip_at_once(tmp_path):
    path = save_zip(tmp_path / "a.zip", *(f"{kind}{number}.png" for number in range(100) for kind in "xy"))
    items = find_items(path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: pixel_of(items.read(row)), range(200)))
    assert found == [RED, BLUE] * 100


def test_a_zip_that_is_another_one_now_is_read_anew(tmp_path):
    path = save_zip(tmp_path / "a.zip", "x.png", "y.png")
    assert pixel_of(find_items(path).read(0)) == RED
    items = find_items(path)
    path.unlink()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("padding.txt", "x" * 1000)
        file.writestr("x.png", png("blue"))
    assert pixel_of(items.read(0)) == BLUE
    with pytest.raises(ImageError, match=r"cannot be unpacked: .*no item named 'y\.png'"):
        items.read(1)
    path.write_text("no zip")
    with pytest.raises(ImageError, match="cannot be unpacked: File is not a zip file"):
        items.read(0)


def damage(path: Path) -> None:
    """Other bytes within the first member."""
    content = bytearray(path.read_bytes())
    content[60:64] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def encrypt(path: Path) -> None:
    """A mark that the first member is encrypted, in both of its headers."""
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    path.write_bytes(content)


def pack_otherwise(path: Path) -> None:
    """A way of packing that no program has."""
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(mark) + offset] = 77
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [(damage, "cannot be unpacked"), (encrypt, "encrypted"), (pack_otherwise, "compression method is not supported")],
)
def test_a_member_of_a_zip_that_cannot_be_read_fails_alone(tmp_path, spoil, problem):
    path = save_zip(tmp_path / "a.zip", "x.png", "y.png")
    spoil(path)
    items = find_items(path)
    with pytest.raises(ImageError, match=problem):
        items.read(0)
    assert pixel_of(items.read(1)) == BLUE


def test_of_members_of_one_name_the_last_counts_and_it_is_reported(tmp_path):
    tar = save_tar(tmp_path / "0.tar")
    with tarfile.open(tar, "a") as file:
        member = tarfile.TarInfo("x.png")
        member.size = len(png("blue"))
        file.addfile(member, io.BytesIO(png("blue")))
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as file:
        for name, color in (("x.png", "red"), ("sub/y.png", "blue")):
            file.writestr(name, png(color))
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("x.png", png("blue"))
    for path in (tar, tmp_path / "0.zip"):
        items = find_items(path)
        assert colors(items) == {"sub/y.png": BLUE, "x.png": BLUE}
        told = "is there several times: the last one counts, as in unpacking"
        assert dict(items.left_out.remarks) == {f"{path}/x.png": told}


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.TAR.XZ", "a.7z", "a.rar"])
def test_an_archive_that_is_compressed_as_a_whole_is_refused_with_what_to_do(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ArgumentError, match=r"is compressed as a whole, .*: unpack it, or pack the images as \.tar or"):
        find_items(tmp_path / name)
    with pytest.raises(ArgumentError, match=r"no image files .* \(unpack them, or pack them as \.tar or \.zip\)"):
        find_items(tmp_path)
    with pytest.raises(ArgumentError, match=r"no image files .* \(unpack them, or pack them as \.tar or \.zip\)"):
        find_items(f"{tmp_path}/*")


@pytest.mark.parametrize("kind", ["tar", "zip", "parquet"])
def test_a_pipe_is_not_waited_for(tmp_path, kind):
    os.mkfifo(tmp_path / f"a.{kind}")
    with pytest.raises(ArgumentError, match="is not a file"):
        find_items(tmp_path / f"a.{kind}")


# broken ones


def cut(path: Path) -> None:
    os.truncate(path, 512 + 20)


def cut_in_header(path: Path) -> None:
    """Behind the first member and its padding, and within the second header."""
    os.truncate(path, 512 + 512 + 100)


def cut_short(path: Path) -> None:
    """Before the first member of a tar or a zip, or the first row of a table, is whole."""
    os.truncate(path, 50)


def cut_between(path: Path) -> None:
    os.truncate(path, 512 + 512)


def overwrite_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(512 + 512)
        file.write(b"\xff" * 512)


def write_text(path: Path) -> None:
    path.write_text("no tar, no zip, no table" * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


MAKE = {
    "tar": save_tar,
    "zip": save_zip,
    "parquet": lambda path: pq.write_table(pa.table({"image": [png("red"), png("blue")]}), path),
}
IDS = {"tar": ["x.png", "sub/y.png"], "zip": ["x.png", "sub/y.png"], "parquet": ["0", "1"]}


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [(kind, spoil) for kind in ("zip", "parquet", "tar") for spoil in (write_text, empty, cut_short)],
)
@pytest.mark.parametrize("given", ["folder", "pattern", "files", "address"])
def test_one_of_several_that_cannot_be_read_fails_alone(tmp_path, monkeypatch, kind, spoil, given):
    for number in range(3):
        MAKE[kind](tmp_path / f"{number}.{kind}")
    spoil(tmp_path / f"1.{kind}")
    monkeypatch.chdir(tmp_path)
    files = [f"{number}.{kind}" for number in range(3)]
    named = {"folder": ".", "pattern": f"*.{kind}", "files": files, "address": f"file://{tmp_path}"}
    items = find_items(named[given])
    whole = [[f"{number}.{kind}/{name}" for name in IDS[kind]] for number in range(3)]
    assert items.ids == [*whole[0], f"1.{kind}", *whole[2]]
    assert {pixel_of(items.read(row)) for row in (0, 1, 3, 4)} == {RED, BLUE}
    assert Path(items.where(2)).name == f"1.{kind}"
    with pytest.raises(ImageError, match=rf"1\.{kind} cannot be read as a"):
        items.read(2)


@pytest.mark.parametrize(
    ("spoil", "ids"),
    [
        (cut, ["x.png", "0.tar"]),
        (cut_in_header, ["x.png", "0.tar"]),
        (overwrite_header, ["x.png", "0.tar"]),
    ],
)
def test_a_tar_that_is_damaged_has_the_members_before_that(tmp_path, spoil, ids):
    tar = save_tar(tmp_path / "0.tar")
    spoil(tar)
    items = find_items(tar)
    assert items.ids == ids
    assert find_items([tar]).ids == ids
    assert find_items([tar, *map(str, [save_photos(tmp_path / "photos")])]).ids[:2] == [f"{tar}/x.png", str(tar)]
    with pytest.raises(ImageError, match=r"it is damaged, and what is behind x\.(png|txt) is lost: "):
        items.read(1)


def test_a_tar_without_a_mark_of_its_end_is_read_and_reported(tmp_path):
    tar = save_tar(tmp_path / "0.tar")
    cut_between(tar)
    items = find_items(tar)
    assert colors(items) == {"x.png": RED}
    assert items.left_out.remarks[str(tar)].startswith("has no mark of its end")


def test_a_tar_with_more_behind_its_end_is_reported(tmp_path):
    tar = save_tar(tmp_path / "0.tar")
    tar.write_bytes(tar.read_bytes() * 2)
    items = find_items(tar)
    assert colors(items) == {"x.png": RED, "sub/y.png": BLUE}
    assert items.left_out.remarks[str(tar)].startswith("holds more behind its end")
    assert not find_items(save_tar(tmp_path / "1.tar")).left_out.remarks


def test_a_tar_whose_members_lead_back_is_read_up_to_there(tmp_path):
    """A negative size in an extended header, which has tarfile read the first members for ever."""
    tar = tmp_path / "0.tar"
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo("x.png")
        member.size = len(png("red"))
        file.addfile(member, io.BytesIO(png("red")))
        bad = tarfile.TarInfo("y.png")
        bad.pax_headers = {"size": "-1536"}
        file.addfile(bad)
    items = find_items(tar)
    assert items.ids == ["x.png", "0.tar"]
    with pytest.raises(ImageError, match=r"what is behind x\.png is lost: y\.png has a size of -1536 bytes"):
        items.read(1)


@pytest.mark.parametrize("seed", range(30))
def test_a_file_of_damaged_bytes_is_read_as_far_as_it_goes_or_refused(tmp_path, seed):
    check_damaged(tmp_path, seed)


@pytest.mark.sweep
def test_many_files_of_damaged_bytes_are_read_as_far_as_they_go_or_refused(tmp_path):
    for seed in range(30, 3000):
        check_damaged(tmp_path, seed)


def save_table(path: Path) -> Path:
    rows = [{"bytes": png(color), "path": color} for color in ("red", "blue")]
    pq.write_table(pa.table({"image": rows, "id": ["1", "2"]}), path)
    return path


def test_a_table_that_says_other_numbers_of_rows_than_its_groups_is_refused(tmp_path):
    path = save_table(tmp_path / "a.parquet")
    content = path.read_bytes()
    at = content.rindex(b"\x16\x04")  # a number, of two
    for number in (b"\x16\x06", b"\x16\x03"):
        path.write_bytes(content[:at] + number + content[at + 2 :])
        with pytest.raises(ArgumentError, match="cannot be read as a Parquet file"):
            find_items(path)


def check_damaged(folder: Path, seed: int) -> None:
    chance = Random(seed)
    for path in (save_tar(folder / "a.tar"), save_zip(folder / "a.zip"), save_table(folder / "a.parquet")):
        content = bytearray(path.read_bytes())
        for _ in range(chance.randint(1, 20)):
            content[chance.randrange(min(len(content), 4096))] = chance.choice([0, 1, 45, 48, 55, 255, 32])
        path.write_bytes(content[: chance.choice([len(content), chance.randrange(len(content))])])
        try:
            items = find_items(path)
        except ArgumentError:
            continue
        for row in range(len(items)):
            with suppress(ImageError):
                items.read(row)


# img2dataset


def save_img2dataset(folder: Path, shards: int = 2) -> Path:
    """As img2dataset writes: a tar, a table of metadata and statistics per shard."""
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as file:
            for row in range(2):
                key = f"{shard:05}{row:04}"
                contents = {"jpg": png("red"), "txt": b"a caption", "json": b"{}"}
                for ending, content in contents.items():
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
        columns = {"path": ["a", "b"], "url": ["u", "v"], "key": ["0", "1"], "status": ["success"] * 2, "width": [8, 8]}
        pq.write_table(pa.table(columns), folder / f"{shard:05}.parquet")
        (folder / f"{shard:05}_stats.json").write_text("{}")
    return folder


def test_the_tars_of_img2dataset_are_read_and_what_is_beside_them_is_not(tmp_path):
    folder = save_img2dataset(tmp_path / "set")
    ids = [f"{shard:05}.tar/{shard:05}{row:04}.jpg" for shard in range(2) for row in range(2)]
    for given in (folder, f"{folder}/*", f"file://{folder}"):
        items = find_items(given)
        assert items.ids == ids
        assert kinds(items) == {".json": 6, ".txt": 4, "tables without images": 2}
    one = save_img2dataset(tmp_path / "one", 1)
    assert find_items(one).ids == ["000000000.jpg", "000000001.jpg"]


def test_a_table_of_metadata_that_is_cut_is_reported_and_loses_nothing(tmp_path):
    folder = save_img2dataset(tmp_path / "set")
    cut(folder / "00001.parquet")
    items = find_items(folder)
    assert len(items) == 4
    assert "cannot be read as a Parquet file" in items.left_out.remarks[f"{folder}/00001.parquet"]


def test_tables_without_images_beside_others_are_counted_and_alone_refused(tmp_path):
    pq.write_table(pa.table({"image": [png("red")]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"label": [1]}), tmp_path / "b.parquet")
    items = find_items(tmp_path)
    assert colors(items) == {"0": RED}
    assert kinds(items) == {"tables without images": 1}
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(ArgumentError, match=r"b\.parquet has the columns label: expected one named path"):
        find_items(tmp_path)
    with pytest.raises(ArgumentError, match=r"b\.parquet has the columns label: expected one named path"):
        find_items([tmp_path / "b.parquet", save_photos(tmp_path / "photos")])


def test_a_tar_beside_a_table_of_images_keeps_its_ids(tmp_path):
    save_tar(tmp_path / "a.tar")
    pq.write_table(pa.table({"image": [png("red")]}), tmp_path / "a.parquet")
    assert find_items(tmp_path).ids == ["a.parquet/0", "a.tar/x.png", "a.tar/sub/y.png"]
