"""What the documentation shows runs, and what it tells of the code is so."""

import re
import shlex

import pytest
import typer
from conftest import SMALL_VARIANTS
from support.docs_scripts import ROOT, script

import featx
from featx.cli import app

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    """What every page shows in that language, as parameters of a test."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [
        pytest.param(block, id=f"{page.name}-{number}")
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
        for number, block in enumerate(fence.findall(page.read_text()))
    ]


@pytest.mark.parametrize("block", blocks("python"))
def test_a_shown_block_runs(block, own_registry):
    exec(compile(block, "documentation", "exec"), {})


@pytest.mark.parametrize("block", blocks("sh"))
def test_shown_commands_exist_with_their_options(block):
    for line in block.splitlines():
        match shlex.split(line, comments=True):
            case ["featx", *words]:
                parse(typer.main.get_command(app), words)
            case ["make", *targets]:
                for target in targets:
                    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
            case [_, *words]:
                scripts = [word for word in words if re.fullmatch(r"[\w/]+\.(py|sh)", word)]
                assert all((ROOT / script).exists() for script in scripts), line


def parse(command, words):
    """Raise a usage error if the command does not take these words."""
    context = command.make_context(command.name, list(words))
    if hasattr(command, "commands"):
        inner = command.get_command(context, words[0])
        assert inner is not None, f"there is no command {words[0]}"
        parse(inner, words[1:])


def test_an_option_that_does_not_exist_would_be_found():
    with pytest.raises(Exception, match="No such option"):
        parse(typer.main.get_command(app), ["weights", "inspect", "w.pth", "--modell", "resnet18"])


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


def test_the_table_that_the_quickstart_shows_is_what_is_printed():
    shown = (ROOT / "docs" / "quickstart.md").read_text()
    assert str(featx.create_model("resnet18", features_only=True).feature_info) in shown


def rows_of_the_models_page():
    table = (ROOT / "docs" / "models.md").read_text().partition(script("models").MARK)[2]
    return {re.match(r"\| `(\w+)`", line).group(1): line for line in table.splitlines(keepends=True)[3:]}


def test_the_page_of_models_lists_every_model():
    assert sorted(rows_of_the_models_page()) == featx.list_models(), "run python docs/models.py"


@pytest.mark.parametrize("name", SMALL_VARIANTS)
def test_a_row_of_the_page_of_models_is_what_its_script_writes(name):
    assert rows_of_the_models_page()[name] == script("models").row(name), "run python docs/models.py"


@pytest.mark.sweep
def test_every_row_of_the_page_of_models_is_what_its_script_writes():
    write = script("models").row
    assert rows_of_the_models_page() == {name: write(name) for name in featx.list_models()}, "run python docs/models.py"


def test_the_picture_of_the_rooms_is_what_its_script_draws():
    for path, text in script("architecture").render().items():
        assert path.read_text() == text, "run python docs/architecture.py"
