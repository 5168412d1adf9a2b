"""Public names: what is listed can be got, and no function hides the module of its name."""

import subprocess
import sys
from importlib import import_module
from inspect import isclass, isfunction
from pkgutil import iter_modules, walk_packages
from types import ModuleType

import pytest

import featx

PACKAGES = ["featx", *(found.name for found in walk_packages(featx.__path__, "featx.") if found.ispkg)]
MODULES = [name for name in featx.__all__ if isinstance(getattr(featx, name), ModuleType)]

# Imports featx, and prints the public modules that a copy of the process, which imports nothing else, cannot use.
USE = """
import os, sys, featx

def use(name):
    module = getattr(featx, name)
    assert module is sys.modules["featx." + name]
    for word in dir(module):
        getattr(module, word)

for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            use(name)
        except BaseException as error:
            print(name, repr(error), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name, "died")
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_hides_a_module_of_its_name(package):
    imported = import_module(package)
    modules = {module.name for module in iter_modules(imported.__path__)}
    lazy = {name: getattr(imported, name) for name in getattr(imported, "__all__", ())}
    names = {**vars(imported), **lazy}
    hidden = {name for name in modules & names.keys() if not isinstance(names[name], ModuleType)}
    assert hidden == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_that_a_package_lists_can_be_got(package):
    imported = import_module(package)
    assert [name for name in dir(imported) if not hasattr(imported, name)] == []


@pytest.mark.parametrize("package", ["featx", "featx.adapters"])
def test_a_package_lists_each_of_its_public_names_once(package):
    listed = import_module(package).__all__
    assert len(set(listed)) == len(listed)
    assert dir(import_module(package)) == sorted(listed)


def test_every_function_and_class_of_the_package_is_listed():
    defined = {name: value for name, value in vars(featx).items() if isclass(value) or isfunction(value)}
    own = {name for name, value in defined.items() if value.__module__.startswith("featx.")}
    assert sorted((own | featx.LAZY.keys()) - {*featx.__all__}) == []


def test_an_unknown_name_is_not_an_attribute():
    for package in (featx, featx.adapters, featx.models):
        with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'resnet_50'"):
            package.resnet_50  # noqa: B018


def test_families_are_attributes_of_their_package():
    assert featx.models.resnet is import_module("featx.models.resnet")
    assert {"layers", "resnet", "vit"} < {*dir(featx.models)}


@pytest.fixture(scope="module")
def unusable() -> dict[str, str]:
    """Public modules that importing featx alone does not make usable, and why."""
    ran = subprocess.run([sys.executable, "-c", USE, *MODULES], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return dict(line.split(" ", 1) for line in ran.stdout.splitlines())


@pytest.mark.parametrize("module", MODULES)
def test_a_public_module_is_usable_after_importing_featx_alone(unusable, module):
    assert module not in unusable
