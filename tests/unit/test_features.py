"""Levels, and the ways to choose among them."""

import pickle

import numpy as np
import pytest
import torch

from featx import ContractError, FeatureInfo, Levels, OutIndicesError
from featx.features import as_levels

ROWS = [FeatureInfo(8, 2, "stem"), FeatureInfo(16, 4, "a.0"), FeatureInfo(32, 8, "a.1"), FeatureInfo(64, 8, "b")]
LEVELS = Levels(ROWS)


@pytest.mark.parametrize(
    ("asked", "positions"),
    [
        (None, [0, 1, 2, 3]),
        ([3, 1], [3, 1]),
        ((0,), [0]),
        ([-1], [3]),
        ([-4, 3], [0, 3]),
        (2, [2, 3]),
        (4, [0, 1, 2, 3]),
        (range(2), [0, 1]),
        (np.array([2, 0]), [2, 0]),
        (torch.tensor([1]), [1]),
    ],
)
def test_out_indices_choose_levels_in_their_order(asked, positions):
    chosen = LEVELS.select(asked)
    assert list(chosen) == [ROWS[position] for position in positions]
    assert list(chosen.out_indices) == positions


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ([9], "there is no level 9"),
        ([-5], "there is no level -5"),
        ([], "no level was asked for"),
        ([1, 1], "asks for a level twice"),
        ([3, -1], "asks for a level twice"),
        ("3", "neither a sequence of ints nor a number"),
        (["1"], "'1' is not an int"),
        ([1.0], "1.0 is not an int"),
        ([1.5], "1.5 is not an int"),
        ([True], "True is not an int"),
        (True, "neither a sequence of ints nor a number"),
        (1.0, "neither a sequence of ints nor a number"),
        ({0: 1}, "neither a sequence of ints nor a number"),
        (0, "asks for the last 0 levels"),
        (5, "asks for the last 5 levels"),
        (-1, "asks for the last -1 levels"),
    ],
)
def test_what_is_not_a_choice_is_refused_with_the_table_of_levels(asked, problem):
    with pytest.raises(OutIndicesError, match=problem) as refused:
        LEVELS.select(asked)
    for row in ROWS:
        assert f"{row.name}  " in str(refused.value)
    assert "64 channels  1/8" in str(refused.value)


def test_names_choose_levels_in_their_order():
    assert list(LEVELS.select(None, ["b", "stem"])) == [ROWS[3], ROWS[0]]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["c"], r"no level is named \['c'\]"),
        ([], "no level was asked for"),
        (["b", "b"], "asks for a level twice"),
        ("b", "not a sequence of names"),
    ],
)
def test_names_that_are_no_choice_are_refused(names, problem):
    with pytest.raises(OutIndicesError, match=problem):
        LEVELS.select(None, names)


def test_indices_and_names_exclude_each_other():
    with pytest.raises(OutIndicesError, match="pass one of them"):
        LEVELS.select([0], ["b"])


def test_levels_are_described_in_the_order_chosen():
    chosen = LEVELS.select([2, 0])
    assert chosen.channels() == [32, 8]
    assert chosen.reduction() == [8, 2]
    assert chosen.names() == chosen.module_name() == ["a.1", "stem"]
    assert len(chosen) == 2
    assert chosen[-1] == ROWS[0]
    assert list(chosen[1:]) == [ROWS[0]]


def test_a_stride_is_answered_with_the_deepest_level_that_has_it():
    assert LEVELS.feature_at(8) == ROWS[3]
    with pytest.raises(OutIndicesError, match="no map has a stride of 16"):
        LEVELS.feature_at(16)


def test_timm_consumers_find_the_names_they_read():
    from timm.models import FeatureInfo as TimmFeatureInfo

    chosen = LEVELS.select([3, 1])
    rows = [{"num_chs": row.chs, "reduction": row.reduction, "module": row.name} for row in ROWS]
    reference = TimmFeatureInfo(rows, (3, 1))
    assert chosen.info == reference.info
    assert chosen.out_indices == reference.out_indices
    for method in ("channels", "reduction", "module_name"):
        for idx in (None, 0, [2, 0]):
            assert getattr(chosen, method)(idx) == getattr(reference, method)(idx)
    for keys in (None, ["num_chs", "reduction"]):
        for idx in (None, 0, [2, 0]):
            assert chosen.get_dicts(keys, idx) == reference.get_dicts(keys, idx)


def test_a_level_answers_to_both_sets_of_keys():
    assert (ROWS[1]["chs"], ROWS[1]["num_chs"]) == (16, 16)
    assert (ROWS[1]["name"], ROWS[1]["module"], ROWS[1]["reduction"]) == ("a.0", "a.0", 4)
    with pytest.raises(KeyError, match="channels"):
        ROWS[1]["channels"]


def test_levels_survive_pickling():
    chosen = LEVELS.select([2, 0])
    twin = pickle.loads(pickle.dumps(chosen))
    assert twin == chosen
    assert hash(twin) == hash(chosen)
    assert twin.out_indices == chosen.out_indices


def test_dictionaries_of_either_kind_become_levels():
    ours = [{"chs": row.chs, "reduction": row.reduction, "name": row.name} for row in ROWS]
    theirs = [{"num_chs": row.chs, "reduction": row.reduction, "module": row.name} for row in ROWS]
    assert as_levels(ours, "Net") == as_levels(theirs, "Net") == as_levels(ROWS, "Net") == LEVELS


def test_every_wrong_row_is_named_at_once():
    rows = [
        {"chs": 0, "reduction": 2, "name": "a"},
        {"chs": 4, "name": "b"},
        "c",
        {"chs": 4, "reduction": 2, "name": 3},
    ]
    with pytest.raises(ContractError) as refused:
        as_levels(rows, "Net")
    message = str(refused.value)
    assert "feature_info of Net" in message
    for problem in ("row 0: chs=0", "row 1: reduction=None", "row 2 is 'c'", "row 3: name=3"):
        assert problem in message


@pytest.mark.parametrize("rows", [None, [], "abc", 3])
def test_what_is_not_a_list_of_levels_is_refused(rows):
    with pytest.raises(ContractError, match="expected a list with one row per level"):
        as_levels(rows, "Net")


def test_a_name_used_twice_is_refused():
    with pytest.raises(ContractError, match="'a' stands in several rows"):
        as_levels([FeatureInfo(8, 2, "a"), FeatureInfo(8, 4, "a")], "Net")
