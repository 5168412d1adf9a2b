"""MobileViT from NetsPresso's YAML."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.netspresso_yaml import backbone

import featx
from featx.models.mobilevit import XXS, MobileViTConfig, read_config


def written(tmp_path: Path, tree: Any) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_yaml_of_netspresso_describes_a_model(tmp_path):
    cfg = read_config(written(tmp_path, backbone()))
    assert cfg == MobileViTConfig(XXS, attention_dropout_prob=0.1)
    architecture = {"full": None, "backbone": backbone(), "head": {"name": "fc"}}
    assert read_config(written(tmp_path, {"model": {"name": "m", "architecture": architecture}})) == cfg


def test_every_wrong_key_of_a_yaml_is_named(tmp_path):
    tree = backbone()
    tree["neck"] = None
    del tree["params"]["patch_size"]
    tree["params"]["heads"] = 4
    tree["params"]["use_fusion_layer"] = "yes"
    tree["stage_params"][0]["dilate"] = False
    del tree["stage_params"][2]["attention_channels"]
    tree["stage_params"][2]["attention_chananels"] = 64
    tree["stage_params"][3]["stride"] = True
    tree["stage_params"][4]["block_type"] = "mv3"
    with pytest.raises(featx.ArgumentError) as caught:
        read_config(written(tmp_path, tree))
    _, *problems = str(caught.value).splitlines()
    expected = [
        "backbone: 'neck' is unknown",
        "params: 'heads' is unknown",
        "params: 'patch_size' is missing",
        "params: use_fusion_layer is 'yes', expected bool",
        "stage_params[0]: 'dilate' is unknown",
        "stage_params[2]: 'attention_chananels' is unknown",
        "stage_params[2]: 'attention_channels' is missing",
        "stage_params[3]: stride is True, expected int",
        "stage_params[4]: block_type is 'mv3', expected one of",
    ]
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.strip().startswith(start)


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        (None, "backbone is None, expected a mapping"),
        ({"model": {"architecture": None}}, "backbone is None, expected a mapping"),
        ({**backbone(), "name": "vit"}, "name is 'vit', expected 'mobilevit'"),
        ({**backbone(), "stage_params": "all"}, "stage_params is 'all', expected list"),
        ({**backbone(), "stage_params": [3]}, "block_type is None"),
    ],
)
def test_a_yaml_of_something_else_is_refused(tmp_path, tree, problem):
    with pytest.raises(featx.ArgumentError, match=problem):
        read_config(written(tmp_path, tree))


def test_a_file_that_is_no_yaml_is_refused(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text("[")
    with pytest.raises(featx.ArgumentError, match="is not YAML"):
        read_config(path)
