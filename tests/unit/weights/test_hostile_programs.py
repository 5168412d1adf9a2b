"""Pickles whose steps are shuffled: PyTorch's files are read, or refused with CheckpointError, at little cost."""

import io
import pickletools
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.pickle_builder import call, integer, legacy, named, tensor, text, tuples, with_attribute, zipped

import featx
from featx.weights.checkpoint import LoadOptions, read_tensors

STEPS = [bytes([step]) for step in b"(tuesabRQ\x81\x85\x86\x87N)]}\x8f012"]
NUMBERED = st.sampled_from([b"q", b"h", b"K"]).flatmap(lambda step: st.binary(min_size=1, max_size=1).map(step.__add__))
PIECES = [
    *STEPS,
    *(text(word) for word in ("a", "storage", "0", "cpu", "latin1", "__class__", "to", "items")),
    *(integer(number) for number in (0, 2, -1, 1 << 30, 2**61 - 1)),
    *(b"c" + name.encode() + b"\n" for name in ("torch\nFloatStorage", "torch\nFloatTensor", "builtins\nset")),
    *(b"c" + name.encode() + b"\n" for name in ("collections\nOrderedDict", "torch.nn.parameter\nParameter")),
    *(b"c" + name.encode() + b"\n" for name in ("torch._utils\n_rebuild_tensor_v2", "builtins\nbytearray")),
    tensor(), tuples(40), call("collections\nOrderedDict"), with_attribute("shared", b"N"), named(tensor()),
]  # fmt: skip
PIECE = st.sampled_from(PIECES) | NUMBERED


def steps_of(held: object) -> list[bytes]:
    """The program that torch.save writes for a value, step by step."""
    file = io.BytesIO()
    torch.save(held, file)
    reader = torch._C.PyTorchFileReader(io.BytesIO(file.getvalue()))
    program = reader.get_record("data.pkl")
    places = [place for _, _, place in pickletools.genops(program)]
    ends = [*places[1:], len(program)]
    return [program[start:end] for start, end in zip(places, ends, strict=True)][1:-1]  # without version and end


WHOLE = steps_of(
    OrderedDict(
        state_dict={"a": torch.ones(2), "b": torch.nn.Parameter(torch.ones(2))},
        more=[{1, 2}, b"x", (1, "y"), torch.Size([2])],
    )
)


@st.composite
def programs(draw: st.DrawFn) -> bytes:
    """A whole program in which steps are missing, replaced, there twice or elsewhere; or one of nothing but pieces."""
    if draw(st.booleans()):
        return b"".join(draw(st.lists(PIECE, max_size=40)))
    steps = list(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        place, other = (draw(st.integers(0, len(steps) - 1)) for _ in range(2))
        how = draw(st.integers(0, 4))
        if how == 0:
            del steps[place]
        elif how == 1:
            steps[place] = draw(PIECE)
        elif how == 2:
            steps.insert(place, draw(PIECE))
        elif how == 3:
            steps[place], steps[other] = steps[other], steps[place]
        else:
            steps.insert(place, steps[other])
    return b"".join(steps)


def use(folder: Path, program: bytes) -> None:
    """Both kinds of files with the program are read into plain tensors, or refused in a few words, soon."""
    for kind in (zipped, legacy):
        (folder / "w.pt").write_bytes(kind(program))
        start, words = time.process_time(), ""
        try:
            state = read_tensors(folder / "w.pt", LoadOptions())[1].state
        except featx.CheckpointError as error:
            words = str(error)
        else:
            assert {type(tensor) for tensor in state.values()} == {torch.Tensor}
            assert all(tensor.detach().to(torch.float64).abs().sum() >= 0 for tensor in state.values())
            assert sum(tensor.nbytes for tensor in state.values()) < 1 << 20
        assert len(words) < 2000
        assert time.process_time() - start < 5


SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(programs())
@SETTINGS
def test_any_program_is_read_or_refused(tmp_path, program):
    use(tmp_path, program)


@pytest.mark.sweep
@given(programs())
@settings(SETTINGS, max_examples=2000, derandomize=False)
def test_many_programs_are_read_or_refused(tmp_path, program):
    use(tmp_path, program)
