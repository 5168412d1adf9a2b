"""What importing the library costs its user."""

import subprocess
import sys

import pytest

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
