"""What the documentation shows runs."""

import re
from pathlib import Path

import pytest

import featx

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_shown_block_runs(block):
    exec(compile(block, "documentation", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_readme_counts_every_variant():
    counts = re.findall(r"^\| [A-Z].* \| (\d+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sum(map(int, counts)) == len(featx.list_models())


def test_what_the_comments_of_the_contract_page_say_is_so():
    page = (ROOT / "docs" / "contract.md").read_text()
    block = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL).group(1)
    scope = {}
    exec(block, scope)
    shown = re.findall(r"^(backbone\S.*?) +# (.*)$", block, re.MULTILINE)
    assert len(shown) == 4
    for expression, value in shown:
        assert repr(eval(expression, scope)).replace('"', "'") == value.replace('"', "'")
