"""The result of a probe: scores per model and level, CKA between levels, and the files that hold them."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import OutputError
from ..features import FeatureInfo
from ..locks import MOMENT
from ..whole_files import alone, local, whole_file
from .bootstrap import Score

Task = Literal["knn", "linear", "segmentation", "correspondence", "rank"]
# Names of the scores in tables and charts.
TITLES: Mapping[Task, str] = {
    "knn": "kNN accuracy",
    "linear": "linear accuracy",
    "segmentation": "linear mIoU",
    "correspondence": "PCK",
    "rank": "effective rank",
}
# Scores of which more is better; a high rank by itself is not.
QUALITIES: Sequence[Task] = ("knn", "linear", "segmentation", "correspondence")
SUFFIXES = (".json", ".csv")


@dataclass(frozen=True, slots=True)
class Row:
    """The scores of a level.

    Attributes:
        model: name.
        level: channels, reduction and name.
        scores: by task.
    """

    model: str
    level: FeatureInfo
    scores: Mapping[Task, Score]


@dataclass(frozen=True, slots=True)
class Report:
    """The scores of all models and levels.

    Attributes:
        rows: one per model and level.
        cka: CKA of every row with every row; empty if it was not measured.
        images: their number.
        classes: names of the classes of images; empty without labels.
        settings: folds, neighbors, threshold, pairs and seed.
        omitted: reasons, by the name of each task that was not measured.
    """

    rows: Sequence[Row]
    cka: Sequence[Sequence[Score]]
    images: int
    classes: Sequence[str]
    settings: Mapping[str, Any]
    omitted: Mapping[str, str] = field(default_factory=dict)

    @property
    def tasks(self) -> list[Task]:
        """The measured tasks that have a score per level."""
        return [task for task in TITLES if task in self.rows[0].scores]

    def best(self, task: Task) -> list[Row]:
        """The rows with the highest score; none for the rank, which is not a quality."""
        values = [row.scores[task].value for row in self.rows if not math.isnan(row.scores[task].value)]
        if task not in QUALITIES or not values:
            return []
        return [row for row in self.rows if row.scores[task].value == max(values)]

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON object; scores that are not defined are null."""
        rows = [
            {
                "model": row.model,
                "level": row.level.name,
                "chs": row.level.chs,
                "reduction": row.level.reduction,
                "scores": {task: _numbers(score) for task, score in row.scores.items()},
                "best": [task for task in self.tasks if row in self.best(task)],
            }
            for row in self.rows
        ]
        facts = {"images": self.images, "classes": list(self.classes), **self.settings, "omitted": dict(self.omitted)}
        return {**facts, "rows": rows, "cka": [[_numbers(score) for score in row] for row in self.cka]}

    def save(self, path: str | Path) -> None:
        """Write the report as .json, or as .csv, with a row per model and level and without CKA.

        Raises:
            OutputError: the file has another suffix, or cannot be written.
        """
        path = require_suffix(path)
        with alone(path, MOMENT), whole_file(path) as part:
            if path.suffix.lower() == ".json":
                part.write_text(json.dumps(self.as_json(), indent=2) + "\n", encoding="utf-8")
                return
            with part.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(self._table())

    def _table(self) -> list[list[object]]:
        scores = [name for task in self.tasks for name in (task, f"{task}_low", f"{task}_high")]
        rows: list[list[object]] = [["model", "level", "chs", "reduction", *scores]]
        for row in self.rows:
            numbers = [number for task in self.tasks for number in asdict(row.scores[task]).values()]
            rows.append([row.model, row.level.name, row.level.chs, row.level.reduction, *numbers])
        return rows


def require_suffix(path: str | Path) -> Path:
    """The path of a report; OutputError unless it ends in .json or .csv."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise OutputError(f"{path}: name a report that ends with {' or '.join(SUFFIXES)}")
    return local(path)


def _numbers(score: Score) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in asdict(score).items()}
