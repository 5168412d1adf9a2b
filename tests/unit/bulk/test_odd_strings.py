"""Any text in a list or a table affects at most its own row."""

import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.solid_images import BLUE, RED, mean_of_pixels, pixel_of, png, save_photos

import featx
from featx import ArgumentError, ImageError
from featx.bulk import FeatureDataset, extract, find_items
from featx.bulk.shard import stamp_of
from featx.bulk.sources import as_text

ODD = [
    "a\0b.png",
    "\ud800.png",
    "\udcff.png",
    "\x1b[2Ja.png",
    "x" * 10_000,
    "a.png/" + "x/" * 2000,
    "a/" * 20_000,
    "../" * 3000,
    "~",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "b",
    ".",
    "memory://",
    "memory://nowhere/a.png",
    "moon://a.png",
    "://",
    "file://",
    "file:///",
    "zip://a::memory://b",
    "memory://[::1/\0",
    "reference://",
    "dir::file:///tmp",
    "%00",
    "a.png\x85",
    "b\u2028.png",
    "*",
    "[",
    "-",
    "\ufeff",
    " ",
]
SYSTEMS = ("memory://", "moon://", "file://", "zip://", "://", "::")
TEXTS = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=12),
    st.text(st.sampled_from([*"./\\~*?[]:%\0\n\r\x1b\u202e\ud800\udcff\u2028\x85 ,\"'ab"]), max_size=30),
    st.lists(st.sampled_from([*SYSTEMS, "a", "/", "..", "\0", "b/d.png"]), max_size=5).map("".join),
)
FAST = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LONG = settings(FAST, max_examples=2000)


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("featx.bulk.filesystems.FIRST_WAIT", 0.001)
    monkeypatch.setattr("featx.bulk.filesystems.LONGEST_WAIT", 0.001)
    return save_photos(tmp_path / "photos")


@pytest.fixture
def net() -> featx.FeatureExtractWrapper:
    return mean_of_pixels()


def read(items) -> list[tuple[int, ...] | None]:
    """The color of every image; None for one that fails with a reason."""
    return [_color(items, row) for row in range(len(items))]


def _color(items, row: int) -> tuple[int, ...] | None:
    assert items.ids[row].encode()
    assert items.where(row).encode()
    stamp_of(items.where(row))
    try:
        return pixel_of(items.read(row))
    except ImageError as error:
        return None if len(str(error)) < 1000 else pytest.fail(str(error))
    except OSError:  # another file of this machine, which is none of images
        return None


def between(texts: list[str]) -> list[str]:
    """Good rows around odd ones."""
    return ["a.png", *(text for text in texts if Path(text).name not in ("a.png", "d.png")), "b/d.png"]


def check_text_list(photos: Path, texts: list[str]) -> None:
    lines = [text.replace("\n", "") for text in between(texts)]
    (photos / "list.txt").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    colors = read(find_items(photos / "list.txt"))
    assert (colors[0], colors[-1]) == (RED, BLUE)


def check_csv(photos: Path, texts: list[str]) -> None:
    rows = between(texts)
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([["id", "path"], *enumerate(rows)])
    (photos / "list.csv").write_bytes(written.getvalue().encode("utf-8", "surrogatepass"))
    items = find_items(photos / "list.csv")
    assert items.ids == [str(row) for row in range(len(rows))]
    colors = read(items)
    assert (colors[0], colors[-1]) == (RED, BLUE)


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def check_tables(photos: Path, texts: list[str]) -> None:
    """As texts in a column, as paths in structs, and as ids; with bytes that are no UTF-8 where surrogates are."""
    rows = [as_bytes(text) for text in between(texts)]
    column = pa.array(rows).view(pa.string())
    pq.write_table(pa.table({"path": column}), photos / "t.parquet")
    colors = read(find_items(photos / "t.parquet"))
    assert (colors[0], colors[-1]) == (RED, BLUE)
    struct = pa.StructArray.from_arrays([pa.nulls(len(rows), pa.binary()), column], ["bytes", "path"])
    pq.write_table(pa.table({"image": struct}), photos / "t.parquet")
    colors = read(find_items(photos / "t.parquet"))
    assert (colors[0], colors[-1]) == (RED, BLUE)
    pq.write_table(pa.table({"id": column, "image": [png("red")] * len(rows)}), photos / "t.parquet")
    try:
        assert set(read(find_items(photos / "t.parquet"))) == {RED}
    except ArgumentError as error:
        if "ids are of several images" not in str(error):
            raise


LISTS = st.lists(TEXTS, max_size=8)
CHECKS = [check_text_list, check_csv, check_tables]


@pytest.mark.parametrize("check", CHECKS)
def test_any_text_costs_at_most_its_row(photos, check):
    @given(LISTS)
    @FAST
    def each(texts: list[str]) -> None:
        check(photos, texts)

    check(photos, ODD)
    each()


@pytest.mark.sweep
@pytest.mark.parametrize("check", CHECKS)
def test_many_texts_cost_at_most_their_rows(photos, check):
    @given(LISTS)
    @LONG
    def each(texts: list[str]) -> None:
        check(photos, texts)

    each()


@pytest.mark.parametrize("decoders", ["threads", pytest.param("processes", marks=pytest.mark.sweep)])
def test_a_run_over_odd_texts_fails_these_rows_and_says_why(photos, net, tmp_path, decoders):
    lines = ["a.png", *ODD, "b/d.png"]
    (photos / "list.txt").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    (photos / "list.csv").write_bytes(b'id,path\n1,a.png\n2,\n3,"x\0y"\n4,b/d.png\n')
    summary = extract([photos / "list.txt", photos / "list.csv"], net, tmp_path / "out", decoders=decoders, workers=2)
    dataset = FeatureDataset(tmp_path / "out")
    assert dataset.ids == [f"{photos}/list.txt/a.png", f"{photos}/list.txt/b/d.png"]
    assert summary.written == 2
    assert len(summary.failed) == len(set(ODD)) - 1 + 2  # a line of a space is blank
    assert summary.failed[f"{photos}/list.csv/2"] == "the row names no image"
    assert all(0 < len(reason) < 1000 for reason in summary.failed.values())


def test_rows_without_a_path_fail_under_their_id_or_number(photos):
    (photos / "list.csv").write_text("id,path\nx,a.png\ny,\n")
    items = find_items(photos / "list.csv")
    assert items.ids == ["x", "y"]
    pq.write_table(pa.table({"path": ["a.png", None, ""]}), photos / "t.parquet")
    items = find_items(photos / "t.parquet")
    assert items.ids == ["a.png", "row 2", "row 3"]
    with pytest.raises(ImageError, match="the row names no image"):
        items.read(1)


def test_an_id_that_is_empty_is_the_path(photos):
    (photos / "list.csv").write_text("id,path\n,a.png\n,b/d.png\n7,b/c.jpg\n")
    assert find_items(photos / "list.csv").ids == ["a.png", "b/d.png", "7"]


@pytest.mark.parametrize("name", ["b\u2028.png", "b\x85.png", "b\x0b.png", "b\x1e.png", "b\r.png", " b.png", "b .png"])
def test_a_line_ends_at_a_newline_alone(photos, name):
    (photos / name).write_bytes(png("blue"))
    (photos / "list.txt").write_bytes(f"a.png\r\n\r\n  \n{name}\n".encode())
    assert read(find_items(photos / "list.txt")) == [RED, BLUE]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_lists_of_every_encoding_of_unicode_are_read(photos, encoding, kind):
    (photos / "é 写.png").write_bytes(png("blue"))
    mark = "\ufeff" if encoding.endswith("e") else ""
    text = mark + ("path\r\n" if kind == "csv" else "") + "a.png\r\né 写.png\r\n"
    (photos / f"list.{kind}").write_bytes(text.encode(encoding))
    assert read(find_items(photos / f"list.{kind}")) == [RED, BLUE]


def test_blank_lines_of_a_csv_are_skipped_and_lines_are_counted_with_them(photos):
    (photos / "list.csv").write_text("\n  \npath,label\n\na.png,1\n   \r\nb/d.png,2\n\n")
    assert find_items(photos / "list.csv").ids == ["a.png", "b/d.png"]
    (photos / "list.csv").write_text("path,label\n\na.png,1\n\nb/d.png\n")
    with pytest.raises(ArgumentError, match="line 5 does not have the 2 values of the header"):
        find_items(photos / "list.csv")
    (photos / "list.csv").write_text("\n\n")
    with pytest.raises(ArgumentError, match="cannot be read as a list of images: it has no header"):
        find_items(photos / "list.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("\ud800.png", r"\ud800.png"),
        ("\udcff.png", r"\xff.png"),
        ("\udfff\udc7f", r"\udfff\udc7f"),
        ("\udcffé\ud83d", r"\xffé\ud83d"),
        ("a\nb", "a\nb"),
        ("写.png", "写.png"),
    ],
)
def test_an_id_is_text_whatever_the_name_is(name, text):
    assert as_text(name) == text


@pytest.mark.parametrize("path", ["a.png/" + "x/" * 2000, "a.png/b/c", "a.png", "\0", "x" * 10_000])
def test_a_stamp_of_any_path_is_that_of_the_file_it_lies_in_or_none(photos, monkeypatch, path):
    monkeypatch.chdir(photos)
    known = stamp_of("a.png")
    assert known is not None
    assert stamp_of(path) == (known if path.startswith("a.png") else None)


@pytest.mark.parametrize("text", ODD)
def test_an_input_of_any_text_is_refused_in_few_words(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError) as caught:
        find_items(f"{text}nowhere")
    assert len(str(caught.value)) < 1000
