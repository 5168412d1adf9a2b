"""Registration of bridges, and errors for missing packages."""

import sys

import pytest

import featx
from featx import ArgumentError, MissingPackageError
from featx.bridge_registry import Bridge, bridged_packages, register_bridge


@pytest.mark.parametrize("package", [name for name in bridged_packages() if name != "torchvision"])
def test_a_missing_package_is_named_with_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"pip install 'featx\[{package}\]'"):
        featx.create_model(f"{package}/anything", features_only=True)


def test_a_package_has_one_bridge():
    with pytest.raises(ArgumentError, match="already registered: a bridge for timm"):
        register_bridge(Bridge("timm", "another.module"))
    assert bridged_packages() == ("timm", "torchvision", "transformers")


def test_a_bridge_owns_the_classes_of_its_package_alone():
    class FromTimm:
        __module__ = "timm.models.vit"

    class FromTimmy:
        __module__ = "timmy.models"

    bridge = Bridge("timm", "featx.bridges.timm")
    assert bridge.owns(FromTimm)
    assert not bridge.owns(FromTimmy)
