"""The cost of `import featx`, measured in a process of its own."""

import json
import subprocess
import sys

import pytest

import featx

HEAVY = {"timm", "torchvision", "transformers", "matplotlib", "PIL", "typer", "rich", "huggingface_hub", "safetensors"}
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
LAZY = {
    f"featx.{name}"
    for name in (
        "adapters",
        "bulk",
        "cvnets",
        "explain",
        "heads",
        "necks",
        "probe",
        "registers",
        "runtime",
        "training",
        "upsampling",
        "viz",
    )
}
STEPS = {
    "torch": "import torch",
    "featx": "import featx",
    "names": "featx.list_models()",
    "model": "featx.create_model('resnet18', features_only=True)",
}
FILLED = ["resnet18", "vit_tiny_patch16_224", "repvgg_a0"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> dict[str, set[str]]:
    """All that is imported after each step, by the step; the last ones fill models from checkpoints."""
    steps = dict(STEPS)
    for name in FILLED:
        folder = tmp_path_factory.mktemp(name)
        featx.save(featx.create_model(name), folder)
        steps[name] = f"featx.create_model({name!r}, checkpoint_path={str(folder)!r})"
    code = "import json, sys\n" + "\n".join(f"{step}\nprint(json.dumps([*sys.modules]))" for step in steps.values())
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return {step: {*json.loads(line)} for step, line in zip(steps, printed.splitlines(), strict=True)}


@pytest.mark.parametrize("step", ["featx", "names", "model"])
def test_optional_packages_are_not_imported(imported, step):
    assert imported[step] & HEAVY == set()


def test_the_native_families_need_torch_alone(imported):
    packages = {name.partition(".")[0] for name in imported["names"] - imported["torch"]}
    assert packages - set(sys.stdlib_module_names) == {"featx"}


def test_public_modules_that_not_every_user_needs_are_not_imported(imported):
    assert imported["model"] & LAZY == set()


@pytest.mark.parametrize("name", FILLED)
def test_a_model_that_is_filled_from_a_checkpoint_does_not_import_pytorchs_compiler(imported, name):
    assert imported[name] & COMPILER == set()
