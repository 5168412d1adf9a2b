"""A file that is damaged, changed or wrongly described raises an error, or returns the same maps as before."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from conftest import images
from support.export_cases import PORTABLE, TOLERANCE, small
from support.export_cases import file as file
from support.fuzzing import answered, damaged, mutated

import featx
from featx import ArgumentError, CheckpointError, FeatxError
from featx.runtime.backends.onnxruntime import OnnxRuntimeEngine
from featx.runtime.description import KEY
from featx.runtime.onnx.file import DIGEST

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytestmark = pytest.mark.usefixtures("tolerant_of_torch")

IMAGES = images(2, 3, 32, 32)


@pytest.fixture(scope="module")
def truth(file) -> dict:
    return featx.load_exported(file)(IMAGES)


def with_description(file: Path, path: Path, change: Callable[[dict], object], signed: bool = True) -> Path:
    """Write a copy with a changed description; `signed` omits the digest, else the old one detects the change."""
    model = onnx.load(file)
    kept = {entry.key: entry.value for entry in model.metadata_props if not (signed and entry.key == DIGEST)}
    said = json.loads(kept[KEY])
    changed = change(said)
    kept[KEY] = json.dumps(said if changed is None else changed)
    onnx.helper.set_model_props(model, kept)
    path.write_bytes(model.SerializeToString())
    return path


def set_to(key: str, value: object) -> Callable[[dict], None]:
    return lambda said: said.update({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("levels", [[0, 2, "a.0"], [8, 4, "a_0"]]),
        ("levels", [[4, 2, "a.0"], [8, 4, "a.0"]]),
        ("levels", []),
        ("out_indices", [1, 1]),
        ("out_indices", [True]),
        ("in_chans", 4),
        ("size_divisor", 0),
        ("fixed_size", [32]),
        ("data_config", {"crop": 0}),
        ("data_config", {"unknown": 0}),
        ("data_config", 5),
        ("dtype", ["float32"]),
        ("computes", "int3"),
        ("agreement", [1]),
        ("smallest", "x"),
        ("shape", [1, 3, 32, 10**30]),
        ("free", [7]),
        ("free", {"0": 1}),
        ("version", 1),
        ("computes", "float64"),
    ],
    ids=str,
)
def test_values_that_a_description_cannot_have_are_reported(key, value, file, tmp_path):
    forged = with_description(file, tmp_path / "m.onnx", set_to(key, value))
    with pytest.raises(CheckpointError, match=r"m\.onnx describes no extractor that this version of featx knows \("):
        featx.load_exported(forged)


@pytest.mark.parametrize("runtime", PORTABLE)
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("output", "tokens", r"describes 'a_0_2?_?tokens', .* and its graph makes 'a_0', 'a_0_2' from 'images'"),
        ("levels", [[4, 2, "other"], [8, 4, "a_0"]], "describes 'other', 'a_0' made from 'images'"),
        ("levels", [[4, 2, "a.0"]], "describes 'a_0' made from 'images'"),
    ],
)
def test_a_description_of_another_graph_is_reported(key, value, message, runtime, file, tmp_path):
    def change(said: dict) -> None:
        said[key] = value
        said["out_indices"] = [0] if len(said["levels"]) == 1 else said["out_indices"]

    forged = with_description(file, tmp_path / "m.onnx", change)
    with pytest.raises(CheckpointError, match=message if key != "output" else "describes"):
        featx.load_exported(forged, runtime=runtime)


@pytest.mark.parametrize("runtime", PORTABLE)
def test_maps_that_are_not_of_the_levels_are_reported(runtime, file, tmp_path):
    forged = with_description(file, tmp_path / "m.onnx", set_to("levels", [[5, 2, "a.0"], [8, 4, "a_0"]]))
    with pytest.raises(CheckpointError, match=r"its graph returns \[\(2, 4, 16, 16\), .* of \[5, 8\] channels as dict"):
        featx.load_exported(forged, runtime=runtime)(IMAGES)


@pytest.mark.parametrize("runtime", PORTABLE)
def test_what_a_graph_cannot_run_is_reported(runtime, file, tmp_path):
    def change(said: dict) -> None:
        said.update(in_chans=5, shape=[1, 5, 32, 32])

    forged = with_description(file, tmp_path / "m.onnx", change)
    with pytest.raises(CheckpointError, match=r"(ONNX Runtime|OpenVINO) cannot run .*m\.onnx: "):
        featx.load_exported(forged, runtime=runtime)(images(1, 5, 32, 32))


def test_a_description_that_was_edited_is_reported(file, tmp_path):
    edited = with_description(file, tmp_path / "m.onnx", set_to("size_divisor", 2), signed=False)
    with pytest.raises(CheckpointError, match=r"m\.onnx was changed after it was written, or is damaged"):
        featx.load_exported(edited)


def test_a_changed_weight_is_reported(file, tmp_path):
    model = onnx.load(file)
    weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    weight.raw_data = bytes(len(weight.raw_data))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"m\.onnx was changed after it was written, or is damaged"):
        featx.load_exported(tmp_path / "m.onnx")


def test_a_file_of_an_earlier_version_has_no_digest(file, tmp_path, truth):
    earlier = with_description(file, tmp_path / "m.onnx", lambda said: None)
    assert_maps(featx.load_exported(earlier), truth)


def assert_maps(made, truth: dict) -> None:
    maps = made(IMAGES)
    assert list(maps) == list(truth)
    for name, map_ in maps.items():
        torch.testing.assert_close(map_, truth[name], rtol=TOLERANCE, atol=TOLERANCE)


# files that change while they are open


@pytest.fixture(scope="module")
def with_weights(tmp_path_factory) -> Path:
    """A file whose weights are in a second file."""
    from featx.runtime.onnx import file as of_featx

    path = tmp_path_factory.mktemp("large") / "large.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_featx, "LARGEST", 0)
        featx.export(small(out_indices=[1, 0], output="dict"), path)
    assert path.with_name("large.onnx.data").exists()
    return path


def assert_outlives(path: Path, runtime: str, x: torch.Tensor) -> None:
    """A loaded extractor still runs after its files were truncated; with mapped files, the process would crash."""
    made = featx.load_exported(path, runtime=runtime)
    before = made(x)
    for part in path.parent.glob(f"{path.name}*"):
        os.truncate(part, 1)
    after = made(x)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("runtime", PORTABLE)
def test_a_file_that_is_cut_short_while_it_is_used_stays_what_it_was(runtime, with_weights, tmp_path):
    for name in ("large.onnx", "large.onnx.data"):
        shutil.copy(with_weights.with_name(name), tmp_path)
    assert_outlives(tmp_path / "large.onnx", runtime, IMAGES)


@pytest.mark.parametrize("damage", ["changed", "short", "gone"])
def test_weights_beside_a_file_that_are_not_its_own_are_reported(damage, with_weights, tmp_path):
    path, weights = (shutil.copy(with_weights.with_name(name), tmp_path) for name in ("large.onnx", "large.onnx.data"))
    content = Path(weights).read_bytes()
    Path(weights).write_bytes(bytes(len(content)) if damage == "changed" else content[:9])
    if damage == "gone":
        os.remove(weights)
    with pytest.raises(CheckpointError, match=r"was changed after it was written, or is damaged|cannot be read: "):
        featx.load_exported(path)


def test_a_file_that_was_overwritten_is_not_pickled(file, tmp_path):
    shutil.copy(file, tmp_path / "m.onnx")
    made = featx.load_exported(tmp_path / "m.onnx")
    assert pickle.loads(pickle.dumps(made))(IMAGES)
    os.utime(tmp_path / "m.onnx", ns=(1, 1))
    with pytest.raises(ArgumentError, match="it cannot be pickled: it was overwritten"):
        pickle.dumps(made)


def test_a_file_that_is_too_large_for_its_format_is_reported(tmp_path):
    (tmp_path / "m.onnx").touch()
    os.truncate(tmp_path / "m.onnx", 2**40)
    with pytest.raises(CheckpointError, match=r"m\.onnx has 1099511627776 bytes, and an ONNX file no more than"):
        featx.load_exported(tmp_path / "m.onnx")


def test_a_file_that_changes_while_it_is_read_is_reported(file, tmp_path, monkeypatch):
    shutil.copy(file, tmp_path / "m.onnx")
    load = OnnxRuntimeEngine.load

    def slow(engine: OnnxRuntimeEngine) -> None:
        load(engine)
        os.utime(engine.path, ns=(1, 1))

    monkeypatch.setattr(OnnxRuntimeEngine, "load", slow)
    with pytest.raises(CheckpointError, match=r"m\.onnx was overwritten while it was read: load it again"):
        featx.load_exported(tmp_path / "m.onnx", runtime="onnxruntime")
    monkeypatch.setattr(OnnxRuntimeEngine, "load", lambda engine: engine.path.unlink())
    with pytest.raises(CheckpointError, match=r"m\.onnx cannot be read any more: "):
        featx.load_exported(tmp_path / "m.onnx", runtime="onnxruntime")


# many faults


def run(load: Callable[[], object], x: torch.Tensor) -> object:
    """The maps of the extractor if the file can be loaded."""
    made = answered(load)
    return made if isinstance(made, FeatxError) else answered(lambda: made(x))  # pyright: ignore[reportCallIssue]


def fuzz(file: Path, folder: Path, truth: dict, seeds: range) -> None:
    path = folder / "m.onnx"
    for seed in seeds:
        chance, runtime = Random(seed), PORTABLE[seed % 7 == 0]
        if chance.random() < 0.4:
            path.write_bytes(damaged(file.read_bytes(), chance))
            made = run(lambda runtime=runtime: featx.load_exported(path, runtime=runtime), IMAGES)
            if not isinstance(made, FeatxError):
                assert all(torch.allclose(made[name], truth[name], atol=1e-4) for name in truth)
            continue
        with_description(file, path, lambda said, chance=chance: mutated(said, chance))
        run(lambda runtime=runtime: featx.load_exported(path, runtime=runtime), IMAGES)


def test_no_change_of_a_file_is_answered_wrongly(file, tmp_path, truth):
    fuzz(file, tmp_path, truth, range(80))


@pytest.mark.sweep
def test_no_change_of_a_file_in_thousands_is_answered_wrongly(file, tmp_path, truth):
    fuzz(file, tmp_path, truth, range(1000, 6000))
