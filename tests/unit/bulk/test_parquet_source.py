"""Parquet files with images in their rows: the selected column, the ids, and how rows are read."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.solid_images import colors, pixel_of, png

from featx import ArgumentError, ImageError
from featx.bulk import find_items, parquet_reader
from featx.bulk.prefetch import prefetch
from featx.bulk.sources import Items

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def numbered(number: int) -> bytes:
    return png((number, 255 - number, 9))


def cells(*paths: str | None) -> list[dict]:
    return [{"bytes": numbered(number), "path": path} for number, path in enumerate(paths)]


def save(where: Path, images: pa.Array | None = None, rows_per_group: int = 2, **columns) -> Path:
    """A table of these columns, and of `image` if it has any."""
    where.parent.mkdir(exist_ok=True)
    images = {} if images is None else {"image": images}
    pq.write_table(pa.table({**columns, **images}), where, row_group_size=rows_per_group)
    return where


def numbers(items: Items) -> dict[str, int]:
    """The number of every image by its id."""
    return {id_: red for id_, (red, _, _) in colors(items).items()}


@pytest.fixture(autouse=True)
def nothing_opened():
    yield
    parquet_reader.column_reader.cache_clear()


# what rows are called


def test_bytes_in_a_column_are_images_called_by_their_rows(tmp_path):
    path = save(tmp_path / "a.parquet", pa.array(map(numbered, range(5))), label=[*"abcde"])
    items = find_items(path)
    assert numbers(items) == {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4}
    assert items.where(3) == f"{path}/3"


@pytest.mark.parametrize(
    ("paths", "ids"),
    [
        (["x/a.png", "b.png", "c.png"], ["x/a.png", "b.png", "c.png"]),
        (["a.png", "a.png", "c.png"], ["0", "1", "2"]),
        (["a.png", None, "c.png"], ["0", "1", "2"]),
    ],
)
def test_rows_are_called_by_the_paths_beside_their_bytes_if_these_differ(tmp_path, paths, ids):
    path = save(tmp_path / "a.parquet", pa.array(cells(*paths), STRUCT))
    assert numbers(find_items(path)) == dict(zip(ids, range(3), strict=True))


@pytest.mark.parametrize(("column", "ids"), [([7, 8], ["7", "8"]), ([7, 7], ["a.png", "b.png"])])
def test_rows_are_called_by_their_column_of_ids_if_these_differ(tmp_path, column, ids):
    path = save(tmp_path / "a.parquet", pa.array(cells("a.png", "b.png"), STRUCT), id=column)
    assert find_items(path).ids == ids


def test_rows_of_several_files_begin_with_their_file(tmp_path):
    for number in range(2):
        save(tmp_path / f"set/train-{number}.parquet", pa.array([numbered(2 * number), numbered(2 * number + 1)]))
    (tmp_path / "set/README.md").touch()
    expected = {"train-0.parquet/0": 0, "train-0.parquet/1": 1, "train-1.parquet/0": 2, "train-1.parquet/1": 3}
    assert numbers(find_items(tmp_path / "set")) == expected
    assert numbers(find_items(f"{tmp_path}/set/*.parquet")) == expected
    given = find_items([tmp_path / "set/train-0.parquet", tmp_path / "set/train-1.parquet"])
    assert given.ids == [f"{tmp_path}/set/{id_}" for id_ in expected]


def test_tables_beside_image_files_are_no_images(tmp_path):
    save(tmp_path / "set/labels.parquet", label=[1])
    (tmp_path / "set/a.png").write_bytes(numbered(0))
    assert find_items(tmp_path / "set").ids == ["a.png"]


def test_an_address_gives_the_rows_of_its_files(tmp_path):
    system = fsspec.filesystem("memory")
    for number in range(2):
        content = save(tmp_path / "a.parquet", pa.array(cells("a.png", "b.png"), STRUCT)).read_bytes()
        system.pipe(f"/set/{number}.parquet", content)
    try:
        several = {
            f"{number}.parquet/{name}": row for number in range(2) for row, name in enumerate(("a.png", "b.png"))
        }
        assert numbers(find_items("memory://set")) == several
        assert numbers(find_items("memory://set/*.parquet")) == several
        assert numbers(find_items("memory://set/1.parquet")) == {"a.png": 0, "b.png": 1}
    finally:
        system.rm("/set", recursive=True)


# which column


def test_what_the_package_datasets_wrote_is_known_by_what_it_says_of_columns(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    image = {"bytes": numbered(3), "path": "a.png"}
    columns = {"image": [image], "source": ["somewhere"], "sound": [{"bytes": b"la", "path": None}]}
    made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    made.to_parquet(tmp_path / "set.parquet")
    assert numbers(find_items(tmp_path / "set.parquet")) == {"a.png": 3}


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"label": [1]}, r"has the columns label: expected one named path, or tell which one holds paths or images"),
        ({"a": [b"1"], "b": [b"2"]}, r"several columns that may say what the images are, a, b: name one \(--column"),
        ({"path": ["a.png"], "b": [b"2"]}, r"several columns that may say what the images are, b, path: name one"),
    ],
)
def test_a_table_without_one_column_of_images_is_refused(tmp_path, columns, told):
    save(tmp_path / "a.parquet", **columns)
    with pytest.raises(ArgumentError, match=told):
        find_items(tmp_path / "a.parquet")


def test_one_of_several_columns_is_chosen_by_its_name(tmp_path):
    (tmp_path / "7.png").write_bytes(numbered(7))
    path = save(tmp_path / "a.parquet", pa.array([numbered(1)]), mask=[numbered(2)], file=["7.png"])
    assert numbers(find_items(path, column="image")) == {"0": 1}
    assert numbers(find_items(path, column="mask")) == {"0": 2}
    assert numbers(find_items(path, column="file")) == {"7.png": 7}
    with pytest.raises(ArgumentError, match="has the columns mask, file, image: expected one named picture"):
        find_items(path, column="picture")


def test_images_of_another_column_are_other_images(tmp_path):
    path = save(tmp_path / "a.parquet", pa.array([numbered(1)]), mask=[numbered(2)])
    one, other = (find_items(path, column=column) for column in ("image", "mask"))
    assert one.ids == other.ids
    assert one.digest() != other.digest()


# reading


def test_a_row_without_bytes_is_the_file_at_its_path_or_has_no_image(tmp_path):
    (tmp_path / "7.png").write_bytes(numbered(7))
    rows = [{"bytes": None, "path": "7.png"}, {"bytes": None, "path": None}, None]
    items = find_items(save(tmp_path / "a.parquet", pa.array(rows, STRUCT)))
    assert pixel_of(items.read(0))[0] == 7
    for row in (1, 2):
        with pytest.raises(ImageError, match="the row has no image"):
            items.read(row)


@pytest.mark.parametrize("rows_per_group", [1, 7, 300])
@pytest.mark.parametrize("order", ["forwards", "backwards", "every third"])
def test_rows_are_their_own_in_any_order(tmp_path, monkeypatch, rows_per_group, order):
    monkeypatch.setattr(parquet_reader, "BATCH_ROWS", 10)
    contents = [f"image {row}".encode() for row in range(300)]
    items = find_items(save(tmp_path / "a.parquet", pa.array(contents), rows_per_group))
    asked = {"forwards": range(300), "backwards": range(299, -1, -1), "every third": [*range(0, 300, 3), 1, 299]}[order]
    assert [items.read(row) for row in asked] == [contents[row] for row in asked]


def test_threads_that_read_about_in_order_read_the_file_once(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_reader, "BATCH_ROWS", 4)
    begun, read = [], parquet_reader.ColumnReader._read
    monkeypatch.setattr(
        parquet_reader.ColumnReader, "_read", lambda self, group: begun.append(group) or read(self, group)
    )
    contents = [f"image {row}".encode() for row in range(400)]
    items = find_items(save(tmp_path / "a.parquet", pa.array(contents), 100))
    with ThreadPoolExecutor(4) as pool:
        assert list(prefetch(pool, items.read, range(400), depth=12)) == contents
    assert begun == [0, 1, 2, 3]


def test_only_the_latest_rows_are_in_memory_however_large_a_row_group_is(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_reader, "BATCH_BYTES", 2**18)
    monkeypatch.setattr(parquet_reader, "usable_cores", lambda: 2)
    contents = [bytes([row % 256]) * 2**16 for row in range(400)]  # 25 MiB in one group
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": contents}), path, use_dictionary=False, write_batch_size=8)  # pages of 8 rows
    items, most = find_items(path), 0
    before = pa.total_allocated_bytes()
    del contents
    for row in range(400):
        assert items.read(row)[0] == row % 256
        most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < 5 * 2**20


def test_a_file_that_was_cut_since_fails_its_images_and_is_read_again_when_it_is_whole(tmp_path):
    path = save(tmp_path / "a.parquet", pa.array([numbered(1), numbered(2)]))
    items, whole = find_items(path), path.read_bytes()
    path.write_bytes(whole[:50])
    with pytest.raises(ImageError, match=r"a\.parquet cannot be read as a Parquet file"):
        items.read(1)
    save(path, pa.array([numbered(1)]))
    with pytest.raises(ImageError, match=r"a\.parquet cannot be read as a Parquet file"):
        items.read(1)
    path.write_bytes(whole)
    assert pixel_of(items.read(1))[0] == 2


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_a_file_that_vanished_fails_its_images(tmp_path):
    items = find_items(save(tmp_path / "a.parquet", pa.array([numbered(1)])))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(ImageError, match="No such file or directory"):
        items.read(0)
