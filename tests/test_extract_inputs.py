"""What may be named as the images to extract, and under which ids they are known."""

import io
import os
import pickle
import sys
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from featx import ArgumentError, ImageError, MissingPackageError
from featx.bulk import find_items

COLOURS = {"a.png": "red", "b/c.jpg": "lime", "b/d.png": "blue"}


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three images, and a file that nobody would take for one."""
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for name, colour in COLOURS.items():
        (folder / name).write_bytes(png(colour))
    (folder / "notes.txt").write_text("a.png")
    return folder


@pytest.fixture
def tar(tmp_path) -> Path:
    path = tmp_path / "000.tar"
    with tarfile.open(path, "w") as file:
        for name, content in {"x.png": png("red"), "x.txt": b"a caption", "sub/y.png": png("blue")}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def colours(items) -> dict[str, tuple[int, ...]]:
    """The colour of every image by its id, after the trip that items make to other processes."""
    there = pickle.loads(pickle.dumps(items))
    return {id_: pixel_of(there.read(i)) for i, id_ in enumerate(there.ids)}


def pixel_of(content: bytes) -> tuple[int, ...]:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB").getpixel((0, 0))


RED, LIME, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
ALL = {"a.png": RED, "b/c.jpg": LIME, "b/d.png": BLUE}


# folders and files


def test_a_folder_gives_its_images_under_paths_relative_to_it(photos):
    assert colours(find_items(photos)) == ALL
    assert colours(find_items([f"{photos}/"])) == ALL


def test_ids_do_not_depend_on_where_the_folder_is_named_from(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    assert find_items("photos").ids == find_items(photos).ids == find_items("../" + photos.parent.name + "/photos").ids


def test_images_come_in_the_order_of_their_folders_parts(tmp_path):
    for name in ("b/z.png", "b-2/a.png", "a/2.png", "a/10.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_items(tmp_path).ids == ["a/10.png", "a/2.png", "b/z.png", "b-2/a.png", "c.png"]


def test_the_place_of_an_image_is_its_path(photos):
    items = find_items(photos)
    assert [items.where(i) for i in range(3)] == [f"{photos}/{name}" for name in COLOURS]


def test_a_single_file_is_known_by_its_name_whatever_its_ending(photos):
    (photos / "a.png").rename(photos / "a.dat")
    assert colours(find_items(photos / "a.dat")) == {"a.dat": RED}


def test_with_several_inputs_ids_begin_with_them(photos, tar, monkeypatch):
    monkeypatch.chdir(photos.parent)
    assert find_items(["photos/b", "photos/a.png", "000.tar"]).ids == [
        *("photos/b/c.jpg", "photos/b/d.png", "photos/a.png"),
        *("000.tar/x.png", "000.tar/sub/y.png"),
    ]


def test_an_image_that_two_inputs_name_is_there_once(photos):
    items = find_items([photos / "b", photos, photos / "a.png"])
    assert [items.where(i) for i in range(len(items))] == [
        f"{photos}/{name}" for name in ("b/c.jpg", "b/d.png", "a.png")
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_text_is_read_and_its_id_is_text(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(png("red"))
    assert colours(find_items(tmp_path)) == {r"\xff.png": RED}


def test_inputs_that_do_not_exist_are_all_named(photos):
    with pytest.raises(ArgumentError, match=r"no such file or folder: .*lost, .*gone/\*\.png$"):
        find_items([photos, photos / "lost", f"{photos}/gone/*.png"])


@pytest.mark.parametrize("inputs", [(), "empty"])
def test_inputs_without_images_are_an_error(tmp_path, inputs):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError, match=r"no image files in .*images are known by endings such as"):
        find_items(tmp_path / inputs if inputs else inputs)


def test_a_file_that_vanished_is_an_error_of_its_own(photos):
    items = find_items(photos)
    (photos / "a.png").unlink()
    with pytest.raises(ImageError, match="No such file or directory"):
        items.read(0)
    assert pixel_of(items.read(1)) == LIME


# patterns


@pytest.mark.parametrize(
    ("pattern", "ids"),
    [
        ("photos/*.png", ["a.png"]),
        ("photos/**/*.png", ["a.png", "b/d.png"]),
        ("photos/**/*", ["a.png", "b/c.jpg", "b/d.png"]),
        ("photos/[ab]/*", ["b/c.jpg", "b/d.png"]),
        ("ph*s/a.png", ["photos/a.png"]),
        ("photos/*.txt", ["notes.txt"]),  # whatever matches, where no image does
    ],
)
def test_a_pattern_gives_what_matches_relative_to_its_fixed_part(photos, monkeypatch, pattern, ids):
    monkeypatch.chdir(photos.parent)
    assert find_items(pattern).ids == ids
    assert find_items(f"{photos.parent}/{pattern}").ids == ids


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(photos):
    (photos / "a.png").rename(photos / "a[1].png")
    assert colours(find_items(photos / "a[1].png")) == {"a[1].png": RED}


def test_a_pattern_of_tars_gives_the_images_in_them(tar):
    (tar.parent / "001.tar").write_bytes(tar.read_bytes())
    items = find_items(f"{tar.parent}/*.tar")
    assert items.where(0) == f"{tar}/x.png"
    assert find_items(tar.parent).ids == items.ids  # a folder without image files
    assert items.ids == [f"{name}.tar/{member}" for name in ("000", "001") for member in ("x.png", "sub/y.png")]
    assert set(colours(items).values()) == {RED, BLUE}


# lists


def test_a_text_names_an_image_a_line_relative_to_itself(photos):
    (photos / "list.txt").write_text(f"b/c.jpg\n\n{photos}/a.png\n")
    assert colours(find_items(photos / "list.txt")) == {"b/c.jpg": LIME, f"{photos}/a.png": RED}


def test_a_column_of_paths_may_have_any_name(photos):
    (photos / "list.csv").write_text("file,path\na.png,b/d.png\n")
    assert colours(find_items(photos / "list.csv", column="file")) == {"a.png": RED}
    with pytest.raises(ArgumentError, match="has the columns file, path: expected one named picture"):
        find_items(photos / "list.csv", column="picture")


def test_a_column_where_nothing_has_columns_is_refused(photos, tar):
    with pytest.raises(ArgumentError, match="column='picture': no input has columns; leave it out"):
        find_items([photos, tar], column="picture")


@pytest.mark.parametrize("column", ["path", "source"])
def test_a_csv_names_images_in_a_column_and_ids_in_another(photos, column):
    (photos / "list.csv").write_text(f'id,label,{column}\n7,"a, b",a.png\n8,,b/d.png\n')
    assert colours(find_items(photos / "list.csv")) == {"7": RED, "8": BLUE}


def test_a_parquet_table_names_images_and_ids(photos):
    table = pa.table({"id": [7, 8], "path": ["a.png", "b/d.png"]})
    pq.write_table(table, photos / "list.parquet")
    assert colours(find_items(photos / "list.parquet")) == {"7": RED, "8": BLUE}
    pq.write_table(table.select(["path"]), photos / "list.parquet")
    assert find_items(photos / "list.parquet").ids == ["a.png", "b/d.png"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("list.csv", "file,label\na.png,1\n", "has the columns file, label: expected one named path"),
        ("list.csv", "path,label\na.png\n", "line 2 has not the 2 values of the header"),
        ("list.csv", "", "cannot be read as a list of images"),
        ("list.csv", "path\n,\n", "line 2 has not the 1 values"),
        ("list.csv", "id,path\n3,\n", "names no image in row 1"),
        ("list.parquet", "no table", r"list\.parquet cannot be read as a Parquet file"),
    ],
)
def test_a_list_that_is_none_is_refused_with_what_is_wrong(photos, name, content, problem):
    (photos / name).write_text(content)
    with pytest.raises(ArgumentError, match=problem):
        find_items(photos / name)


def test_ids_that_are_of_two_images_are_refused(photos):
    (photos / "list.csv").write_text("id,path\n7,a.png\n7,b/d.png\n")
    with pytest.raises(ArgumentError, match=r"1 ids are of several images, such as '7' of .*a\.png, .*d\.png: give"):
        find_items(photos / "list.csv")


def test_without_pyarrow_a_parquet_list_names_what_to_install(photos, monkeypatch):
    (photos / "list.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'featx\[extract\]'"):
        find_items(photos / "list.parquet")


# tars


def test_a_tar_gives_its_images_under_their_names(tar):
    assert colours(find_items(tar)) == {"x.png": RED, "sub/y.png": BLUE}


def test_a_tar_that_ends_within_an_image_fails_that_image(tar):
    items = find_items(tar)
    with tar.open("r+b") as file:
        file.truncate(512 + 20)
    with pytest.raises(ImageError, match=r"000\.tar ends within it"):
        items.read(0)


@pytest.mark.parametrize("mode", ["text", "gz"])
def test_a_tar_that_cannot_be_read_anywhere_is_refused(tmp_path, tar, mode):
    if mode == "gz":
        with tarfile.open(tar, "w:gz") as file:
            file.addfile(tarfile.TarInfo("x.png"))
    else:
        tar.write_text("no tar" * 200)
    with pytest.raises(ArgumentError, match=r"000\.tar cannot be read as an uncompressed tar"):
        find_items(tar)


def test_an_image_that_is_twice_in_a_tar_is_refused(tar):
    with tarfile.open(tar, "a") as file:
        file.addfile(tarfile.TarInfo("x.png"))
    with pytest.raises(ArgumentError, match=r"1 ids are of several images, such as 'x\.png'"):
        find_items(tar)


# data sets of Hugging Face


@pytest.fixture
def dataset(tmp_path, photos):
    datasets = pytest.importorskip("datasets")
    images = {"picture": [f"{photos}/a.png", f"{photos}/b/d.png", None], "label": [1, 2, 3]}
    rows = datasets.Dataset.from_dict(images).cast_column("picture", datasets.Image())
    datasets.disable_progress_bars()
    return rows


def test_a_saved_dataset_gives_its_rows(tmp_path, dataset):
    dataset.save_to_disk(tmp_path / "saved")
    items = find_items(tmp_path / "saved")
    assert items.ids == ["0", "1", "2"]
    assert [pixel_of(items.read(i)) for i in range(2)] == [RED, BLUE]
    with pytest.raises(ImageError, match="the row has no image"):
        items.read(2)


def test_a_saved_dataset_of_several_splits_gives_all_of_them(tmp_path, dataset):
    import datasets

    splits = datasets.DatasetDict({"train": dataset.select([0]), "test": dataset.select([1])})
    splits.save_to_disk(tmp_path / "saved")
    assert colours(find_items(tmp_path / "saved")) == {"train/0": RED, "test/0": BLUE}


def test_a_saved_dataset_of_several_columns_of_images_takes_the_one_named(tmp_path, dataset):
    two = dataset.select([0]).add_column("depth", [None]).cast_column("depth", dataset.features["picture"])
    two.save_to_disk(tmp_path / "saved")
    with pytest.raises(ArgumentError, match=r"it has \['depth', 'picture'\]: name one \(--column, or column= of"):
        find_items(tmp_path / "saved")
    assert colours(find_items(tmp_path / "saved", column="picture")) == {"0": RED}
    with pytest.raises(ArgumentError, match=r"column label holds no images, those that do are \['depth', 'picture'\]"):
        find_items(tmp_path / "saved", column="label")


def test_a_saved_dataset_without_images_is_refused(tmp_path, dataset):
    dataset.remove_columns("picture").save_to_disk(tmp_path / "saved")
    with pytest.raises(ArgumentError, match=r"expected a dataset with one column of images, it has \[\]"):
        find_items(tmp_path / "saved")


# addresses


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    for name, colour in COLOURS.items():
        system.pipe(f"/photos/{name}", png(colour))
    system.pipe("/photos/notes.txt", b"a.png\nmemory://photos/b/d.png\n")
    yield system
    system.rm("/photos", recursive=True)


def test_an_address_of_a_folder_gives_its_images(memory):
    items = find_items("memory://photos")
    assert colours(items) == ALL
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
    assert colours(find_items(address)) == expected


def test_an_address_of_a_tar_gives_the_images_in_it(memory, tar):
    memory.pipe("/photos/000.tar", tar.read_bytes())
    assert colours(find_items("memory://photos/000.tar")) == {"x.png": RED, "sub/y.png": BLUE}


def test_an_address_of_a_pattern_of_tars_gives_the_images_in_them(memory, tar):
    for name in ("000.tar", "001.tar"):
        memory.pipe(f"/photos/{name}", tar.read_bytes())
    items = find_items("memory://photos/*.tar")
    assert items.ids == [f"{name}.tar/{member}" for name in ("000", "001") for member in ("x.png", "sub/y.png")]
    assert items.where(3) == "memory:///photos/001.tar/sub/y.png"
    assert set(colours(items).values()) == {RED, BLUE}


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
        monkeypatch.setattr("featx.bulk.systems.FIRST_WAIT", 0.001)
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


def test_what_is_no_regular_file_is_not_waited_for(photos):
    os.mkfifo(photos / "pipe.png")
    items = find_items(photos)
    with pytest.raises(ImageError, match="not a file"):
        items.read(items.ids.index("pipe.png"))
