"""Hostile configurations: config.json of a folder, an index of shards, and NetsPresso's YAML."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from support.netspresso_yaml import backbone

import featx
from featx.arguments import fits
from featx.models.mobilevit import read_config
from featx.weights.hub import shard_names
from featx.weights.serialization import description

BASES = {
    "resnet18": {"stem": (32, 32, 64)},
    "vit_tiny_patch16_224": {"image_size": (64, 96), "registers": 2},
    "test_efficientnet": {"stem_chs": 16},
    "hrnet_w18_small": {"width": 8},
    "mobilevit_xxs": {"patch_size": 4},
}


@cache
def described(name: str) -> dict[str, Any]:
    """What featx.save writes for an extractor of the model."""
    extractor = featx.create_model(name, features_only=True, num_classes=3, **BASES[name])
    return json.loads(json.dumps(description(extractor)))


def placed(folder: Path, config: Any) -> str:
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "config.json").write_bytes(text)
    return f"local-dir:{folder}"


def refuse(where: str, problem: str = "") -> None:
    """The model is refused in a few lines."""
    with pytest.raises(featx.FeatxError, match=problem) as refused:
        featx.create_model(where)
    assert len(str(refused.value).splitlines()) <= 12
    assert len(str(refused.value)) < 4000


# single faults

RESIDUAL, POOL = "featx.models.layers.residual.Residual", "torch.nn.modules.pooling.MaxPool2d"
RELU = "torch.nn.modules.activation.ReLU"


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"num_classes": True}, "num_classes is a number from 0 to .*; got .'num_classes': True"),
        ({"num_classes": -1}, "num_classes is a number"),
        ({"num_classes": 10**30}, "num_classes is a number"),
        ({"num_classes": 16_000_000}, r"describes a model of \d+ bytes, more than 4 times"),
        ({"architecture": "a" * 5000}, "architecture is a word"),
        ({"architecture": "\x1b[2J"}, "architecture is a word"),
        ({"featx": {"config": 5}}, "featx.config is an object"),
        ({"featx": {"data_config": {"size": 3}}}, "featx.data_config has channel_order, crop_rounding"),
        ({"featx": {"out_indices": ["1"]}}, "featx.out_indices is a list of positions"),
        ({"featx": {"config": {"style": {"class": 3}}}}, "names '3'"),
        ({"featx": {"config": {"style": {"class": RESIDUAL, "fields": 3}}}}, "as an object, got a"),
        ({"featx": {"config": {"style": {"path": "a" * 5000}}}}, "names 'a{200}'"),
        (
            {"featx": {"config": {"max_pool": {"partial": POOL, "fields": {"kernel_size": "x"}}}}},
            "cannot be built or run",
        ),
        ({"pretrained_cfg": {"crop_pct": 0}}, "crop=0: expected a positive share"),
        ({"pretrained_cfg": {"crop_pct": 1e-9}}, "crop=1e-09: expected a positive share"),
        ({"pretrained_cfg": {"crop_pct": float("nan")}}, "crop_pct is a number"),
        ({"pretrained_cfg": {"input_size": [3, 99_999, 99_999]}}, "two sides of at most 4096 pixels"),
        ({"pretrained_cfg": {"input_size": True}}, "two sides"),
        ({"pretrained_cfg": {"mean": 0.5}}, "mean is a list of numbers"),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, "no std of 0"),
        ({"pretrained_cfg": {"interpolation": ["bicubic"]}}, "interpolation is a word"),
        ({"pretrained_cfg": {"label_names": 5}}, "label_names is a list of texts"),
        ({"crop_pct": "x"}, "crop_pct is a number"),  # old files state it at the top
        ({"model_args": {"stem": 3}}, "stem=3: expected tuple"),
        ({"model_args": {"stem": [64, "x", 3]}}, "stem=.*expected tuple"),
        ({"model_args": {"stem": [64, 0, 64]}}, "layers without channels"),
        ({"model_args": {"depths": [2, 2, 2, 10**6]}}, "more than 20000 modules"),
        ({"model_args": {"depths": [10**12]}}, "depths=.*expected tuple"),
        ({"model_args": {"drop_rate": float("nan")}}, "drop_rate=nan"),
        ({"model_args": {f"{n}": 1 for n in range(1000)}}, "and 992 more"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_a_config_that_describes_no_model_is_refused(tmp_path, wrong, problem):
    refuse(placed(tmp_path, {"architecture": "resnet18", **wrong}), problem)


@pytest.mark.parametrize("depth", [40, 900, 100_000])
def test_a_config_nested_too_deeply_is_refused(tmp_path, depth):
    nested = b"[" * depth + b"]" * depth
    refuse(placed(tmp_path, b'{"architecture": "resnet18", "model_args": {"stem": %s}}' % nested), "deep|is not JSON")


def test_a_config_of_many_bytes_is_refused_unread(tmp_path):
    refuse(placed(tmp_path, b" " * (9 << 20)), "expected a file in JSON of at most")


def test_a_large_position_grid_is_not_made_for_a_small_file(tmp_path):
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": [60_000, 60_000]}}
    (tmp_path / "model.safetensors").write_bytes(save({"pos_embed": torch.zeros(1, 197, 192)}))
    with pytest.raises(featx.CheckpointError, match=r"describes a model of \d+ bytes"):
        featx.create_model(placed(tmp_path, config), pretrained=True)


@pytest.mark.parametrize("name", BASES)
def test_what_is_saved_is_read_again(tmp_path, name):
    saved = described(name)
    extractor = featx.create_model(placed(tmp_path, saved), features_only=True)
    assert json.loads(json.dumps(description(extractor))) == saved


@pytest.mark.parametrize(
    ("value", "annotation", "is_one"),
    [
        (3, int, True), (True, int, False), (-1, int, False), (2**40, int, False), (3.0, int, False), (3, float, True),
        (float("inf"), float, False), (-0.5, float, True), ("a", str, True), (None, int | None, True),
        ((1, 2), tuple[int, int], True), ([1, 2], tuple[int, ...], True), ((1,), tuple[int, int], False),
        (5, tuple[int, ...], False), ((1, "a"), tuple[int, ...], False), (torch.nn.ReLU, type[torch.nn.Module], True),
        ("torch.nn.ReLU", type[torch.nn.Module], False),
    ],
)  # fmt: skip
def test_values_fit_types(value, annotation, is_one):
    assert fits(value, annotation) is is_one


# shards


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"a": "x" * 252 + ".pth"}, "expected names of files beside it"),
        ({f"{n}": f"{n}/" for n in range(5000)}, "and 4992 more"),
        ({f"{n}": f"{n}.pth" for n in range(5000)}, "lists 5000 files, more than the 1000"),
        ({"a": "\x1b[2J.pth"}, r"got '\\x1b\[2J.pth'"),
    ],
    ids=["long", "elsewhere", "many", "escape"],
)
def test_an_index_of_what_no_network_has_is_refused_in_short(tmp_path, table, problem):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    with pytest.raises(featx.CheckpointError, match=problem) as refused:
        shard_names(tmp_path / "model.safetensors.index.json")
    assert len(str(refused.value)) < 3000


# YAML

LAUGHS = b"a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 10)
)
MERGES = b"a0: &a0 {x: 1}\n" + b"".join(
    b"a%d: &a%d {<<: [%s]}\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LAUGHS, "has 81 aliases, more than 16"),
        (MERGES, "has 81 aliases"),
        (b"\xff\xfe\xfd", "is not YAML"),
        (b"a: \x1b", "is not YAML"),
        (b"a: 2020-99-99", "is not YAML: ValueError"),
        (b"a: " + b"9" * 5000, "is not YAML: ValueError"),
        (b"a: !!timestamp x", "is not YAML"),
        (b"a: !!int ''", "is not YAML"),
        (b"a: !!python/object/apply:os.system [ls]", "is not YAML"),
        (b"[" * 60_000, "has 60000 brackets, more than 200"),
        (b"- " * 30_000, "is not YAML: RecursionError"),
        (b"? " * 30_000, "is not YAML: RecursionError"),
        (b"{a: [" * 90, "is not YAML"),
        (b"? [a]\n: b", "is not YAML"),
        (b"&a [*a]", "expected a mapping"),
        (b"a: " + b"b" * 100_000, "expected a description of at most 65536"),
        (b"".join(b"k%d: 1\n" % n for n in range(500)), "more"),
        ("a: " * 3000, "is not YAML"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_yaml_made_to_do_harm_is_refused(tmp_path, text, problem):
    path = tmp_path / "model.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(featx.ArgumentError, match=problem) as refused:
        read_config(path)
    assert len(str(refused.value).splitlines()) <= 12
    assert len(str(refused.value)) < 4000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ir_expansion_ratio", float("nan")), ("ir_expansion_ratio", 1e9), ("num_blocks", 1_000_000), ("stride", 0),
        ("out_channels", -8), ("attention_channels", 10**9), ("ffn_intermediate_channels", 0),
    ],
)  # fmt: skip
def test_numbers_of_a_yaml_are_in_range(tmp_path, field, value):
    tree = backbone()
    tree["stage_params"][3][field] = value
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(featx.ArgumentError, match=rf"stage_params\[3\]: {field} is .*, expected [\d.]+ to \d+"):
        read_config(tmp_path / "model.yaml")


def test_a_yaml_of_many_rows_is_refused(tmp_path):
    tree = {**backbone(), "stage_params": [backbone()["stage_params"][0]] * 40}
    (tmp_path / "model.yaml").write_text(yaml.dump(tree, Dumper=NoAliases))
    with pytest.raises(featx.ArgumentError, match="stage_params has 40 rows, expected at most 32"):
        read_config(tmp_path / "model.yaml")


class NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def test_a_few_aliases_are_understood(tmp_path):
    tree = backbone()
    tree["stage_params"][1] = tree["stage_params"][0]
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(tree))
    assert "*id" in (tmp_path / "model.yaml").read_text()
    assert read_config(tmp_path / "model.yaml").stages[1].out_channels == 16


@pytest.mark.parametrize("name", ["none.yaml", "a" * 300, "", "a\0"])
def test_a_yaml_that_is_not_there_is_an_error_of_featx(tmp_path, name):
    with pytest.raises(featx.WeightsNotFoundError, match="is not a file"):
        read_config(tmp_path / name if "\0" not in name else f"{tmp_path}/{name}")


# mutations of structure

NUMBERS = st.sampled_from([0, 1, -1, 2, 7, 2**31, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")])
WORDS = st.sampled_from(["", "x", "bicubic", "\x1b[31m", "a" * 3000, RELU, "avg", "\ud800"])
LEAVES = st.none() | st.booleans() | NUMBERS | st.integers() | WORDS
KEYS = st.sampled_from(["class", "path", "partial", "fields", "x", "depths", "stem", "style", "config", "num_classes"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside a value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


@st.composite
def mutated(draw: st.DrawFn, bases: st.SearchStrategy[Any]) -> Any:
    """One of the bases, in which one or two values are replaced, missing or moved into each other."""
    tree = deepcopy(draw(bases))
    for _ in range(draw(st.integers(1, 2))):
        *path, key = draw(st.sampled_from([*places(tree)]))
        holder = tree
        for step in path:
            holder = holder[step]
        how = draw(st.integers(0, 9))
        if how == 0:
            del holder[key]
        elif how == 1:
            holder[key] = [holder[key]]
        else:
            holder[key] = draw(VALUES)
        if not [*places(tree)]:
            break
    return tree


CONFIGS = st.sampled_from([*BASES]).map(described)
YAMLS = st.sampled_from([backbone(), {"model": {"architecture": {"backbone": backbone()}}}])
INDICES = st.just({"metadata": {"total_size": 8}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
FAST = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LONG = settings(FAST, max_examples=500, derandomize=False)


@contextmanager
def refused_in_few_lines_or_right() -> Iterator[None]:
    lines: list[str] = []
    try:
        yield
    except featx.FeatxError as error:
        lines = str(error).splitlines()
    assert len(lines) <= 12
    assert sum(map(len, lines)) < 5000


def use_config(folder: Path, config: Any) -> None:
    """The model is built, and its images are prepared, or it is refused in a few lines."""
    with torch.device("meta"), refused_in_few_lines_or_right():
        featx.transform(featx.create_model(placed(folder, config), features_only=True))


@given(mutated(CONFIGS))
@FAST
def test_any_change_of_a_config_gives_a_model_or_an_error_of_featx(tmp_path, config):
    use_config(tmp_path, config)


@pytest.mark.sweep
@given(mutated(CONFIGS))
@LONG
def test_many_changes_of_a_config_give_a_model_or_an_error_of_featx(tmp_path, config):
    use_config(tmp_path, config)


def use_yaml(folder: Path, tree: Any) -> None:
    (folder / "model.yaml").write_text(yaml.dump(tree, Dumper=NoAliases))
    with refused_in_few_lines_or_right():
        read_config(folder / "model.yaml")


@given(mutated(YAMLS))
@FAST
def test_any_change_of_a_yaml_gives_a_configuration_or_an_error_of_featx(tmp_path, tree):
    use_yaml(tmp_path, tree)


@pytest.mark.sweep
@given(mutated(YAMLS))
@LONG
def test_many_changes_of_a_yaml_give_a_configuration_or_an_error_of_featx(tmp_path, tree):
    use_yaml(tmp_path, tree)


@given(mutated(INDICES))
@FAST
@example({"weight_map": {"a": "\ud800"}})
def test_any_change_of_an_index_gives_names_or_an_error_of_featx(tmp_path, index):
    (tmp_path / "index.json").write_text(json.dumps(index))
    try:
        names = shard_names(tmp_path / "index.json")
    except featx.CheckpointError as error:
        assert len(str(error)) < 5000  # noqa: PT017
    else:
        assert all(Path(name).name == name for name in names)
