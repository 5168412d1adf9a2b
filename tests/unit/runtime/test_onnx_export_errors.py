"""Errors of export and of loading exported files, and the command `featx export`."""

import json
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from conftest import images
from support.export_cases import PORTABLE, small
from support.export_cases import file as file

import featx
from featx import ArgumentError, CheckpointError, InputError, MissingPackageError
from featx.runtime.description import KEY
from featx.runtime.onnx.file import read_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytestmark = pytest.mark.usefixtures("tolerant_of_torch")


def test_a_file_is_loaded_without_the_models_code(file):
    code = (
        f"import sys, torch, featx; maps = featx.load_exported({str(file)!r})(torch.zeros(1, 3, 32, 32)); "
        "print(list(maps), [name for name in sys.modules if name in ('timm', 'onnxscript', 'featx.models.resnet')])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "['a_0', 'a.0'] []"


@pytest.mark.parametrize("name", ["model.onx", "model", "model.pt2"])
def test_other_endings_are_refused(name, tmp_path):
    for call in (lambda: featx.export(small(), tmp_path / name), lambda: featx.load_exported(tmp_path / name)):
        with pytest.raises(ArgumentError, match=r"expected a file that ends in \.onnx"):
            call()


def test_a_folder_that_does_not_exist_is_made(tmp_path):
    featx.export(small(), tmp_path / "a" / "b" / "m.onnx")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("place", ["file/m.onnx", "folder.onnx", "s3://bucket/m.onnx"])
def test_a_place_that_cannot_be_written_is_reported_before_anything_is_captured(tmp_path, monkeypatch, place):
    def captured(*_: object) -> None:
        raise AssertionError("the model was captured")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(import_module("featx.runtime.onnx_export"), "prepare", captured)
    (tmp_path / "file").touch()
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(
        featx.OutputError, match=r"cannot write (file/m|folder)\.onnx: |s3://bucket/m.onnx is an address"
    ):
        featx.export(small(), place)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_file_that_does_not_exist_is_reported(tmp_path):
    with pytest.raises(featx.WeightsNotFoundError, match=r"there is no file .*m\.onnx"):
        featx.load_exported(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x0a\x50", b"no protobuf at all"])
def test_files_that_are_damaged_are_refused(content, tmp_path):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.onnx"):
        featx.load_exported(tmp_path / "m.onnx")


def test_a_file_of_another_program_is_refused(file, tmp_path):
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match=r"m\.onnx was not written by featx\.export: it has no description"):
        featx.load_exported(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 99),
        ("free", ["0"]),
        ("free", [4]),
        ("levels", [[1, 2]]),
        ("out_indices", [7]),
        ("output", "tuple"),
        ("dtype", "int3"),
        ("shape", [1]),
    ],
)
def test_descriptions_that_are_none_are_refused(key, value, file, tmp_path):
    model = onnx.load(file)
    entry = next(entry for entry in model.metadata_props if entry.key == KEY)
    entry.value = json.dumps({**json.loads(entry.value), key: value})
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match=r"m\.onnx describes no extractor that this version of featx knows"):
        read_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": torch.bfloat16}, r"it computes in .* not in torch\.bfloat16: pass one of them"),
        ({"dtype": torch.int8}, r"int8 is calibrated on images: pass several images like .* as example="),
    ],
)
def test_what_onnx_runtime_cannot_compute_in_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        featx.optimize(small(), runtime="onnxruntime", **arguments)


@pytest.mark.parametrize("runtime", PORTABLE)
def test_a_model_elsewhere_than_on_the_cpu_is_refused(runtime):
    with pytest.raises(ArgumentError, match=r"it runs on CPUs, and the model is on \['meta'\]"):
        featx.optimize(small().to("meta"), runtime=runtime)


def test_what_was_built_is_not_built_again(file):
    for call in (featx.optimize, lambda made: featx.export(made, "m.onnx")):
        with pytest.raises(ArgumentError, match=r"takes an extractor with weights, and this one was built without"):
            call(featx.load_exported(file))


def test_moving_or_converting_it_is_refused(file):
    made = featx.load_exported(file)
    with pytest.raises(ArgumentError, match=r"built by runtime='onnxruntime' for cpu and torch\.float32, and cannot"):
        made.double()
    assert made.cpu().float() is made


def test_images_elsewhere_are_refused(file):
    with pytest.raises(InputError, match=r"images are on meta, and this was built by runtime='onnxruntime' for cpu"):
        featx.load_exported(file)(images().to("meta"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dynamic": "all"}, "dynamic='all': choose one of"),
        ({"dtype": "int8"}, "dtype='int8': expected a torch.dtype"),
    ],
)
def test_unknown_arguments_of_export_are_refused(arguments, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        featx.export(small(), tmp_path / "m.onnx", **arguments)


def test_another_runtime_than_the_files_is_refused(file):
    with pytest.raises(ArgumentError, match=r"runtime='eager': \.onnx files run on onnxruntime or openvino"):
        featx.load_exported(file, runtime="eager")


def test_missing_packages_are_reported(file, monkeypatch):
    monkeypatch.setattr("featx.runtime.available.find_spec", lambda package: None)
    with pytest.raises(
        MissingPackageError, match=r"runtime='openvino' cannot be used: .*pip install 'featx\[openvino\]'"
    ):
        featx.optimize(small(), runtime="openvino")
    with pytest.raises(MissingPackageError, match=r"cannot be run by onnxruntime: .*pip install 'featx\[onnx\]'"):
        featx.load_exported(file)


def test_the_command_writes_a_file(tmp_path, monkeypatch, capsys):
    import featx.cli

    path = tmp_path / "m.onnx"
    words = ("--random-weights", "0", "--out-indices", "1,0", "--size", "64")
    monkeypatch.setattr(sys, "argv", ["featx", "export", "mobilenetv3_small_050", str(path), *words])
    with pytest.raises(SystemExit) as exit_:
        featx.cli.main()
    assert not exit_.value.code
    assert "m.onnx: 2 maps, weights: random, seed 0" in capsys.readouterr().out.replace("\n", "")
    assert featx.load_exported(path).feature_info.reduction() == [4, 2]
