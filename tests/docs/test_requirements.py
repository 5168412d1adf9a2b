"""The blocks of the documentation run after `pip install 'featx[all]'`: it brings every package that they import."""

import ast
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.docs_scripts import ROOT

from docs.test_pages import blocks

# Packages that a page says must be installed by themselves, because no package index has them or they pin others.
OWN_INSTALLATION = {"detectron2", "mmengine"}


@cache
def installed() -> frozenset[str]:
    """Distributions that featx[all] installs, with all that these require."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found: set[str] = set()
    waiting = [Requirement(line) for line in [*project["dependencies"], "featx[all]"]]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name == "featx":
            waiting += [Requirement(line) for extra in requirement.extras for line in extras[extra]]
        elif name not in found:
            found.add(name)
            waiting += required_by(requirement)
    return frozenset(found)


def required_by(requirement: Requirement) -> list[Requirement]:
    try:
        lines = map(Requirement, requires(requirement.name) or [])
    except PackageNotFoundError:  # of another platform
        return []
    extras = [{"extra": extra} for extra in (*requirement.extras, "")]
    return [line for line in lines if line.marker is None or any(map(line.marker.evaluate, extras))]


@cache
def distributions() -> Mapping[str, list[str]]:
    """Distributions by the top-level names of their modules."""
    return packages_distributions()


def imported(block: str) -> set[str]:
    """Top-level names that a block imports, without the standard library and featx."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names - sys.stdlib_module_names - {"featx"}


@pytest.mark.parametrize("block", blocks("python"))
def test_the_packages_of_a_block_are_installed_with_featx(block):
    for name in imported(block) - OWN_INSTALLATION:
        owners = {canonicalize_name(owner) for owner in distributions()[name]}
        assert owners & installed(), f"{name} is not in featx[all]"


def test_a_package_of_the_development_group_would_be_found():
    assert canonicalize_name("mkdocs-material") not in installed()
    assert {"numpy", "torch", "timm", "pyyaml"} <= installed()
