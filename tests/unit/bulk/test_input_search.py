"""Files that are not images are skipped, counted and named; files of featx are never inputs; duplicates count once."""

import io
import json
import os
import struct
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.cli import SMALL
from support.cli import run as run
from support.solid_images import ALL, BLUE, RED, colors, mean_of_pixels, png, save_photos, save_tar

import featx
from featx import ArgumentError, ImageError
from featx.bulk import convert, extract, find_items


@pytest.fixture
def photos(tmp_path) -> Path:
    return save_photos(tmp_path / "photos")


def kinds(items) -> dict[str, int]:
    return dict(items.left_out.kinds)


# outputs of featx


@pytest.fixture
def net() -> featx.FeatureExtractWrapper:
    return mean_of_pixels()


def packed(folder: Path) -> Path:
    """A folder of one tar."""
    folder.mkdir()
    save_tar(folder / "0.tar")
    return folder


@pytest.mark.parametrize("kind", ["images", "tar", "table"])
@pytest.mark.parametrize("formats", [(), ("npy", "webdataset", "zarr", "parquet")])
def test_maps_written_into_an_input_are_none(tmp_path, net, kind, formats):
    folder = tmp_path / "in"
    if kind == "images":
        save_photos(folder)
    elif kind == "tar":
        packed(folder)
    else:
        folder.mkdir()
        pq.write_table(pa.table({"image": [png("red"), png("blue")]}), folder / "a.parquet")
    first = find_items(folder)
    for where in ("maps", "b/other maps"):
        extract(folder, net, folder / where, pooling="mean")
        for format in formats:
            convert(folder / where, folder / f"{where}.{format}", format)
    for again in (find_items(folder), find_items(folder, out=folder / "maps"), find_items(f"{folder}/**")):
        assert again.ids == first.ids
        assert kinds(again)["outputs of featx"] >= 2
    assert find_items(f"{folder}/**/*.*").ids == first.ids
    assert extract(folder, net, folder / "maps", pooling="mean").made == 0


def test_a_folder_for_maps_is_not_a_input_before_it_holds_any(photos):
    (photos / "out").mkdir()
    (photos / "out/maps.png").touch()
    assert find_items(photos, out=photos / "out").ids == [*ALL]
    assert find_items(photos, out=photos / "b/../out/").ids == [*ALL]
    assert find_items(photos).ids == [*ALL, "out/maps.png"]


def test_what_a_writer_left_unfinished_beside_maps_is_not_a_input(photos, net):
    extract(photos, net, photos / "maps", pooling="mean")
    (photos / ".maps.webdataset.part").mkdir()
    (photos / ".maps.webdataset.part/a.png").touch()
    (photos / "maps.parquet/x").mkdir(parents=True)
    assert find_items(photos).ids == [*ALL]


def test_a_folder_of_another_program_that_has_a_meta_json_is_searched(photos):
    (photos / "b/meta.json").write_text('{"format": "of photographs"}')
    (photos / "b/index.parquet").touch()
    assert find_items(photos).ids == [*ALL]


def test_damaged_maps_are_no_input(photos, net):
    extract(photos, net, photos / "maps", pooling="mean")
    (photos / "maps/meta.json").write_text("{")
    (photos / "maps/a.png").touch()
    assert find_items(photos).ids == [*ALL]


def test_a_folder_of_maps_given_for_images_is_refused(photos, net):
    extract(photos, net, photos / "maps", pooling="mean")
    with pytest.raises(
        ArgumentError, match=r"maps holds maps that featx wrote, and no images: name a folder of images"
    ):
        find_items(photos / "maps")
    with pytest.raises(ArgumentError, match=r"index\.parquet is written by this run: name another folder for the maps"):
        find_items(photos / "maps/index.parquet", out=photos / "maps")
    assert sorted(colors(find_items(photos / "maps/index.parquet"))) == [*ALL]


def test_maps_at_an_address_are_no_input(tmp_path, net):
    folder = packed(tmp_path / "in")
    extract(folder, net, folder / "maps", pooling="mean")
    for given in (f"file://{folder}", f"file://{folder}/**"):
        items = find_items(given)
        assert items.ids == ["x.png", "sub/y.png"]
        assert kinds(items)["outputs of featx"] == 1


# what is left out


def test_files_that_are_no_images_are_counted_by_their_endings(photos):
    for name in ("1.xyz", "2.xyz", "b/3.XYZ", "README", "c.heic_", "a.jpg.tar.gz", "x.tar", "._a.png", ".DS_Store"):
        (photos / name).touch()
    items = find_items(photos)
    assert items.ids == [*ALL]
    assert kinds(items) == {
        ".xyz": 3,
        "sidecars of macOS or Windows": 2,
        ".heic_": 1,
        ".tar": 1,
        ".tar.gz": 1,
        ".txt": 1,
        "without an ending": 1,
    }
    told = str(items.left_out)
    assert told.startswith("3 .xyz, 2 sidecars of macOS or Windows, 1 .heic_, 1 .tar, 1 .tar.gz (unpack them, or pack")
    for number in range(20):
        (photos / f"a.{number:02}").touch()
    assert str(find_items(photos).left_out).endswith("1 .05, files of 19 more kinds")


def test_images_in_heic_are_images_that_fail_without_what_reads_them(photos, net, tmp_path_factory, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (photos / "a.heic").write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(20))
    summary = extract(photos, net, tmp_path_factory.mktemp("out") / "maps")
    assert "pip install 'featx[heic]'" in summary.failed["a.heic"]


def test_without_an_image_the_error_says_what_was_there(tmp_path):
    for name in ("a.tgz", "b.tgz", "c.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ArgumentError, match=r"no image files in .*; left out: 2 \.tgz \(unpack them, .*\), 1 \.t"):
        find_items(tmp_path)


def test_what_a_pattern_matches_and_is_not_an_image_is_counted(photos):
    os.mkfifo(photos / "pipe.png")
    items = find_items(f"{photos}/*")
    assert items.ids == ["a.png"]
    assert kinds(items) == {".txt": 1, "folders that match a pattern without **": 1}
    assert items.left_out.remarks == {f"{photos}/pipe.png": "matches the pattern but is not a file"}


def test_a_folder_that_cannot_be_read_and_a_link_to_one_are_reported(tmp_path, photos, monkeypatch):
    (photos / "link").symlink_to(tmp_path)
    (photos / "lost+found").mkdir()
    scandir = os.scandir

    def locked(path):
        if os.path.basename(path) == "lost+found":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    items = find_items(photos)
    assert items.ids == [*ALL]
    assert items.left_out.remarks[f"{photos}/lost+found"] == "Permission denied"
    assert items.left_out.remarks[f"{photos}/link"].startswith("a link to a folder")
    with pytest.raises(ArgumentError, match=r"cannot look into .*lost\+found: Permission denied"):
        find_items(photos / "lost+found")


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may look into, while tests run as one who may not read everything."""
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(before)


@pytest.mark.skipif(sys.platform == "win32", reason="folders have other rights there")
def test_folders_and_files_without_the_right_to_read_stop_nothing(public):
    photos = save_photos(public / "photos")
    (photos / "lost+found").mkdir()
    (photos / "b/e.png").write_bytes(png("red"))
    save_tar(public / "1.tar")
    save_tar(public / "2.tar").chmod(0)
    for path in (photos / "lost+found", photos / "b/e.png"):
        path.chmod(0)
    for given in (photos, f"{photos}/**/*.*"):
        items = find_items(given)
        assert items.ids == [*ALL, "b/e.png"]
        assert items.left_out.remarks == {f"{photos}/lost+found": "Permission denied"}
        with pytest.raises(ImageError, match="Permission denied"):
            items.read(3)
    items = find_items([public / "1.tar", public / "2.tar"])
    assert items.ids == [f"{public}/1.tar/x.png", f"{public}/1.tar/sub/y.png", f"{public}/2.tar"]
    with pytest.raises(ArgumentError, match=r"cannot look into .*lost\+found: Permission denied"):
        find_items(photos / "lost+found")
    (photos / "lost+found").chmod(0o700)


def test_the_command_tells_people_and_machines_what_is_left_out(run, photos, tmp_path, monkeypatch):
    (photos / "link").symlink_to(photos / "b")
    (photos / "\x1b[2J.\x1b[3J").touch()
    done = run("extract", photos, *SMALL, "--out", tmp_path / "out")
    assert done.status == 0
    assert done.out.endswith(
        "left out: 1 .\\x1b[3j, 1 .txt\nremarks:\n"
        f"  {photos}/link: a link to a folder, which is not followed: name it as an input to have its images\n"
    )
    told = json.loads(run("extract", photos, *SMALL, "--out", tmp_path / "out", "--log", "json").out.splitlines()[-1])
    assert told["left_out"] == {".txt": 1, ".\x1b[3j": 1}
    assert [*told["remarks"]] == [f"{photos}/link"]


def test_the_summary_has_what_is_left_out(photos, net, tmp_path):
    assert dict(extract(photos, net, tmp_path / "out", pooling="mean").left_out.kinds) == {".txt": 1}


# what is asked to be left out


@pytest.mark.parametrize(
    ("exclude", "ids"),
    [
        ("*.jpg", ["a.png", "b/d.png"]),
        (["*.jpg", "a.*"], ["b/d.png"]),
        ("b", ["a.png"]),
        ("b/*.png", ["a.png", "b/c.jpg"]),
        ("/a.png", ["b/c.jpg", "b/d.png"]),
    ],
)
def test_what_is_excluded_is_left_out_of_folders_and_patterns(photos, exclude, ids):
    assert find_items(photos, exclude=exclude).ids == ids
    assert find_items(f"{photos}/**/*", exclude=exclude).ids == ids
    assert find_items(f"file://{photos}", exclude=exclude).ids == ids
    assert kinds(find_items(photos, exclude=exclude))["excluded"] >= 1


def test_what_is_excluded_is_left_out_of_lists_and_archives(photos, tmp_path):
    (photos / "list.csv").write_text("id,path\n1,a.png\n2,b/d.png\n")
    assert colors(find_items(photos / "list.csv", exclude="b")) == {"1": RED}
    tar = save_tar(tmp_path / "0.tar")
    assert colors(find_items(tar, exclude="sub/*")) == {"x.png": RED}
    assert colors(find_items([tar, photos], exclude=["x.png", "*.jpg", "photos/*"])) == {
        f"{tar}/sub/y.png": BLUE,
        f"{photos}/a.png": RED,
        f"{photos}/b/d.png": BLUE,
    }


def test_an_excluded_folder_is_not_looked_into(photos, monkeypatch):
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: pytest.fail(path) if path.endswith("/b") else scandir(path))
    assert find_items(photos, exclude="b").ids == ["a.png"]


def test_an_empty_pattern_is_refused(photos):
    with pytest.raises(ArgumentError, match="exclude has an empty pattern: expected some such as"):
        find_items(photos, exclude=["*.gif", ""])


def test_the_command_leaves_out_what_it_is_asked_to(run, photos, tmp_path):
    done = run("extract", photos, *SMALL, "--out", tmp_path / "out", "--exclude", "*.jpg", "--exclude", "d.*")
    assert done.status == 0
    assert done.out.startswith("maps of 1 image, ")
    assert "left out: 2 excluded, 1 .txt\n" in done.out


# images named twice


def test_an_image_named_twice_is_there_once_whatever_its_spelling(photos, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(photos)
    (tmp_path / "a link.png").symlink_to(photos / "a.png")
    (tmp_path / "list.txt").write_text("./photos/b/../a.png\n")
    others = ["./photos/a.png", photos, "photos/b/../", "link", "a link.png", "photos/**/*.png", "list.txt"]
    items = find_items(["photos", *others, f"file://{photos}", f"local://{photos}/*"])
    assert items.ids == [f"photos/{name}" for name in ALL]
    assert kinds(items)["named twice"] == 18
    assert find_items([*reversed(others)]).ids == [
        "list.txt/./photos/b/../a.png",
        "photos/b/d.png",
        "link/b/c.jpg",
    ]


def test_links_within_a_folder_and_hard_links_are_images_of_their_own(photos):
    (photos / "e.png").symlink_to("a.png")
    os.link(photos / "a.png", photos / "f.png")
    assert find_items(photos).ids == [*ALL, "e.png", "f.png"]
    assert find_items([photos, photos / "f.png"]).ids == [f"{photos}/{name}" for name in (*ALL, "e.png", "f.png")]


def test_a_tar_named_twice_is_there_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tar(tmp_path / "0.tar")
    (tmp_path / "1.tar").symlink_to("0.tar")
    assert find_items(["0.tar", "./0.tar", tmp_path / "0.tar", "1.tar", "*.tar"]).ids == [
        "0.tar/x.png",
        "0.tar/sub/y.png",
    ]


def test_a_line_that_is_there_twice_is_one_image(photos):
    (photos / "list.txt").write_text(f"a.png\n./a.png\nb//d.png\n{photos}/b/d.png\n")
    items = find_items(photos / "list.txt")
    assert colors(items) == {"a.png": RED, "b//d.png": BLUE}
    assert kinds(items) == {"named twice": 2}
    (photos / "list.csv").write_text("id,path\n1,a.png\n2,a.png\n")
    assert colors(find_items(photos / "list.csv")) == {"1": RED, "2": RED}


# lists on standard input


def test_a_list_may_come_from_standard_input(photos, monkeypatch, tmp_path, run):
    monkeypatch.chdir(photos)
    given = io.TextIOWrapper(io.BytesIO(b"b/d.png\r\n\na.png\n./a.png\n"))
    monkeypatch.setattr(sys, "stdin", given)
    assert colors(find_items("-")) == {"b/d.png": BLUE, "a.png": RED}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b/d.png\n")))
    done = run("extract", "-", *SMALL, "--out", tmp_path / "out")
    assert (done.status, done.out.splitlines()[0][:16]) == (0, "maps of 1 image,")


def test_what_members_of_a_tar_are_left_out_is_counted(tmp_path):
    tar = save_tar(tmp_path / "0.tar")
    with tarfile.open(tar, "a") as file:
        for name in ("._x.png", "__MACOSX/x.png", "README"):
            file.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("z.png")
        link.type, link.linkname = tarfile.SYMTYPE, "x.png"
        file.addfile(link)
    items = find_items(tar)
    assert items.ids == ["x.png", "sub/y.png"]
    assert kinds(items) == {"sidecars of macOS or Windows": 2, ".txt": 1, "links in tars": 1, "without an ending": 1}


# images that fail


@pytest.mark.parametrize(("rows", "named"), [(1, ["0.png"]), (10, [])])
def test_after_too_many_failures_the_message_says_which_of_them_are_named(tmp_path, net, rows, named):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").touch()
    listed = r"index\.parquet lists their failed images with the reasons"
    message = rf"\d images failed, .*{listed}; run again with a larger max_e"
    with pytest.raises(ImageError, match=message):
        extract(folder, net, tmp_path / "out", pooling="mean", max_errors=1, rows_per_shard=rows, batch_size=1)
    assert [row["id"] for row in pq.read_table(tmp_path / "out/index.parquet").to_pylist()][:1] == named


def test_a_broken_tar_of_several_is_counted_among_failures_and_named_in_the_index(tmp_path, net):
    folder = packed(tmp_path / "in")
    (folder / "1.tar").write_text("no tar" * 200)
    summary = extract(folder, net, tmp_path / "out", pooling="mean")
    assert (summary.written, [*summary.failed]) == (2, ["1.tar"])
    (row,) = [row for row in pq.read_table(tmp_path / "out/index.parquet").to_pylist() if row["status"] == "failed"]
    assert (row["id"], row["source"]) == ("1.tar", f"{folder}/1.tar")
    assert "cannot be read as an uncompressed tar" in row["error"]
    with pytest.raises(ImageError, match="1 images failed, more than the 0 allowed"):
        extract(folder, net, tmp_path / "other", pooling="mean", max_errors=0)
