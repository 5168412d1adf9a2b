"""Names of files, tensors and models, and output of other packages, cannot control the terminal."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.cli import NAME, SMALL
from support.cli import run as run

import featx
from featx import FeatxError
from featx.bulk.meta import Plan
from featx.errors import CONTROLS, escaped, escaped_lines, in_short, names_in, shortened

HOSTILE = "\x1b[31m\x1b]0;title\x07\x9b2J\r\x08\u202egnp\u2066:smile:[bold]\n  ok"
SHOWN = r"\x1b[31m\x1b]0;title\x07\x9b2J\r\x08\u202egnp\u2066:smile:[bold]\n  ok"


def assert_harmless(*texts: str) -> None:
    """No control character but the ends of lines, and those that begin as no line of ours does."""
    for text in texts:
        assert not CONTROLS.search(text.replace("\n", "")), repr(text)


@pytest.mark.parametrize(
    "character", [*map(chr, range(32)), *map(chr, range(127, 160)), *"\u202a\u202e\u2066\u2069\ud800"]
)
def test_every_control_character_is_escaped(character):
    assert escaped(f"a{character}b") == "a" + character.encode("unicode_escape").decode() + "b"
    assert escaped_lines(f"a{character}b\nc").endswith("b\nc")


@pytest.mark.parametrize("name", ["кофе.jpg", "写真 1.png", "👩‍👩‍👧.png", "a\u00a0b", r"back\slash", "é"])
def test_other_names_stay_as_they_are(name):
    assert escaped(name) == name


def test_errors_are_escaped_in_whatever_way_they_are_made():
    kinds = [FeatxError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        error = kind(f"first {HOSTILE}")
        for made in (error, pickle.loads(pickle.dumps(error))):
            assert_harmless(str(made), f"{made}", in_short(made))
            assert str(made) == f"first {escaped_lines(HOSTILE)}"
    assert len(kinds) > 10


def test_what_is_listed_in_a_message_stays_in_its_line():
    assert shortened([HOSTILE]) == [SHOWN]
    assert_harmless(names_in([HOSTILE]), in_short(ValueError(HOSTILE)))
    assert "\n" not in names_in([HOSTILE])


@pytest.fixture
def photographs(tmp_path) -> Path:
    """One that can be read and two that cannot, all of hostile names."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / f"{HOSTILE}.png".replace("/", ""))
    (folder / f"{HOSTILE}2.png").write_text("no image")
    (folder / "\x1b[2J.jpg").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    "words", [("list", HOSTILE), ("info", HOSTILE), ("verify", HOSTILE), ("list", f"timm/*{HOSTILE}")]
)
def test_hostile_names_of_models(run, words):
    done = run(*words)
    assert done.status == 2
    assert_harmless(done.out, done.err)


def test_hostile_names_of_images(run, photographs, tmp_path):
    extracted = run("extract", photographs, *SMALL, "--out", tmp_path / HOSTILE)
    assert extracted.status == 1
    assert f"  {SHOWN}2.png: not an image" in extracted.out
    assert_harmless(extracted.out, extracted.err)
    told = run("extract", photographs, *SMALL, "--out", tmp_path / "json", "--log", "json")
    assert_harmless(told.out, told.err)
    assert [json.loads(line)["event"] for line in told.out.splitlines()] == ["shard", "summary"]
    (photographs / f"{HOSTILE}.png").unlink()
    for words in (("stats",), ("stats", "--sources"), ("stats", "--json"), ("index",), ("convert", "--format", "zip")):
        assert_harmless(*vars_of(run(words[0], tmp_path / HOSTILE, *words[1:])))
    assert f"  {SHOWN}.png: " in run("stats", "--sources", tmp_path / HOSTILE).out
    merged = run("merge", tmp_path / HOSTILE, tmp_path / "json", "--out", tmp_path / f"{HOSTILE}3")
    assert_harmless(merged.out, merged.err)
    assert_harmless(*vars_of(run("show", photographs, *SMALL, "--out", tmp_path / "a.png")))
    assert_harmless(*vars_of(run("show", tmp_path / f"no{HOSTILE}", *SMALL, "--out", tmp_path / "a.png")))


def vars_of(done) -> tuple[str, str]:
    return done.out, done.err


def test_hostile_names_of_models_and_levels_in_folders(run, tmp_path):
    facts = {
        "model": HOSTILE,
        "levels": [{"name": "a", "chs": 4, "reduction": 2, "pooling": "mean"}],
        "dtype": "float32",
        "keep_aspect": False,
        "size": None,
        "preprocessing": {},
    }
    plan = Plan(facts, 1, HOSTILE, 1)
    meta = {
        "format": 1,
        "decided": facts,
        "items": {"count": 1, "sha256": HOSTILE},
        "rows_per_shard": 1,
        "shards": 1,
        "fingerprint": plan.fingerprint,
        "recorded": {},
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    done = run("stats", tmp_path, "--partial")
    assert done.status == 0
    assert_harmless(done.out, done.err)
    facts["levels"][0]["pooling"] = HOSTILE
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    done = run("stats", tmp_path)
    assert done.status == 2
    assert_harmless(done.out, done.err)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_hostile_names_of_tensors(run, tmp_path, suffix):
    state = {**featx.create_model(NAME).state_dict(), HOSTILE: torch.zeros(1), f"{HOSTILE}2": torch.tensor([torch.nan])}
    state = {HOSTILE: state.pop(HOSTILE), **state}
    path = tmp_path / f"{HOSTILE}{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    for words in (
        ("inspect", path),
        ("inspect", path, "--model", NAME),
        ("convert", path, tmp_path / "b.pt", "--model", NAME),
    ):
        done = run("weights", *words)
        assert_harmless(done.out, done.err)
        assert r"\x1b[31m" in done.out + done.err
    assert_harmless(*vars_of(run("weights", "inspect", tmp_path / f"no{HOSTILE}.pth")))


def test_a_report_of_loading_shows_hostile_names():
    report = featx.LoadReport(
        HOSTILE, skipped={HOSTILE: "no such parameter"}, fresh=(HOSTILE,), adapted={HOSTILE: "cast"}
    )
    assert_harmless(str(report))
    assert len(str(report).splitlines()) == 4
