"""featx verify: what it prints, and the status it exits with."""

import pytest
from support.cli import run as run

import featx


def test_models_that_hold_are_listed_with_their_levels(run):
    ran = run("verify", "resnet1[08]", "timm/test_resnet", "--values")
    assert ran.status == 0
    assert "resnet18: holds at 5 sizes: 64 at 1/2, 64 at 1/4, 128 at 1/8, 256 at 1/16, 512 at 1/32" in ran.out
    assert "timm/test_resnet: holds" in ran.out
    assert ran.out.count("  changes of the image are in their place at 64x64, 64x96, 96x64") == 2


def test_false_declarations_of_a_package_and_sizes_it_refuses_are_reported(run):
    ran = run("verify", "timm/tresnet_m")
    assert ran.status == 0
    assert "level 0: timm declares reduction=2, measured 4" in ran.out
    assert "takes no images of 97x161" in ran.out


def test_a_model_that_breaks_the_contract_is_named_and_the_others_go_on(run, monkeypatch):
    verify = featx.verify

    def broken(model, **options):
        if model.architecture == "resnet10t":
            raise featx.ContractError("a level lies")
        return verify(model, **options)

    monkeypatch.setattr(featx, "verify", broken)
    ran = run("verify", "resnet10t", "resnet18")
    assert ran.status == 1
    assert "resnet10t: broken a level lies" in ran.out
    assert "resnet18: holds" in ran.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["resnet188"], "no model is named 'resnet188'; did you mean resnet18"),
        (["timm/swin_tiny_patch4_window7_22"], "the closest are ['swin_tiny_patch4_window7_224'"),
        (["nothing*"], "no model matches 'nothing*'"),
        ([], "name models, or pass --all"),
    ],
)
def test_what_is_not_a_model_is_an_error_that_helps(run, words, told):
    ran = run("verify", *words)
    assert ran.status == 2
    assert told in ran.err
