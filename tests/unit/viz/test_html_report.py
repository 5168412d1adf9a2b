"""The HTML report: one file that contains everything."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import pytest
import torch
from PIL import Image

from featx import FeatureInfo, Levels, OutputError
from featx.viz import overlay
from featx.viz.html_report import Section, report, write_report

LEVELS = Levels([FeatureInfo(8, 4, "stem"), FeatureInfo(16, 8, "layer1"), FeatureInfo(32, 16, "<b>&amp;")])
NASTY = "<script>alert(\"1\")</script> & 'кофе' \udcff.png"


class Page(HTMLParser):
    """Everything a page holds: tags with attributes, and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(name: str = "cat.jpg", figures: int = 1) -> str:
    drawn = [overlay(Image.new("RGB", (30, 20)), torch.eye(2)) for _ in range(figures)]
    return report(f"maps of {name}", [f"weights: {name}"], {name: LEVELS.select([2, 0])}, [Section(name, drawn)])


def test_pictures_are_within_the_page():
    images = Page(page(figures=2)).attributes("img")
    assert len(images) == 2
    for attributes in images:
        start, _, data = attributes["src"].partition(",")
        assert start == "data:image/png;base64"
        with Image.open(BytesIO(base64.b64decode(data, validate=True))) as picture:
            picture.verify()
        assert attributes["alt"] == "maps of cat.jpg: cat.jpg"


def test_a_page_fetches_nothing():
    text = page()
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r'src="data:[^"]*"', "", text))
    assert {tag for tag, _ in Page(text).tags}.isdisjoint({"script", "link", "iframe", "object", "base"})
    (policy,) = [meta["content"] for meta in Page(text).attributes("meta") if "http-equiv" in meta]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_names_are_shown_as_they_are_and_never_read_as_html():
    read = Page(page(NASTY))
    shown = NASTY.replace("\udcff", r"\udcff")  # bytes that are no text
    assert not read.attributes("script")
    assert {shown, f"maps of {shown}", f"weights: {shown}"} <= {*read.texts}
    assert read.attributes("img")[0]["alt"] == f"maps of {shown}: {shown}"


def test_a_table_tells_the_levels_in_their_order():
    texts = [text for text in Page(page()).texts if text.strip()]
    start = texts.index("reduction") + 1
    assert texts[start : start + 8] == ["2", "<b>&amp;", "32", "1/16", "0", "stem", "8", "1/4"]


def test_a_page_is_written_in_utf8_into_a_folder_that_did_not_exist(tmp_path):
    write_report(page(NASTY), tmp_path / "new/report.html")
    assert "кофе" in (tmp_path / "new/report.html").read_bytes().decode("utf-8")


def test_a_page_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*report\.html: "):
        write_report("", tmp_path / "report.html")
