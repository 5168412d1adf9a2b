"""Readers of whole folders refuse an unfinished one, or read its finished part on request."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from support.extraction import extract_threes, plan_of, run_stats, small_extractor, ten_colors
from typer.testing import CliRunner

from featx import OutputError
from featx.bulk import check_files, check_sources, merge, stats
from featx.bulk.converters import Format, convert
from featx.bulk.meta import Meta
from featx.bulk.output_folder import missing_shards
from featx.bulk.preview import save_picture
from featx.bulk.shard import shard_name
from featx.cli import app

READERS: dict[str, Callable[..., Any]] = {
    "stats": lambda folder, **asked: stats(folder, **asked),
    "check_files": lambda folder, **asked: check_files(folder, **asked),
    "check_sources": lambda folder, **asked: check_sources(folder, **asked),
    "save_picture": lambda folder, **asked: save_picture(folder, folder.parent / "a.png", **asked),
    "merge": lambda folder, **asked: merge([folder], folder.parent / "merged", **asked),
}
TOLD = (
    r"2 of 4 files are missing \(1, 3\)\. Run the featx extract command again .* with --partial \(in Python, partial="
)


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """The first and third of four files."""
    folder = tmp_path_factory.mktemp("half")
    extract_threes(ten_colors(folder / "in"), small_extractor(), folder / "out", shard="0/2")
    extract_threes(folder / "in", small_extractor(), folder / "vectors", shard="0/2", pooling="mean")
    return folder / "out"


@pytest.mark.parametrize("name", READERS)
def test_an_unfinished_folder_is_refused_with_what_is_missing_and_what_to_do(half, name):
    with pytest.raises(OutputError, match=TOLD):
        READERS[name](half)
    READERS[name](half, partial=True)


@pytest.mark.parametrize("format", get_args(Format))
def test_an_unfinished_folder_is_not_converted_unless_asked_for(half, tmp_path, format):
    with pytest.raises(OutputError, match=TOLD):
        convert(half.parent / "vectors", tmp_path / "out", format)
    assert not list(tmp_path.iterdir())
    assert convert(half.parent / "vectors", tmp_path / "out", format, partial=True) == 6


@pytest.mark.parametrize("words", [(), ("--sources",), ("--check",)])
def test_the_command_stats_takes_what_is_there_where_it_is_asked_for(half, words):
    assert isinstance(run_stats(half, *words).exception, OutputError)
    assert run_stats(half, *words, "--partial").exit_code == 0


def test_the_command_convert_takes_what_is_there_where_it_is_asked_for(half, tmp_path):
    command = ["convert", str(half), "--out", str(tmp_path / "a"), "--format", "npy"]
    assert isinstance(CliRunner().invoke(app, command).exception, OutputError)
    assert "6 images as npy" in CliRunner().invoke(app, [*command, "--partial"]).output


def test_the_command_index_tells_what_is_missing(half):
    done = CliRunner().invoke(app, ["index", str(half)])
    assert done.exit_code == 0
    assert "6 images" in done.output
    assert "unfinished: files 1, 3 of 4 are missing" in done.output


def test_what_is_missing_is_known_from_names():
    plan = plan_of("a", 3, 1)
    meta = Meta((plan,), 1)
    assert missing_shards(meta, [shard_name(0)]) == []
    assert missing_shards(meta, []) == [0]
    assert missing_shards(meta, [shard_name(7)]) == [0]
    grown = Meta((replace(plan, items=3, kept=(0, 2)), replace(plan, items=2, first=3)), 4)
    assert missing_shards(grown, [shard_name(1), shard_name(2), shard_name(3)]) == [0, 4]


def test_many_that_are_missing_are_reported_in_short(tmp_path):
    extract_threes(ten_colors(tmp_path / "in"), small_extractor(), tmp_path / "out", rows_per_shard=1)
    for number in range(0, 10, 2):
        (tmp_path / "out" / shard_name(number)).unlink()
    with pytest.raises(OutputError, match=r"5 of 10 files are missing \(0, 2, 4, 6, 8\)"):
        stats(tmp_path / "out")
