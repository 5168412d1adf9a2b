"""Packages of AOTInductor, and extractors that torch.compile made."""

import pickle
import subprocess
import sys

import pytest
import torch
from conftest import images, random_extractor, worst
from exporting import TOLERANCE, needs_compiler, small

import featx
from featx import CheckpointError, InputError, MissingPackageError

pytestmark = pytest.mark.usefixtures("tolerant_of_torch")


@needs_compiler
@pytest.mark.sweep
def test_a_package_is_loaded_without_the_models_code(tmp_path):
    original, path = random_extractor("resnet18", out_indices=[2, 0]), tmp_path / "model.pt2"
    featx.export(original, path, example=images(2, 3, 64, 96))
    made = featx.load_exported(path)
    assert made.feature_info == original.feature_info
    for batch in (1, 3):
        assert worst(made, original, images(batch, 3, 64, 96)) < TOLERANCE
    with pytest.raises(InputError, match=r"for any batch of images of 64x96 pixels, got 1 of 64x64"):
        made(images(1, 3, 64, 64))
    torch.save({"images": images(1, 3, 64, 96), "maps": made(images(1, 3, 64, 96))}, tmp_path / "seen.pt")
    code = (
        f"import sys, torch, featx; seen = torch.load({str(tmp_path / 'seen.pt')!r}); "
        f"maps = featx.load_exported({str(path)!r})(seen['images']); "
        "print([torch.allclose(*pair, atol=1e-5) for pair in zip(maps, seen['maps'])], "
        "'featx.models.resnet' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[True, True] False"


@needs_compiler
@pytest.mark.sweep
def test_packages_run_on_the_machine_they_were_compiled_for(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    featx.export(small(), path, dtype=torch.bfloat16)
    made = featx.load_exported(path)
    assert made(images(2, 3, 32, 32))[0].dtype == torch.bfloat16
    assert 0.99 < min(made.agreement.values()) < 1
    twin = pickle.loads(pickle.dumps(made))
    assert torch.equal(twin(images(2, 3, 32, 32))[0], made(images(2, 3, 32, 32))[0])
    monkeypatch.setattr("featx.runtime.aot.machine", lambda device: {"torch": "1.0", "cpu": "DEFAULT"})
    with pytest.raises(CheckpointError, match=r"was compiled for PyTorch .*, here is 1\.0.*: export it again here"):
        featx.load_exported(path)


@needs_compiler
@pytest.mark.sweep
def test_compiled_extractors_compile_for_each_shape_and_stay_right():
    original = small()
    made = featx.optimize(original, runtime="compile")
    for shape in ((2, 3, 32, 32), (1, 3, 48, 40)):
        assert worst(made, original, images(*shape)) < TOLERANCE
        with torch.inference_mode():
            assert worst(made, original, images(*shape, seed=1)) < TOLERANCE
    assert len(made._engine._by_shape) == 2
    assert worst(pickle.loads(pickle.dumps(made)), original, images(2, 3, 32, 32)) < TOLERANCE


def test_a_missing_compiler_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingPackageError, match=r"runtime='aot' cannot be used: it needs a C\+\+ compiler"):
        featx.export(small(), tmp_path / "m.pt2")
    with pytest.raises(MissingPackageError, match=r"runtime='compile' cannot be used: it needs a C\+\+ compiler"):
        featx.optimize(small(), runtime="compile")
