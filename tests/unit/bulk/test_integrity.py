"""The checksum in the header of a file detects every changed byte."""

import hashlib
import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.extraction import extract_threes, run_stats, small_extractor, ten_colors

from featx import FeatureDataset, FeatureExtractWrapper, OutputError
from featx.bulk import check_files
from featx.bulk.shard import KEY


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return small_extractor()


@pytest.fixture
def folder(tmp_path, extractor) -> Path:
    extract_threes(ten_colors(tmp_path / "in"), extractor, tmp_path / "out")
    return tmp_path / "out"


def said_in(file: Path) -> dict:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()[KEY])


OPTIONS = [{}, {"dtype": "bfloat16"}, {"pooling": "mean", "dtype": "float16"}, {"keep_aspect": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_files_as_they_were_written_are_sound(tmp_path, extractor, options):
    extract_threes(ten_colors(tmp_path / "in"), extractor, tmp_path / "out", **options)
    found = check_files(tmp_path / "out")
    assert (found.sound, found.damaged, found.unknown) == (4, {}, 0)


def test_the_digest_is_that_of_the_header_and_the_bytes_after_it(folder):
    file = folder / "maps-000001.safetensors"
    content, said, tensors = file.read_bytes(), said_in(file), load_file(file)
    digest = said.pop("digest")
    shapes = {name: list(tensors[name].shape) for name in sorted(tensors)}
    end = 8 + int.from_bytes(content[:8], "little")
    assert hashlib.sha256(json.dumps([said, shapes]).encode() + content[end:]).hexdigest() == digest


@pytest.mark.parametrize("place", ["first number", "last number", "an id", "a size", "the digest"])
def test_a_bit_that_flipped_is_reported_with_its_file(folder, place):
    file = folder / "maps-000001.safetensors"
    content = bytearray(file.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    digest = said_in(file)["digest"].encode()
    at = {
        "first number": end,
        "last number": len(content) - 1,
        "an id": content.index(b"3.png"),
        "a size": content.index(b"[40, 40]") + 2,
        "the digest": content.index(digest),
    }[place]
    content[at] ^= 1
    file.write_bytes(content)
    found = check_files(folder)
    assert (found.sound, list(found.damaged), found.unknown) == (3, [str(file)], 0)
    assert found.damaged[str(file)] == f"{file} holds other bytes than were written: its checksum differs"


def test_a_file_that_is_cut_is_reported_beside_the_others(folder):
    file = folder / "maps-000002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "it is cut short" in check_files(folder).damaged[str(file)]


def test_files_of_earlier_versions_are_read_and_counted_as_without_a_checksum(folder):
    file = folder / "maps-000000.safetensors"
    said = said_in(file)
    del said["digest"]
    save_file(load_file(file), file, {KEY: json.dumps(said)})
    found = check_files(folder)
    assert (found.sound, found.damaged, found.unknown) == (3, {}, 1)
    assert len(FeatureDataset(folder)) == 9


def test_progress_is_reported_of_every_file(folder):
    seen: list[tuple[int, int]] = []
    check_files(folder, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_command_checks_and_exits_with_1_for_damage(folder):
    done = run_stats(folder, "--check")
    assert (done.exit_code, done.stdout) == (0, "files: 4 sound, 0 damaged, 0 without a checksum\n")
    file = folder / "maps-000003.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    done = run_stats(folder, "--check", "--json")
    assert done.exit_code == 1
    assert list(json.loads(done.stdout)["damaged"]) == [str(file)]


def test_an_unfinished_folder_is_refused_unless_asked_for(folder):
    (folder / "maps-000003.safetensors").unlink()
    with pytest.raises(OutputError, match=r"out is unfinished: 1 of 4 files are missing \(3\)"):
        check_files(folder)
    assert check_files(folder, partial=True).sound == 3
