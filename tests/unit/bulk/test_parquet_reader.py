"""Arrow columns that hold images or paths, and what is read from each type."""

import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.solid_images import BLUE, LIME, RED, colors, pixel_of, png, save_photos

from featx import ArgumentError, ImageError
from featx.bulk import find_items
from featx.bulk.parquet_reader import column_content

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
THREE = [png("red"), png("lime"), png("blue")]
PATHS = ["a.png", "b/c.jpg", "b/d.png"]
COLORS = [RED, LIME, BLUE]


class Encoded(pa.ExtensionType):
    """A type of another program that is stored as this one."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, f"other.{storage}")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Encoded":
        return cls(storage)


@pytest.fixture
def registered():
    """Types that pyarrow knows again when it reads them."""
    types = [Encoded(pa.binary()), Encoded(pa.string())]
    for one in types:
        pa.register_extension_type(one)
    yield
    for one in types:
        pa.unregister_extension_type(one.extension_name)


def extension(cells: list, storage: pa.DataType) -> pa.Array:
    return pa.ExtensionArray.from_storage(Encoded(storage), pa.array(cells, storage))


@pytest.fixture
def photos(tmp_path) -> Path:
    return save_photos(tmp_path / "photos")


def save(folder: Path, **columns: object) -> Path:
    views = pa.struct([("bytes", pa.binary_view())])  # which pyarrow cannot divide
    table = pa.table(columns)
    pq.write_table(table, folder / "t.parquet", row_group_size=3 if views in table.schema.types else 2)
    return folder / "t.parquet"


def padded(cells: list[bytes]) -> pa.Array:
    size = max(map(len, cells))
    return pa.array([cell.ljust(size, b"\0") for cell in cells], pa.binary(size))


BYTES = {
    "binary": lambda: pa.array(THREE),
    "large_binary": lambda: pa.array(THREE, pa.large_binary()),
    "binary_view": lambda: pa.array(THREE, pa.binary_view()),
    "fixed_size_binary": lambda: padded(THREE),
    "dictionary": lambda: pa.array(THREE).dictionary_encode(),
    "extension": lambda: extension(THREE, pa.binary()),
    "struct": lambda: pa.array([{"bytes": one, "path": None} for one in THREE], STRUCT),
    "struct of bytes alone": lambda: pa.array([{"bytes": one} for one in THREE]),
    "struct of a view": lambda: pa.array([{"bytes": one} for one in THREE], pa.struct([("bytes", pa.binary_view())])),
    "struct of a dictionary": lambda: pa.StructArray.from_arrays([pa.array(THREE).dictionary_encode()], ["bytes"]),
    "struct of an extension": lambda: pa.StructArray.from_arrays([extension(THREE, pa.binary())], ["bytes"]),
}
LISTS = {
    "list": pa.list_(pa.binary()),
    "large_list": pa.large_list(pa.binary()),
    "fixed_size_list": pa.list_(pa.binary(), 1),
    "list_view": pa.list_view(pa.binary()),
    "list of views": pa.list_(pa.binary_view()),
}
TEXTS = {
    "string": lambda texts: pa.array(texts),
    "large_string": lambda texts: pa.array(texts, pa.large_string()),
    "string_view": lambda texts: pa.array(texts, pa.string_view()),
    "dictionary": lambda texts: pa.array(texts).dictionary_encode(),
    "extension": lambda texts: extension(texts, pa.string()),
    "struct": lambda texts: pa.array([{"path": one} for one in texts]),
}


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("column", [None, "picture"])
@pytest.mark.parametrize("known", [True, False])
def test_image_files_are_read_from_every_type_of_bytes(photos, request, kind, column, known):
    if known:
        request.getfixturevalue("registered")
    path = save(photos, picture=BYTES[kind](), label=[1, 2, 3])
    assert colors(find_items(path, column)) == dict(zip("012", COLORS, strict=True))


@pytest.mark.parametrize("kind", LISTS)
def test_every_image_of_a_list_is_one(photos, kind):
    cells = [[THREE[0]], [THREE[1]], [THREE[2]]]
    if "fixed" not in kind:
        cells = [THREE[:2], None, [], [THREE[2]]]
    items = find_items(save(photos, picture=pa.array(cells, LISTS[kind])))
    ids = ["0/0", "1/0", "2/0"] if "fixed" in kind else ["0/0", "0/1", "3/0"]
    assert colors(items) == dict(zip(ids, COLORS, strict=True))


def test_images_of_a_list_are_called_by_their_row_and_their_position(photos):
    struct = [{"bytes": one, "path": "a.png"} for one in THREE]
    cells = pa.array([struct[:1], struct[1:]], pa.list_(STRUCT))
    assert colors(find_items(save(photos, picture=cells, id=["x", "y"]))) == {"x/0": RED, "y/0": LIME, "y/1": BLUE}
    assert find_items(save(photos, picture=cells, id=["x", "x"])).ids == ["0/0", "1/0", "1/1"]


def test_a_list_of_structs_may_have_paths_instead_of_bytes(photos):
    cells = pa.array([[{"bytes": None, "path": "b/d.png"}, {"bytes": None, "path": None}, None]], pa.list_(STRUCT))
    items = find_items(save(photos, picture=cells))
    assert pixel_of(items.read(0)) == BLUE
    for row in (1, 2):
        with pytest.raises(ImageError, match="the row has no image"):
            items.read(row)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", ["path", "picture"])
@pytest.mark.parametrize("known", [True, False])
def test_paths_are_read_from_every_type_of_text(photos, request, kind, name, known):
    if known:
        request.getfixturevalue("registered")
    path = save(photos, **{name: TEXTS[kind](PATHS)}, label=[1, 2, 3])
    assert colors(find_items(path, None if name == "path" else name)) == dict(zip(PATHS, COLORS, strict=True))


def test_every_path_of_a_list_is_an_image(photos):
    path = save(photos, path=[PATHS[:2], None, PATHS[2:]], id=["x", "y", "z"])
    assert colors(find_items(path)) == {"x/0": RED, "x/1": LIME, "z/0": BLUE}
    path = save(photos, path=[PATHS[:2], [], PATHS[2:]])
    assert colors(find_items(path)) == dict(zip(PATHS, COLORS, strict=True))


NAMES = [uuid.UUID(int=number) for number in range(3)]


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        (pa.array(["x", "y", "z"], pa.string_view()), ["x", "y", "z"]),
        (pa.array(["x", "y", "z"]).dictionary_encode(), ["x", "y", "z"]),
        (pa.array([b"x", b"y", b"\xff"]), ["x", "y", r"\xff"]),
        (pa.array([b"x", b"y", b"z"], pa.binary_view()), ["x", "y", "z"]),
        (extension(["x", "y", "z"], pa.string()), ["x", "y", "z"]),
        (pa.array([one.bytes for one in NAMES], pa.uuid()), list(map(str, NAMES))),
        (pa.array([1, 2, 3], pa.uint8()), ["1", "2", "3"]),
    ],
)
@pytest.mark.parametrize("registering", [True, False])
def test_ids_are_read_from_every_type_of_single_values(photos, request, column, ids, registering):
    if registering:
        request.getfixturevalue("registered")
    assert find_items(save(photos, image=THREE, id=column)).ids == ids
    assert find_items(save(photos, path=PATHS, id=column)).ids == ids


@pytest.mark.parametrize("column", [pa.array([{"a": 1}] * 3), pa.array([[1], [2], [3]])])
def test_ids_of_several_values_are_none(photos, column):
    assert find_items(save(photos, image=THREE, id=column)).ids == ["0", "1", "2"]
    assert find_items(save(photos, path=PATHS, id=column)).ids == PATHS


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([1, 2, 3]), "int64"),
        (pa.array([0.5, 1.5, 2.5]), "double"),
        (pa.array([True, False, True]), "bool"),
        (pa.nulls(3), "null"),
        (pa.array([[1], [2], [3]]), "list<element: int64>"),
        (pa.array([{"a": "b"}] * 3), "struct<a: string>"),
        (pa.array([{"bytes": "b"}] * 3), "struct<bytes: string>"),
        (pa.array([[["a.png"]]] * 3), "list<element: list<element: string>>"),
        (pa.array([[("a", b"b")]] * 3, pa.map_(pa.string(), pa.binary())), "map<string, binary"),
        (pa.array([0, 1, 2], pa.timestamp("s")), "timestamp"),
    ],
)
def test_a_column_that_holds_neither_is_refused_with_its_type(photos, column, kind):
    path = save(photos, label=column)
    with pytest.raises(ArgumentError) as caught:
        find_items(path, column="label")
    assert f"t.parquet: column label holds {kind}" in str(caught.value)
    assert "expected paths (text) or image files (bytes)" in str(caught.value)
    with pytest.raises(ArgumentError, match=r"t\.parquet: column path holds "):
        find_items(save(photos, path=column))


def test_a_column_of_usual_bytes_comes_before_others(photos):
    others = {"hash": pa.array([b"1234"] * 3, pa.binary(4)), "thumbnails": pa.array([[THREE[0]]] * 3)}
    assert colors(find_items(save(photos, picture=THREE, **others))) == dict(zip("012", COLORS, strict=True))
    with pytest.raises(ArgumentError, match="several columns that may say what the images are, hash, thumbnails: name"):
        find_items(save(photos, **others))
    assert find_items(save(photos, path=PATHS, **others)).ids == PATHS


def test_many_columns_are_named_in_short(photos):
    path = save(photos, **{f"column {number}": [1] for number in range(500)})
    with pytest.raises(ArgumentError, match=r"columns column 0, .*, … and 492 more: expected one named path"):
        find_items(path)


def test_a_column_that_is_there_twice_is_an_argument_error(photos):
    table = pa.Table.from_arrays([pa.array(PATHS), pa.array(PATHS)], names=["path", "path"])
    pq.write_table(table, photos / "t.parquet")
    with pytest.raises(ArgumentError, match="has the column path 2 times"):
        find_items(photos / "t.parquet")


def test_a_table_that_is_another_one_now_is_read_anew(photos):
    path = save(photos, image=THREE)
    assert pixel_of(find_items(path).read(0)) == RED
    path.unlink()
    save(photos, image=[THREE[2], THREE[2]], padding=["x" * 100, "y"])
    assert pixel_of(find_items(path).read(0)) == BLUE


def test_what_a_type_holds_does_not_depend_on_what_encodes_it():
    assert column_content(pa.dictionary(pa.int8(), pa.string())) == column_content(pa.string()).__class__(
        "paths", usual=False
    )
    assert column_content(pa.list_(pa.list_(pa.binary()))).kind is None
