"""NumPy files: read as NumPy reads them, and refused if they are invalid."""

import io
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featx import CheckpointError
from featx.weights import npz

ARRAYS = {
    "a/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "half": np.ones((3, 1), np.float16),
    "double": np.array([1e300, -0.0, np.inf]),
    "count": np.array(7),
    "none": np.zeros((0, 5), np.float32),
    "columns": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "small": np.array([-3, 4], np.int8),
    "flags": np.array([True, False]),
    "bytes": np.array([200, 1], np.uint8),
}


def read_npz(path):
    with path.open("rb") as file:
        return npz.read_npz(path, file)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.npz"


def described(text, data=b"", version=1):
    """An array as bytes, whose description is this text."""
    width = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(width, len(text)) + text.encode() + data


def array(dtype="<f4", shape="(2,)", data=bytes(8), **more):
    return described(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n", data, **more)


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_what_numpy_saved(path, save):
    save(path, **ARRAYS)
    state = read_npz(path)
    assert list(state) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        assert state[name].is_contiguous()
        assert state[name].numpy().dtype == expected.dtype
        assert np.array_equal(state[name].numpy(), expected)
        state[name].zero_()  # in memory of its own, which can be written


@pytest.mark.parametrize("dtype", [">f4", ">f2", ">f8", ">i8", ">i4", ">i2"])
def test_big_endian_arrays_are_turned_round(path, dtype):
    expected = np.array([[1, -2], [3, 260]], dtype)
    np.savez(path, a=expected)
    assert np.array_equal(read_npz(path)["a"].numpy(), expected)


@pytest.mark.parametrize("dtype", ["|V2", "<V2"])
def test_two_bytes_of_anything_are_bfloat16(path, dtype):
    expected = torch.tensor([[1.5, -2.0], [float("inf"), 3e38]]).bfloat16()
    archive(path, [("a.npy", array(dtype, "(2, 2)", expected.view(torch.int16).numpy().tobytes()))])
    read = read_npz(path)["a"]
    assert read.dtype is torch.bfloat16
    assert torch.equal(read, expected)


def test_scalars_of_bfloat16_too(path):
    archive(path, [("a.npy", array("|V2", "()", b"\x80\x3f"))])
    assert torch.equal(read_npz(path)["a"], torch.tensor(1.0, dtype=torch.bfloat16))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_the_format_is_read(path, version):
    archive(path, [("a.npy", array(data=np.array([1, 2], "<f4").tobytes(), version=version))])
    assert read_npz(path)["a"].tolist() == [1, 2]


def test_shapes_as_python_2_wrote_them_are_read(path):
    archive(path, [("a.npy", array(shape="(1L, 2L)"))])
    assert read_npz(path)["a"].shape == (1, 2)


def test_a_file_without_arrays_is_empty(path):
    np.savez(path)
    assert read_npz(path) == {}


def test_bytes_that_are_neither_zero_nor_one_are_true(path):
    archive(path, [("a.npy", array("|b1", "(3,)", b"\x00\x07\x01"))])
    assert read_npz(path)["a"].tolist() == [False, True, True]


REFUSED = {
    "objects": ("a.npy", array("|O"), "holds Python objects; they were not read"),
    "text": ("a.npy", array("<U1"), "is of the type '<U1'"),
    "complex": ("a.npy", array("<c8", "(1,)"), "is of the type '<c8'"),
    "unknown bytes": ("a.npy", array("|V4"), "is of the type '|V4'"),
    "fields": (
        "a.npy",
        described("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (), }"),
        "is of the type",
    ),
    "too little": ("a.npy", array(shape="(3,)"), "takes 12 bytes, but 8 bytes are there"),
    "too much": ("a.npy", array(shape="(1,)"), "takes 4 bytes, but 8 bytes are there"),
    "enormous": ("a.npy", array(shape="(99999999999, 99999999999)"), "no tensor has it"),
    "enormous and empty": ("a.npy", array(shape="(0, 99999999999, 99999999999)", data=b""), "no tensor has it"),
    "many axes": ("a.npy", array(shape=f"({'1, ' * 40})", data=bytes(4)), "no tensor has it"),
    "negative": ("a.npy", array(shape="(-2,)"), "not how NumPy describes arrays"),
    "computed": ("a.npy", array(shape="(1+1,)"), "not how NumPy describes arrays"),
    "no description": ("a.npy", described("{}"), "not how NumPy describes arrays"),
    "long description": ("a.npy", described(" " * 20_000), "20000 bytes long, more than 10000"),
    "longer than it is": ("a.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "4294967295 bytes long, more than 10000"),
    "deep description": ("a.npy", described("(" * 9000), "not how NumPy describes arrays"),
    "version 4": ("a.npy", array(version=1).replace(b"\x01\x00", b"\x04\x00", 1), "format 1, 2 or 3"),
    "no array": ("a.npy", b"hello", "it begins with b'hello'"),
    "empty": ("a.npy", b"", "it begins with b''"),
    "not an array": ("a.txt", b"hello", "'a.txt' is not an array"),
    "upwards": ("../a.npy", array(), "is not a tensor name"),
    "upwards inside": ("a/../../b.npy", array(), "is not a tensor name"),
    "from the root": ("/etc/a.npy", array(), "is not a tensor name"),
    "windows": ("..\\a.npy", array(), "is not a tensor name"),
    "nameless": (".npy", array(), "is not a tensor name"),
    "control": ("a\x1b[2J.npy", array(), "is not a tensor name"),
}


@pytest.mark.parametrize(("name", "data", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_a_array_of_numbers_is_refused_by_name(path, name, data, message):
    archive(path, [("good.npy", array()), (name, data)])
    with pytest.raises(CheckpointError) as refused:
        read_npz(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(path):
    archive(path, [("a.npy", array()), ("a.npy", array())])
    with pytest.raises(CheckpointError, match="'a' is in it 2 times"):
        read_npz(path)


def test_all_names_that_are_wrong_are_listed(path):
    archive(path, [("../a.npy", array()), ("b.txt", b"")])
    with pytest.raises(CheckpointError, match=r"'\.\./a\.npy' is not a tensor name; 'b\.txt' is not an array"):
        read_npz(path)


def peak(read):
    """Bytes of memory that it takes at most, and the error it raises."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as refused:
            read()
        return tracemalloc.get_traced_memory()[1], str(refused.value)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [1, 40])
def test_a_bomb_is_refused_before_memory_is_taken(path, count):
    size = (200 << 20) // count
    header = array(shape=f"({size // 4},)", data=b"")
    archive(path, [(f"{n}.npy", header + bytes(size)) for n in range(count)], zipfile.ZIP_DEFLATED)
    taken, message = peak(lambda: read_npz(path))
    assert "more than the 67108864 allowed" in message
    assert taken < 1 << 20


def test_arrays_that_lie_about_their_size_are_refused(path):
    """The list of members says 8 bytes of array; there are as many as a bomb has."""
    data = array(shape="(2,)", data=bytes(100 << 20))
    archive(path, [("a.npy", data)], zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<I", len(array()))
    path.write_bytes(raw)
    taken, message = peak(lambda: read_npz(path))
    assert "Bad CRC-32" in message
    assert taken < 4 << 20


def test_small_arrays_of_zeros_that_shrink_a_lot_are_read(path):
    np.savez_compressed(path, a=np.zeros((1000, 1000), np.float32))
    assert path.stat().st_size * 500 < 4_000_000
    assert read_npz(path)["a"].shape == (1000, 1000)


def test_members_that_overlap_are_refused(path):
    """One array of 1 MB, listed sixteen times."""
    archive(path, [("a.npy", array(shape="(262144,)", data=bytes(1 << 20)))])
    raw = path.read_bytes()
    at, end = raw.rindex(b"PK\x01\x02"), raw.rindex(b"PK\x05\x06")
    entry = raw[at:end]
    entries = b"".join(entry.replace(b"a.npy", f"{n:01x}.npy".encode()) for n in range(16))
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 16, 16, len(entries), at, 0)
    path.write_bytes(raw[:at] + entries + tail)
    with pytest.raises(CheckpointError, match="they overlap or are cut off"):
        read_npz(path)


def test_too_many_arrays_are_refused(path, monkeypatch):
    monkeypatch.setattr(npz, "MAX_MEMBERS", 3)
    archive(path, [(f"{n}.npy", array()) for n in range(4)])
    with pytest.raises(CheckpointError, match="it lists 4 arrays, more than 3"):
        read_npz(path)


def test_a_list_of_members_that_is_too_long_is_not_read(path):
    entry = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, *[20] * 2, *[0] * 4, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0) + b"a.npy"
    entries = entry * (npz.MAX_DIRECTORY // len(entry) + 10)
    path.write_bytes(entries + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 9, 9, len(entries), 0, 0))
    taken, message = peak(lambda: read_npz(path))
    assert f"longer than {npz.MAX_DIRECTORY} bytes" in message
    assert taken < 3 * npz.MAX_DIRECTORY


@pytest.mark.parametrize("flag", [b"\x01\x00", b"\x41\x00"])
def test_encrypted_arrays_are_refused(path, flag):
    archive(path, [("a.npy", array())])
    raw = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(mark) + offset : raw.index(mark) + offset + 2] = flag
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="'a' is encrypted"):
        read_npz(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused(path, method):
    archive(path, [("a.npy", array())], method)
    with pytest.raises(CheckpointError, match=f"compressed by method {method}; expected none or deflate"):
        read_npz(path)


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip at all", b"PK\x05\x06" + bytes(17), array()])
def test_what_is_not_a_zip_is_refused(path, data):
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is not a whole \.npz file"):
        read_npz(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_cut_anywhere_is_refused(path, save):
    save(path, a=np.arange(8, dtype=np.float32), b=np.ones(3))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_npz(path)


def test_a_flipped_bit_in_the_data_is_noticed(path):
    np.savez(path, a=np.arange(8, dtype=np.float32))
    raw = bytearray(path.read_bytes())
    raw[raw.index(np.float32(3).tobytes())] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="Bad CRC-32"):
        read_npz(path)


def whole_files():
    """Files to damage, in both ways of NumPy."""
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, **{name: ARRAYS[name] for name in ("a/kernel", "count", "columns")})
        yield buffer.getvalue()


WHOLE = list(whole_files())
# Bytes that mean something somewhere in such a file.
SPECIAL = [
    b"\x00" * 4,
    b"\xff" * 4,
    b"\xff" * 8,
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"'|O'",
    b"(9",
]
piece = st.one_of(st.sampled_from(SPECIAL), st.binary(min_size=1, max_size=8))
edit = st.tuples(st.sampled_from(["over", "in", "cut", "copy"]), st.integers(0, 1 << 16), st.integers(0, 64), piece)
# other examples on every run; 4000 take a minute
fuzz = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def edited(data, edits):
    for kind, place, length, new in edits:
        at = place % (len(data) + 1)
        if kind == "over":
            data = data[:at] + new + data[at + len(new) :]
        elif kind == "in":
            data = data[:at] + new + data[at:]
        elif kind == "cut":
            data = data[:at] + data[at + length :]
        else:
            data = data[:at] + data[at : at + length] + data[at:]
    return data


def read_or_refuse(path, data):
    """Tensors that take no more memory than is allowed, or a CheckpointError; anything else fails."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        state = read_npz(path)
        assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    except CheckpointError:
        pass
    finally:
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert taken < npz.ALWAYS_ALLOWED + (16 << 20)


@pytest.mark.sweep
@fuzz
@given(st.sampled_from(WHOLE), st.lists(edit, min_size=1, max_size=6))
def test_damaged_files_are_read_or_refused(tmp_path_factory, whole, edits):
    read_or_refuse(tmp_path_factory.getbasetemp() / "damaged.npz", edited(whole, edits))


@pytest.mark.sweep
@fuzz
@given(st.binary(max_size=300))
def test_members_of_any_bytes_are_read_or_refused(tmp_path_factory, data):
    buffer = io.BytesIO()
    archive(buffer, [("a.npy", data)])
    read_or_refuse(tmp_path_factory.getbasetemp() / "member.npz", buffer.getvalue())


@pytest.mark.sweep
@fuzz
@given(
    st.sampled_from(["<f4", ">f8", "|b1", "<V2", "|V2", "|O", "<U4", "<f16", "f4", "<i3", "", "|S0"])
    | st.text(max_size=6),
    st.sampled_from(["True", "False", "1", ""]),
    st.lists(st.integers(-3, 1 << 70), max_size=40).map(str) | st.text("()0123456789L, ", max_size=20),
    st.binary(max_size=40),
    st.integers(0, 4),
)
def test_any_description_is_read_or_refused(tmp_path_factory, dtype, order, shape, data, version):
    shape = shape.replace("[", "(").replace("]", ",)")
    text = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}"
    buffer = io.BytesIO()
    archive(buffer, [("a.npy", described(text.encode("utf-8", "surrogatepass").decode("latin1"), data, version))])
    read_or_refuse(tmp_path_factory.getbasetemp() / "description.npz", buffer.getvalue())


@pytest.mark.sweep
@fuzz
@given(
    st.sampled_from(["<f4", ">f4", "<f2", "<f8", ">i8", "<i4", "|i1", "|u1", "|b1"]),
    st.lists(st.integers(0, 5), max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_any_array_is_read_as_numpy_reads_it(tmp_path_factory, dtype, shape, columns, compressed):
    values = np.frombuffer(zlib.adler32(bytes(shape)).to_bytes(4, "little") * 4096, "u1")
    values = (values[: np.prod(shape, dtype=int)].reshape(shape) % 2).astype(dtype)
    path = tmp_path_factory.getbasetemp() / "any.npz"
    (np.savez_compressed if compressed else np.savez)(path, a=np.asfortranarray(values) if columns else values)
    with np.load(path) as expected:
        assert np.array_equal(read_npz(path)["a"].numpy(), expected["a"])
