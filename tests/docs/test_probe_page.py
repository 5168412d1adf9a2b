"""The table of docs/probe.md is of its script's form, and has the levels of its models."""

import re

from support.docs_scripts import ROOT, script

from featx import FeatureInfo
from featx.probe import Report, Row, Score

PAGE = ROOT / "docs" / "probe.md"


def test_scores_are_in_percent_and_the_best_is_bold():
    scores = [{"knn": Score(value, value - 0.1, value + 0.1), "rank": Score(2.5, 2, 3)} for value in (0.5, 0.8)]
    rows = [Row("m", FeatureInfo(8, 4, f"layer{index}"), one) for index, one in enumerate(scores)]
    lines = script("probe").table(Report(rows, [], 2, (), {})).splitlines()
    assert lines[0] == "| model | level | channels | reduction | kNN accuracy | effective rank |"
    assert lines[1:] == [
        "|---|---|---|---|---|---|",
        "| m | `layer0` | 8 | 4 | 50.0 ± 10.0 | 2.5 ± 0.5 |",
        "| m | `layer1` | 8 | 4 | **80.0 ± 10.0** | 2.5 ± 0.5 |",
    ]


def test_trained_weights_are_the_best_at_every_task_of_the_page():
    written = PAGE.read_text().partition(script("probe").START)[2].partition(script("probe").END)[0]
    rows = [line for line in written.splitlines() if re.match(r"\| (DINOv2|Efficient)", line)]
    assert len(rows) == 18
    bold = [row for row in rows if "**" in row]
    assert bold
    assert all(", trained |" in row for row in bold)
    assert {column for row in bold for column, cell in enumerate(row.split("|")) if "**" in cell} == {5, 6, 7, 8}
