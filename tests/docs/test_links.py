"""Links and paths in the documentation lead somewhere. Those between pages of the site are checked by its build."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = "featx|docs|tests|examples|benchmarks"
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pages
def test_links_to_files_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), f"{target}#{anchor}"


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them of plain words."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_paths_that_are_named_exist(page):
    for path in re.findall(rf"(?<![\w/])((?:{FOLDERS})/(?:\w+/)*\w+\.(?:py|md|png|svg))\b", page.read_text()):
        assert (ROOT / path).exists(), path
