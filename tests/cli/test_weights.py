"""The commands that inspect and convert weight files."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from conftest import randomize
from support.cli import runner
from support.hub_server import Repository
from support.saved_model import NAME
from support.saved_model import trained as trained
from torch import Tensor

import featx
import featx.cli
from featx.weights.serialization import write_checkpoint


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `featx weights …` within this process."""
    return runner(monkeypatch, capsys, "weights")


def write(state: dict[str, Tensor], path: Path) -> Path:
    write_checkpoint(state, path)
    return path


def test_inspect_counts_tensors_types_and_values(run, tmp_path):
    state = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2).half(), "n": torch.tensor(1)}
    path = write(state, tmp_path / "w.safetensors")
    ran = run("inspect", path)
    assert ran.status == 0
    assert f"{path}: 3 tensors (" in ran.out.replace("\n", "")
    for words in (
        "1 float32",
        "1 float16",
        "1 int64",
        "9 values",
        "names such as n, a.weight, a.bias",
        "no other program's",
    ):
        assert words in ran.out


def test_inspect_names_values_that_are_not_finite(run, tmp_path):
    path = write(
        {"a": torch.tensor([1, torch.nan]), "b": torch.zeros(1), "c": torch.tensor([-torch.inf])}, tmp_path / "w.pt"
    )
    lines = run("inspect", path).out.splitlines()
    assert [line for line in lines if "NaN" in line] == [f"holds infinite values or NaN: {name}" for name in "ac"]


def test_inspect_says_whose_layout_it_is(run, tmp_path):
    mobile = torchvision.models.mobilenet_v3_small(num_classes=2).state_dict()
    assert "layout: torchvision, for the family MobileNetV3" in run("inspect", write(mobile, tmp_path / "m.pt")).out


def test_inspect_for_a_model_says_what_loading_would_do(run, trained, tmp_path):
    path = write({f"module.{n}": t for n, t in trained.state_dict().items()}, tmp_path / "w.pth")
    ran = run("inspect", path, "--model", NAME)
    assert ran.status == 0
    assert "tensors loaded, layout native" in ran.out
    assert "fresh    classifier.weight" in ran.out


def test_inspect_opens_the_container_that_is_asked_for(run, trained, tmp_path):
    torch.save({"model": {"x": torch.zeros(1)}, "model_ema": trained.state_dict()}, tmp_path / "w.pt")
    ran = run("inspect", tmp_path / "w.pt", "--model", NAME, "--container", "model_ema")
    assert (ran.status, ran.err) == (0, "")
    assert "1 tensors" in run("inspect", tmp_path / "w.pt").out


def test_inspect_takes_a_repository(run, hub):
    hub.repositories["someone/theirs"] = Repository(
        {"model.safetensors": safetensors.torch.save({"a": torch.zeros(2)})}
    )
    ran = run("inspect", "hf-hub:someone/theirs")
    assert ran.status == 0
    assert "hf-hub:someone/theirs: 1 tensors" in ran.out


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize(
    ("name", "theirs"), [("resnet18", "resnet18"), ("mobilenetv3_small_100", "mobilenet_v3_small")]
)
def test_convert_to_torchvision_and_back_changes_nothing(run, tmp_path, name, theirs, suffix):
    state = randomize(featx.create_model(name)).state_dict()
    path, there, back = (tmp_path / f"{stem}{suffix}" for stem in ("native", "there", "back"))
    write(state, path)
    ran = run("convert", path, there, "--model", name, "--to", "torchvision")
    assert (ran.status, ran.err) == (0, "")
    oracle = torchvision.models.get_model(theirs)
    read = safetensors.torch.load_file(there) if suffix == ".safetensors" else torch.load(there)
    oracle.load_state_dict(read)
    assert run("convert", there, back, "--model", name).status == 0
    read = safetensors.torch.load_file(back) if suffix == ".safetensors" else torch.load(back)
    assert read.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in read.items())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("inspect", "none.pt"), "none.pt is not a file of weights or a folder with them"),
        (("inspect", "w.pt", "--model", "resnett18"), "no model is named 'resnett18'"),
        (("inspect", "w.pt", "--model", NAME), "tensors differ and none was loaded"),
        (("inspect", "w.pt", "--container", "ema"), "no container 'ema'; the checkpoint has ['a']"),
        (("inspect", "w.pt", "--model", NAME, "--layout", "cvnets"), "no layout 'cvnets' for this family"),
        (("convert", "w.pt", "v.pt", "--model", NAME), "tensors differ and none was loaded"),
        (("convert", "good.pt", "v.pt", "--model", NAME, "--to", "caffe"), "no layout 'caffe' for this family"),
        (("convert", "good.pt", "v.onnx", "--model", NAME), "expected a file that ends in .safetensors, .pt or .pth"),
        (("convert", "good.pt", "w.pt/v.pt", "--model", NAME), "cannot write w.pt/v.pt"),
        (("inspect", "cut.pt"), "cut.pt is not a whole PyTorch file"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(run, tmp_path, monkeypatch, words, problem):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("featx.registry.names_elsewhere", list)
    write({"a": torch.zeros(2)}, Path("w.pt"))
    if words[1] == "good.pt":
        write(featx.create_model(NAME).state_dict(), Path("good.pt"))
    Path("cut.pt").write_bytes(Path("w.pt").read_bytes()[:-30])
    ran = run(*words)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert problem in ran.err
    assert not list(Path().glob("v.*"))
