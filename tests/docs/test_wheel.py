"""The wheel, built and installed beside nothing but the core dependencies, as a user gets it."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN_UV = ROOT / ".uv" / "bin" / "uv"
UV = shutil.which("uv") or (str(OWN_UV) if OWN_UV.exists() else None)
OPTIONAL = ("transformers", "matplotlib", "gradio", "pytest")
pytestmark = [pytest.mark.sweep, pytest.mark.skipif(UV is None, reason="needs uv: pip install uv")]

# A user's file, of which every line is held to the types that the package states.
PROJECT = """\
from pathlib import Path

import featx
import torch
from featx import FeatureExtractWrapper, Levels
from featx.necks import FPN, Pipeline


def pyramid(name: str) -> Pipeline:
    backbone = featx.create_model(name, features_only=True, out_indices=[-2, -1])
    return Pipeline(backbone, FPN(backbone.feature_info, 64))


def load(path: Path) -> FeatureExtractWrapper:
    return featx.create_model("resnet18", features_only=True, checkpoint_path=path)


levels: Levels = pyramid("resnet18").feature_info
stride: int = levels[0].reduction
faster: featx.FeatureExtractWrapper | torch.nn.Module = featx.optimize(load(Path("w.pth")).eval())
heads: list[torch.nn.Module] = [featx.create_segmenter("linear", "resnet18", num_classes=3)]
"""
WRONG = 'import featx\n\nfeatx.create_model("resnet18", features_only=True, out_indices="34")\n'


def uv(*words: object) -> None:
    """Run uv from its cache alone; skip where that lacks a package."""
    ran = subprocess.run([str(UV), *map(str, words), "--offline"], cwd=ROOT, capture_output=True, text=True)
    if ran.returncode and re.search("network (was|connectivity is) disabled|not found in the cache", ran.stderr, re.I):
        pytest.skip(f"uv {words[0]} needs packages that are not in its cache: {ran.stderr[-300:]}")
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "-q", "--wheel", "-o", folder, ".")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that holds the wheel and its core dependencies."""
    environment = tmp_path_factory.mktemp("clean") / "venv"
    uv("venv", "-q", "--python", sys.executable, environment)
    python = environment / "bin" / "python"
    uv("pip", "install", "-q", "--python", python, "-c", "constraints.txt", wheel)
    return python


def run(*words: object, cwd: Path) -> str:
    return subprocess.run([*map(str, words)], cwd=cwd, check=True, capture_output=True, text=True).stdout


def test_it_holds_the_package_and_nothing_else(wheel):
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    assert {name.parts[0].partition("-")[0] for name in names} == {"featx", "featx_command.py"}
    inside = [name for name in names if name.parts[0] == "featx"]
    assert {name.suffix for name in inside} == {".py", ".typed"}
    assert {str(name) for name in inside} == {
        str(path.relative_to(ROOT)) for path in (ROOT / "featx").rglob("*") if path.suffix in (".py", ".typed")
    }


def test_it_runs_without_the_optional_packages(python, tmp_path):
    installed = f"from importlib.util import find_spec; print([name for name in {OPTIONAL} if find_spec(name)])"
    assert run(python, "-c", installed, cwd=tmp_path).strip() == "[]"
    listed = run(python.with_name("featx"), "list", "resnet1*", cwd=tmp_path)
    assert "resnet18" in [line.split()[0] for line in listed.splitlines()]
    forward = (
        "import featx, torch; extractor = featx.create_model('resnet18', features_only=True, out_indices=[-1]).eval(); "
        "print(tuple(featx.optimize(extractor)(torch.randn(1, 3, 64, 96))[0].shape), featx.__file__)"
    )
    shape, _, where = run(python, "-c", forward, cwd=tmp_path).strip().rpartition(" ")
    assert shape == "(1, 512, 2, 3)"
    assert str(python.parents[1]) in where


def test_what_needs_an_optional_package_names_it(python, tmp_path):
    code = "import featx; featx.create_model('transformers/resnet')"
    ran = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    expected = "MissingPackageError: models of transformers need the package: pip install 'featx[transformers]'"
    assert expected in ran.stderr


def test_its_types_are_seen_from_a_users_project(python, tmp_path):
    pyright = [Path(sys.executable).with_name("pyright"), "--pythonpath", python]
    (tmp_path / "project.py").write_text(PROJECT)
    assert "0 errors" in run(*pyright, "project.py", cwd=tmp_path)
    (tmp_path / "wrong.py").write_text(WRONG)
    ran = subprocess.run([*map(str, pyright), "wrong.py"], cwd=tmp_path, capture_output=True, text=True)
    assert "out_indices" in ran.stdout
    assert ran.returncode == 1
