"""What the bridges have in common."""

import sys

import pytest

import featx
from featx import MissingPackageError
from featx.bridges import PACKAGES


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "torchvision"])
def test_a_missing_package_is_named_with_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"pip install 'featx\[{package}\]'"):
        featx.create_model(f"{package}/anything", features_only=True)
