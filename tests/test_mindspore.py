"""MindSpore's files: what its save_checkpoint writes is read, anything else is a CheckpointError that says why."""

import tracemalloc
from time import monotonic

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mindspore_writer import TYPES, checkpoint, field, tensor_message, value, values, varint, with_checksum

from featx import CheckpointError
from featx.weights import mindspore
from featx.weights.mindspore import read_mindspore

FUZZ_SECONDS = 3  # at least, per fuzzed property, of which there are three; other examples on every run

STATE = {
    "conv.weight": torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)),
    "bn.gamma": torch.arange(4.0),
    "step": torch.tensor(300),
}


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "w.ckpt"
        path.write_bytes(content)
        with path.open("rb") as file:
            return read_mindspore(path, file)

    return read


def same(a, b):
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and a[name].reshape(-1).view(torch.uint8).equal(b[name].reshape(-1).view(torch.uint8))
        for name in a
    )


def test_what_was_saved_is_read(read):
    assert same(read(checkpoint(STATE)), STATE)


@pytest.mark.parametrize("dtype", list(TYPES), ids=str)
def test_every_type_that_pytorch_has_is_read(read, dtype):
    state = {"a": torch.tensor([0, 1, 1, 0, 1, 0]).to(dtype).reshape(2, 3)}
    assert same(read(checkpoint(state)), state)


def test_values_that_are_not_finite_come_as_they_were(read):
    bits = torch.tensor([0x7FC00001, 0x7F800000, -0x800000, -0x7FFFFFFF - 1], dtype=torch.int32)
    state = {"a": bits.view(torch.float32)}
    assert same(read(checkpoint(state)), state)


def test_dimensions_may_be_packed(read):
    packed = b"".join(values(tag, tensor, packed=True) for tag, tensor in STATE.items() if tensor.ndim)
    assert same(read(packed), {tag: tensor for tag, tensor in STATE.items() if tensor.ndim})


@pytest.mark.parametrize("chunk", [1, 5, 64, 191, 192])
def test_a_tensor_in_several_values_is_joined(read, chunk):
    parts = b"".join(values(tag, tensor, chunk=chunk) for tag, tensor in STATE.items())
    assert same(read(parts), STATE)


def test_all_values_may_be_in_one_message_with_fields_in_any_order(read):
    swapped = field(2, b"Int8") + field(3, b"\1\2") + field(1, 2)
    content = value("a", tensor_message([1], "Int8", b"\7")) + field(1, field(2, swapped) + field(1, b"b"))
    assert same(read(content), {"a": torch.tensor([7]).to(torch.int8), "b": torch.tensor([1, 2]).to(torch.int8)})


def test_a_scalar_may_have_no_dimension_or_a_zero(read):
    content = values("new", torch.tensor(3.0)) + value("old", tensor_message([0], "Int32", b"\5\0\0\0"))
    assert same(read(content), {"new": torch.tensor(3.0), "old": torch.tensor(5, dtype=torch.int32)})


def test_text_saved_beside_the_weights_is_left_out(read):
    note = value("note", tensor_message([0], "str", "best".encode("utf-32-le")))
    assert same(read(note + checkpoint(STATE)), STATE)


def test_a_checksum_is_compared(read):
    whole = with_checksum(checkpoint(STATE))
    assert same(read(whole), STATE)
    with pytest.raises(CheckpointError, match="its checksum is wrong"):
        read(bytes([whole[0], whole[1], whole[2] ^ 1, *whole[3:]]))


def test_tensors_do_not_depend_on_the_file_any_more(read, tmp_path):
    state = read(checkpoint(STATE))
    (tmp_path / "w.ckpt").write_bytes(b"")
    state["bn.gamma"] += 1
    assert state["bn.gamma"].tolist() == [1, 2, 3, 4]


def read_or_refuse(read, content):
    try:
        return read(content)
    except CheckpointError:
        return {}


@pytest.mark.parametrize("checked", [False, True])
def test_cut_at_any_length_no_tensor_is_other_than_it_was(read, checked):
    whole = with_checksum(checkpoint(STATE)) if checked else checkpoint(STATE)
    for length in range(len(whole)):
        # a file cut between two tensors is a whole file with fewer of them
        state = read_or_refuse(read, whole[:length])
        assert len(state) < len(STATE) or (checked and length == len(checkpoint(STATE)))
        assert same(state, {tag: STATE[tag] for tag in state})


HUGE = 10 << 30
DAMAGED = {
    "nothing": (b"", "it is empty"),
    "no tensor": (with_checksum(b""), "it has no tensors"),
    "only text": (value("note", tensor_message([0], "str", b"")), "it has no tensors"),
    "another kind of file": (b"\x89PNG\r\n\x1a\n", r"a field \d+ of kind 1 at byte 0 is unknown"),
    "a length beyond the file": (varint(1 << 3 | 2) + varint(HUGE), f"{HUGE} bytes are declared at byte 0"),
    "a length beyond its message": (
        field(1, varint(1 << 3 | 2) + varint(HUGE) + b"a") + bytes(50),
        f"{HUGE} bytes are declared",
    ),
    "content beyond its tensor": (
        value("a", field(1, 1) + field(2, b"Int8") + varint(3 << 3 | 2) + varint(HUGE)),
        f"{HUGE} bytes are declared",
    ),
    "a number without end": (b"\x0a" + b"\xff" * 30, "more than 64 bits"),
    "a number of 65 bits": (b"\x0a" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
    "a number cut short": (b"\x0a\xff", "a number is cut short"),
    "a field as a number": (field(1, 5), "a field 1 of kind 0 at byte 0"),
    "an unknown field": (value("a", tensor_message([1], "Int8", b"\0") + field(9, 1)), "a field 9 of kind 0"),
    "no tag": (field(1, field(2, tensor_message([1], "Int8", b"\0"))), "has no tag"),
    "two tags": (field(1, field(1, b"a") + field(1, b"b")), "has field 1 twice"),
    "a tag that is no text": (field(1, field(1, b"\xff\xfe")), "is not UTF-8"),
    "a tag without end": (value("a" * 5000, b""), "has 5000 bytes"),
    "a tag alone": (field(1, field(1, b"a")), "'a' has no tensor"),
    "no type": (value("a", field(1, 1) + field(3, b"\0")), "lacks its type or its content"),
    "no content": (value("a", field(1, 1) + field(2, b"Int8")), "lacks its type or its content"),
    "content twice": (value("a", tensor_message([1], "Int8", b"\0") + field(3, b"\0")), "has field 3 twice"),
    "too little content": (value("a", tensor_message([2, 2], "Float32", bytes(12))), "has 12 bytes"),
    "too much content": (value("a", tensor_message([2, 2], "Float32", bytes(20))), "has 20 bytes"),
    "a tensor twice in a row": (checkpoint({"a": torch.zeros(2)}) * 2, "has 16 bytes"),
    "a negative dimension": (value("a", tensor_message([-1, -4], "Int8", bytes(4))), r"dimensions \(-1, -4\)"),
    "a dimension of zero": (value("a", tensor_message([0, 4], "Int8", b"")), "has 0 bytes"),
    "a product beyond 64 bits": (value("a", tensor_message([1 << 32, 1 << 32], "Int8", b"")), "has 0 bytes"),
    "empty": (value("a", tensor_message([0], "Float32", b"")), "has 0 bytes"),
    "many dimensions": (value("a", tensor_message([1] * 33, "Int8", b"\0")), "more than 32 dimensions"),
    "many packed dimensions": (
        value("a", tensor_message([1] * 1000, "Int8", b"\0", packed=True)),
        "more than 32 dimensions",
    ),
    "parts of other types": (
        value("a", tensor_message([4], "Int8", b"\0\0")) + value("a", tensor_message([4], "UInt8", b"\0\0")),
        "the parts of 'a' differ",
    ),
    "parts of other shapes": (
        value("a", tensor_message([4], "Int8", b"\0\0")) + value("a", tensor_message([2, 2], "Int8", b"\0\0")),
        "the parts of 'a' differ",
    ),
    "parts apart": (checkpoint(STATE) + checkpoint({"conv.weight": torch.zeros(1)}), "'conv.weight' is there twice"),
    "bools of other values": (value("a", tensor_message([2], "Bool", b"\0\2")), "bytes other than 0 and 1"),
}


@pytest.mark.parametrize(("content", "problem"), DAMAGED.values(), ids=DAMAGED)
def test_what_is_damaged_is_refused_and_said_how(read, content, problem):
    with pytest.raises(CheckpointError, match=rf"w.ckpt: not a whole checkpoint \(.*{problem}.*fetch or save it again"):
        read(content)


@pytest.mark.parametrize("kind", ["Int4", "Float8E4M3", "float32", ""])
def test_a_type_that_cannot_be_read_is_named_with_those_that_can(read, kind):
    with pytest.raises(CheckpointError, match=rf"'a' is of type '{kind}'.*BFloat16, Float32"):
        read(value("a", tensor_message([2], kind, b"\0")))


def test_a_map_tensor_is_named(read):
    table = field(1, field(1, b"table") + field(3, field(1, tensor_message([1], "Int8", b"\0"))))
    with pytest.raises(CheckpointError, match=r"'table' is a MapTensor.*leave it out"):
        read(checkpoint(STATE) + table)


@pytest.mark.parametrize(("magic", "cipher"), [(0xD8, "AES-GCM"), (0xD9, "AES-CBC"), (0xDA, "SM4-CBC")])
def test_an_encrypted_file_is_named_with_what_to_do(read, magic, cipher):
    with pytest.raises(CheckpointError, match=rf"encrypted \({cipher}\).*dec_key.*save it again without one"):
        read(bytes([magic, 0x5E, 0x3A, 0x7F]) + bytes(100))


def test_more_values_than_any_network_has_are_refused(read, monkeypatch):
    monkeypatch.setattr(mindspore, "MOST_VALUES", 2)
    assert read(checkpoint({"a": torch.zeros(1), "b": torch.zeros(1)})).keys() == {"a", "b"}
    with pytest.raises(CheckpointError, match="more than 2 values"):
        read(checkpoint(STATE))


def peak(read, content):
    tracemalloc.start()
    read_or_refuse(read, content)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return memory


def test_memory_is_the_size_of_the_tensors(read):
    tensor = torch.zeros(250_000)
    parts = values("a", tensor, chunk=300_000) + values("b", tensor)
    assert peak(read, parts) < len(parts) + 100_000


@pytest.mark.parametrize("content", [content for content, _ in DAMAGED.values()], ids=DAMAGED)
def test_nothing_is_allocated_for_what_a_damaged_file_announces(read, content):
    assert peak(read, content) < 100_000


def check(read, content):
    """A CheckpointError, or tensors no larger than the file they came from."""
    assert sum(tensor.nbytes for tensor in read_or_refuse(read, content).values()) <= len(content)


def for_a_while(fuzz):
    end = monotonic() + FUZZ_SECONDS
    while monotonic() < end:
        fuzz()


MANY = settings(
    max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = st.one_of(st.integers(0, 3), st.sampled_from([7, 127, 128, 1 << 31, 1 << 62, -1, -4, HUGE]))
LEAVES = st.one_of(NUMBERS, st.binary(max_size=40), st.sampled_from([b"a", b"Float32", b"Int8", b"Bool", b"str"]))


def message(parts):
    return b"".join(field(number, part) for number, part in parts)


MESSAGES = st.recursive(
    LEAVES, lambda inner: st.lists(st.tuples(st.integers(1, 4), inner), max_size=5).map(message), max_leaves=20
)


@pytest.mark.sweep
def test_fuzz_messages_of_any_fields(read):
    @MANY
    @given(st.lists(st.tuples(st.just(1), MESSAGES), max_size=4).map(message))
    def fuzz(content):
        check(read, content)

    for_a_while(fuzz)


@pytest.mark.sweep
def test_fuzz_bytes_changed_in_a_whole_file(read):
    whole = with_checksum(checkpoint({**STATE, "text": torch.zeros(2, dtype=torch.uint8)}))
    whole += value("note", tensor_message([0], "str", "best".encode("utf-32-le")))
    places = st.integers(0, len(whole) - 1)

    @MANY
    @given(st.lists(st.tuples(places, st.integers(0, 2), st.binary(max_size=4)), min_size=1, max_size=6))
    def fuzz(changes):
        content = bytearray(whole)
        for place, removed, inserted in changes:
            content[place : place + removed] = inserted
        check(read, bytes(content))

    for_a_while(fuzz)


@pytest.mark.sweep
def test_fuzz_tensors_of_any_shape_and_type_come_back(read):
    shapes = st.lists(st.integers(1, 4), max_size=5)
    tensors = st.dictionaries(st.text(max_size=9), st.tuples(shapes, st.sampled_from(list(TYPES))), min_size=1)

    @MANY
    @given(tensors, st.integers(1, 50), st.booleans(), st.booleans())
    def fuzz(described, chunk, packed, checked):
        state = {name: torch.randint(0, 2, shape).to(dtype) for name, (shape, dtype) in described.items()}
        parts = b"".join(values(name, tensor, chunk=chunk, packed=packed) for name, tensor in state.items())
        assert same(read(with_checksum(parts) if checked else parts), state)

    for_a_while(fuzz)
