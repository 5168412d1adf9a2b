"""Hostile and damaged headers of safetensors files."""

import json
import re

import pytest
import torch
from conftest import same_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from support.untrusted_files import damage, entry, refuse, write_safetensors

from featx import CheckpointError
from featx.weights.readers import read_checkpoint


@pytest.mark.parametrize(
    ("header", "data", "problem"),
    [
        ({"a": entry(0, 8), "count": entry(4, 12, (), "I64")}, 12, r"'count' begins at byte \d+, not at \d+"),
        ({"a": entry(0, 8), "count": entry(12, 20, (), "I64")}, 20, r"'count' begins at byte \d+, not at \d+"),
        ({"a": entry(0, 8), "count": entry(8, 16, (), "I64")}, 12, r"its values end at byte \d+ of \d+"),
        ({"a": entry(0, 8)}, 12, r"its values end at byte \d+ of \d+"),
        ({"a": entry(8, 0)}, 8, "not a whole safetensors file"),
        ({"a": entry(0, 2**63)}, 8, "not a whole safetensors file"),
        ({"a": entry(0, 8, (3,))}, 8, r"'a' is of type F32 and shape \[3\], but has 8 bytes"),
        ({"a": entry(0, 8, dtype="F64")}, 8, r"'a' is of type F64 and shape \[2\], but has 8 bytes"),
        ({"a": entry(0, 8, dtype="F31")}, 8, "'a' is of type 'F31', which cannot be read; these can: BOOL, U8"),
        ({"a": entry(0, 12, (16,), "F6_E2M3")}, 12, "F6_E2M3"),
        ({"a": entry(0, 8, (-2,))}, 8, "lists of counts"),
        ({"a": entry(0, 8, (2**40, 2**40))}, 8, "a shape that no tensor has"),
        ({"a": entry(0, 0, (2**40, 2**40, 0))}, 0, "a shape that no tensor has"),
        ({"a": entry(0, 0, (2**63, 0))}, 0, "not a whole safetensors file"),
        (b'{"a":' + b"[" * 100_000, 0, "is not JSON: RecursionError"),
        ({"\ud800": entry(0, 8)}, 8, "named with invalid Unicode"),
        ({"a": [0, 8]}, 8, "'a' is not described by"),
        ({"a": {**entry(0, 8), "shape": [True, 2]}}, 8, "lists of counts"),
        ({"a": entry(0, 1, [1] * 65, "U8")}, 1, "a shape that no tensor has"),
        (b"[1]", 0, "not a JSON object of tensors"),
        (b"\xff\xfe", 0, "not a whole safetensors file"),
        ({"__metadata__": {"a": 1}, "a": entry(0, 8)}, 8, "with strings as metadata"),
        (b'{"a":%a,"a":%a}' % ((entry(0, 8),) * 2), 8, r"twice, .*'a'"),
        (b'{"a":%a,"a":%a}' % (entry(0, 8), entry(0, 8, dtype="I32")), 8, r"twice, .*'a'"),
        (b'{"a":%a,"a":%a}' % (entry(0, 8), entry(8, 16)), 16, r"twice, .*'a'"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header, data, problem):
    text = header.replace(b"'", b'"') if isinstance(header, bytes) else header
    refuse(write_safetensors(tmp_path / "w.safetensors", text, bytes(data)), problem)


@pytest.mark.parametrize("length", [10 << 30, 2**63, 2**64 - 1])
def test_a_safetensors_header_that_is_said_to_be_huge_is_refused(tmp_path, length):
    refuse(
        write_safetensors(tmp_path / "w.safetensors", {"a": entry(0, 8)}, bytes(8), length),
        "its header would take",
    )


@pytest.mark.parametrize("header", [b'{"a":"%s"}' % (b" " * (33 << 20)), b'{"a":[%s{}]}' % (b"{}," * 110_000)])
def test_a_safetensors_header_longer_than_any_networks_is_refused_before_it_is_parsed(tmp_path, header):
    refuse(write_safetensors(tmp_path / "w.safetensors", header), "a header of .* no network has that many tensors")


def test_a_safetensors_file_cut_anywhere_is_refused(tmp_path):
    path = write_safetensors(tmp_path / "w.safetensors", {"a": entry(0, 8)}, bytes(8))
    whole = path.read_bytes()
    assert read_checkpoint(path)["a"].tolist() == [0, 0]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="not a whole"):
            read_checkpoint(path)


def test_any_byte_of_a_safetensors_header_may_be_damaged(tmp_path):
    path = write_safetensors(
        tmp_path / "w.safetensors", {"a": entry(0, 8), "count": entry(8, 16, (), "I64")}, bytes(16)
    )
    damage(path, seed=0, times=400)


TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "none": torch.zeros(0, 4),
    "count": torch.tensor(7),
    "flags": torch.tensor([True, False, True]),
}
# what only this reader refuses
STRICTER = "names tensors twice|which cannot be read|a shape that no tensor has|strings as metadata"
NUMBERS = st.one_of(st.integers(-1, 40), st.sampled_from([2**31, 2**60, 2**63, 2**64, 1.0, 1e3, True]))
FIELDS = {
    "dtype": st.sampled_from(["F32", "BF16", "I64", "BOOL", "U8", "F64", "C64", "F4", "F8_E8M0", "f32", "", 1, None]),
    "shape": st.lists(NUMBERS, max_size=4),
    "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
}
ANYTHING = st.recursive(st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=3)), st.lists, max_leaves=4)
NAMES = st.sampled_from([*TENSORS, "new", "__metadata__", ""])
edits = st.one_of(
    *(st.tuples(NAMES, st.just(field), st.one_of(values, ANYTHING)) for field, values in FIELDS.items()),
    st.tuples(NAMES, st.text(max_size=3), ANYTHING),
    st.tuples(NAMES, st.none(), st.one_of(st.fixed_dictionaries(FIELDS), ANYTHING)),
)


@pytest.mark.sweep
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.lists(edits, max_size=3), st.sampled_from([0, 0, 0, -1, 1]))
def test_changed_headers_are_read_as_the_package_reads_them_or_refused(tmp_path_factory, changes, more):
    whole = save(TENSORS, {"format": "pt"})
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    for name, field, value in changes:
        if field is None:
            header[name] = value
        elif isinstance(header.setdefault(name, {}), dict):
            header[name][field] = value
    path = tmp_path_factory.mktemp("header") / "w.safetensors"
    write_safetensors(path, header, (data + bytes(2))[: len(data) + more])
    try:
        ours = read_checkpoint(path)
    except CheckpointError as error:
        ours, reason = None, str(error)
    try:
        theirs = load_file(path)
    except (SafetensorError, TypeError):
        theirs = None
    if ours is None:
        assert theirs is None or re.search(STRICTER, reason), reason
    else:
        assert theirs is not None
        assert same_state(ours, theirs)
        assert same_state(read_checkpoint(path, mapped=True), theirs)
