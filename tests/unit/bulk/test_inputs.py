"""What an extraction accepts as its images, and the ids that they get."""

import os
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.solid_images import ALL, BLUE, COLORS, LIME, RED, colors, pixel_of, png, save_photos, save_tar

from featx import ArgumentError, ImageError, MissingPackageError
from featx.bulk import find_items
from featx.bulk.hf_datasets import DatasetImages


@pytest.fixture
def photos(tmp_path) -> Path:
    return save_photos(tmp_path / "photos")


@pytest.fixture
def tar(tmp_path) -> Path:
    return save_tar(tmp_path / "000.tar")


# folders and files


def test_a_folder_gives_its_images_under_paths_relative_to_it(photos):
    assert colors(find_items(photos)) == ALL
    assert colors(find_items([f"{photos}/"])) == ALL


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
    assert [items.where(i) for i in range(3)] == [f"{photos}/{name}" for name in COLORS]


def test_a_single_file_is_known_by_its_name_whatever_its_ending(photos):
    (photos / "a.png").rename(photos / "a.dat")
    assert colors(find_items(photos / "a.dat")) == {"a.dat": RED}


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
def test_a_name_that_is_not_text_is_read_and_its_id_is_text(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(png("red"))
    assert colors(find_items(tmp_path)) == {r"\xff.png": RED}


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
    assert colors(find_items(photos / "a[1].png")) == {"a[1].png": RED}


def test_a_pattern_of_tars_gives_the_images_in_them(tar):
    (tar.parent / "001.tar").write_bytes(tar.read_bytes())
    items = find_items(f"{tar.parent}/*.tar")
    assert items.where(0) == f"{tar}/x.png"
    assert find_items(tar.parent).ids == items.ids  # a folder without image files
    assert items.ids == [f"{name}.tar/{member}" for name in ("000", "001") for member in ("x.png", "sub/y.png")]
    assert set(colors(items).values()) == {RED, BLUE}


# lists


def test_a_text_names_an_image_a_line_relative_to_itself(photos):
    (photos / "list.txt").write_text(f"b/c.jpg\n\n{photos}/a.png\n")
    assert colors(find_items(photos / "list.txt")) == {"b/c.jpg": LIME, f"{photos}/a.png": RED}


def test_a_column_of_paths_may_have_any_name(photos):
    (photos / "list.csv").write_text("file,path\na.png,b/d.png\n")
    assert colors(find_items(photos / "list.csv", column="file")) == {"a.png": RED}
    with pytest.raises(ArgumentError, match="has the columns file, path: expected one named picture"):
        find_items(photos / "list.csv", column="picture")


def test_a_column_where_nothing_has_columns_is_refused(photos, tar):
    with pytest.raises(ArgumentError, match="column='picture': no input has columns; leave it out"):
        find_items([photos, tar], column="picture")


@pytest.mark.parametrize("column", ["path", "source"])
def test_a_csv_names_images_in_a_column_and_ids_in_another(photos, column):
    (photos / "list.csv").write_text(f'id,label,{column}\n7,"a, b",a.png\n8,,b/d.png\n')
    assert colors(find_items(photos / "list.csv")) == {"7": RED, "8": BLUE}


def test_a_parquet_table_names_images_and_ids(photos):
    table = pa.table({"id": [7, 8], "path": ["a.png", "b/d.png"]})
    pq.write_table(table, photos / "list.parquet")
    assert colors(find_items(photos / "list.parquet")) == {"7": RED, "8": BLUE}
    pq.write_table(table.select(["path"]), photos / "list.parquet")
    assert find_items(photos / "list.parquet").ids == ["a.png", "b/d.png"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("list.csv", "file,label\na.png,1\n", "has the columns file, label: expected one named path"),
        ("list.csv", "path,label\na.png\n", "line 2 does not have the 2 values of the header"),
        ("list.csv", "", "cannot be read as a list of images"),
        ("list.csv", "path\n,\n", "line 2 does not have the 1 values"),
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
    assert colors(find_items(tar)) == {"x.png": RED, "sub/y.png": BLUE}


def test_a_tar_that_ends_within_an_image_fails_that_image(tar):
    items = find_items(tar)
    with tar.open("r+b") as file:
        file.truncate(512 + 20)
    with pytest.raises(ImageError, match=r"000\.tar ends within it"):
        items.read(0)


@pytest.mark.parametrize("mode", ["text", "gz"])
def test_a_tar_that_cannot_be_read_anywhere_is_refused(tar, mode):
    if mode == "gz":
        with tarfile.open(tar, "w:gz") as file:
            file.addfile(tarfile.TarInfo("x.png"))
    else:
        tar.write_text("no tar" * 200)
    with pytest.raises(ArgumentError, match=r"000\.tar cannot be read as an uncompressed tar"):
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


def test_a_row_of_a_saved_dataset_with_neither_bytes_nor_path_has_no_image(monkeypatch):
    rows = [{"picture": {"bytes": None, "path": path}} for path in (None, "", "a\0b")]
    monkeypatch.setattr("featx.bulk.hf_datasets._opened", lambda folder, column: {"": rows})
    images = DatasetImages("saved", "picture", ["0", "1", "2"])
    for row in (0, 1):
        with pytest.raises(ImageError, match="the row has no image"):
            images.read(row)
    with pytest.raises(ImageError, match="is not a path"):
        images.read(2)


def test_a_saved_dataset_of_several_splits_gives_all_of_them(tmp_path, dataset):
    import datasets

    splits = datasets.DatasetDict({"train": dataset.select([0]), "test": dataset.select([1])})
    splits.save_to_disk(tmp_path / "saved")
    assert colors(find_items(tmp_path / "saved")) == {"train/0": RED, "test/0": BLUE}


def test_a_saved_dataset_of_several_columns_of_images_takes_the_one_named(tmp_path, dataset):
    two = dataset.select([0]).add_column("depth", [None]).cast_column("depth", dataset.features["picture"])
    two.save_to_disk(tmp_path / "saved")
    with pytest.raises(ArgumentError, match=r"it has \['depth', 'picture'\]: name one \(--column, or column= of"):
        find_items(tmp_path / "saved")
    assert colors(find_items(tmp_path / "saved", column="picture")) == {"0": RED}
    with pytest.raises(ArgumentError, match=r"column label holds no images, those that do are \['depth', 'picture'\]"):
        find_items(tmp_path / "saved", column="label")


def test_a_saved_dataset_without_images_is_refused(tmp_path, dataset):
    dataset.remove_columns("picture").save_to_disk(tmp_path / "saved")
    with pytest.raises(ArgumentError, match=r"expected a dataset with one column of images, it has \[\]"):
        find_items(tmp_path / "saved")


def test_what_is_not_a_regular_file_is_not_waited_for(photos):
    os.mkfifo(photos / "pipe.png")
    items = find_items(photos)
    with pytest.raises(ImageError, match="not a file"):
        items.read(items.ids.index("pipe.png"))
