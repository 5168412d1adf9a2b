"""The script that writes the page of numbers: sections that are not run stay as they are."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "report.py"


@pytest.fixture
def report(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("report", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code = (
        '"""What {name} measures.\n\npython benchmarks/{name}.py\n"""\nprint("a machine\\n| {name} |\\n|---|\\n| 1 |")'
    )
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(code.replace("{name}", name))
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(module, "SECTIONS", {"one": "First", "two": "Second"})
    return module


def run(report, monkeypatch, *names):
    monkeypatch.setattr("sys.argv", ["report.py", *names])
    report.main()
    return report.PAGE.read_text()


def test_a_section_has_what_the_script_says_of_itself_and_what_it_prints(report, monkeypatch):
    text = run(report, monkeypatch, "two")
    assert text.startswith("# Performance\n")
    assert text.endswith("## Second\n\nWhat two measures.\n\na machine\n\n| two |\n|---|\n| 1 |\n")


def test_sections_that_are_not_run_stay_and_all_are_in_order(report, monkeypatch):
    before = run(report, monkeypatch, "two")
    after = run(report, monkeypatch, "one")
    assert list(report.sections_of(report.PAGE)) == ["First", "Second"]
    assert after.endswith(before[before.index("## Second") :])
    assert run(report, monkeypatch) == after


def test_a_section_of_another_title_is_kept_behind_the_others(report, monkeypatch):
    run(report, monkeypatch, "two")
    report.PAGE.write_text(report.PAGE.read_text().replace("## Second", "## Second elsewhere"))
    run(report, monkeypatch)
    assert list(report.sections_of(report.PAGE)) == ["First", "Second", "Second elsewhere"]


def test_a_name_that_no_script_has_is_reported(report, monkeypatch):
    with pytest.raises(SystemExit, match="no benchmark is named three; choose among one, two"):
        run(report, monkeypatch, "three")
