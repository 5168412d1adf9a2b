"""What importing the library costs its user."""

import subprocess
import sys

import pytest

import featx

HEAVY = ["timm", "torchvision", "transformers", "matplotlib", "PIL", "typer", "rich", "huggingface_hub", "safetensors"]


@pytest.mark.parametrize(
    "code",
    [
        "import featx",
        "import featx; featx.list_models()",
        "import featx; featx.create_model('resnet18', features_only=True)",
    ],
)
def test_optional_packages_are_not_imported(code):
    report = f"{code}; import sys; print([name for name in {HEAVY} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_the_native_families_need_torch_alone():
    report = (
        "import sys, torch; before = {name.partition('.')[0] for name in sys.modules}; import featx; "
        "featx.list_models(); print(sorted({name.partition('.')[0] for name in sys.modules} - before - "
        "set(sys.stdlib_module_names)))"
    )
    printed = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "['featx']"


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "repvgg_a0"])
def test_a_model_that_is_filled_from_a_checkpoint_does_not_import_pytorchs_compiler(name, tmp_path):
    featx.save(featx.create_model(name), tmp_path)
    heavy = ["torch._dynamo", "torch._inductor", "sympy"]
    code = f"import sys, featx; featx.create_model({name!r}, checkpoint_path={str(tmp_path)!r})"
    report = f"{code}; print([name for name in {heavy} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
