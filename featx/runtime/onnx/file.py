"""ONNX files of graphs, with a description in their metadata."""

import hashlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...tracing.program import Program
from ...weights.protobuf import BYTES, VARINT, ByteReader, Span, fields
from ..description import KEY, Description, beside, from_json, to_json
from .translation import onnx_model

LARGEST = 1 << 30  # bytes of weights in one file: protobuf ends at twice that
# Fields of ONNX's ModelProto by number, and how they are written.
MODEL = {1: (VARINT,), 5: (VARINT,), **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), (BYTES,))}
METADATA, ENTRY = 14, {1: (BYTES,), 2: (BYTES,)}
DIGEST = f"{KEY}.sha256"  # of all other fields of the file and of the weights beside it, which tells damage
LARGEST_FILE = 2**31  # bytes, which protobuf has no more of


def write_onnx(program: Program, said: Description, path: Path) -> None:
    """Write the program, its input named `images`, its outputs as the description says, with weights beside if large.

    Raises:
        UntranslatedError: an operation has no translation to ONNX.
    """
    from onnx.external_data_helper import convert_model_to_external_data, write_external_data_tensors

    shape = [None if axis in said.guard.free else length for axis, length in enumerate(said.guard.shape)]
    model = onnx_model(program, said.tensors(), shape)
    if sum(tensor.nbytes for tensor in program.constants.values()) > LARGEST:
        convert_model_to_external_data(model, location=beside(path).name, size_threshold=0)
        write_external_data_tensors(model, str(path.parent))
    _write_described(model, said, path)


def describe_onnx(path: Path, said: Description) -> None:
    """Put a description into the metadata of the file, in place of any that is there."""
    import onnx

    _write_described(onnx.load(path, load_external_data=False), said, path)


def _write_described(model: Any, said: Description, path: Path) -> None:
    import onnx

    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != DIGEST}
    onnx.helper.set_model_props(model, {**kept, KEY: to_json(said)})
    path.write_bytes(model.SerializeToString())


def seal(path: Path) -> None:
    """Add to the file's metadata the digest of it all, by which `read_onnx` tells damage."""
    import onnx

    last = onnx.ModelProto()  # a message that another one is appended to has the fields of both
    digest = _digest(path, path.read_bytes(), beside(path).exists())
    onnx.helper.set_model_props(last, {DIGEST: digest.decode()})
    with path.open("ab") as file:
        file.write(last.SerializeToString())


def read_onnx(path: Path) -> Description:
    """The description in a file that `featx.export` wrote; nothing else of the file is looked at, but for damage.

    Raises CheckpointError if it has no description, or is damaged.
    """
    data = content_of(path)
    try:
        found = dict(_entry(data, span) for number, span in _fields(data, (0, len(data)), MODEL) if number == METADATA)
        stated = found.get(DIGEST.encode())  # which files that `seal` has not closed lack
        damaged = stated is not None and stated != _digest(path, data, b" " in stated)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no whole ONNX file: {error}") from error
    if KEY.encode() not in found:
        raise CheckpointError(f"{path} was not written by featx.export: it has no description of levels")
    said = from_json(found[KEY.encode()], path)
    if damaged:
        raise CheckpointError(f"{path} was changed after it was written, or is damaged: write it again")
    return said


def content_of(path: Path) -> bytes:
    """The file in memory, where nobody overwrites it."""
    try:
        nbytes = path.stat().st_size
        if path.suffix == ".onnx" and nbytes > LARGEST_FILE:
            raise CheckpointError(f"{path} has {nbytes} bytes, and an ONNX file no more than {LARGEST_FILE}")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not data:
        raise CheckpointError(f"{path} is empty: write it again with featx.export")
    return data


def _digest(path: Path, data: bytes, has_weights: bool) -> bytes:
    """SHA-256 of the fields of the file's content but the digest itself, and that of the weights beside it."""
    digest = hashlib.sha256()
    for part in _parts(data):
        digest.update(part)
    if not has_weights:
        return digest.hexdigest().encode()
    try:
        with beside(path).open("rb") as file:
            return f"{digest.hexdigest()} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode()
    except OSError as error:
        raise CheckpointError(f"{beside(path)}, which has its weights, cannot be read: {error}") from error


def _parts(data: bytes) -> Iterator[memoryview]:
    view, before = memoryview(data), 0
    for number, (start, end) in _fields(data, (0, len(data)), MODEL):
        if number != METADATA or _entry(data, (start, end))[0] != DIGEST.encode():
            yield view[before:end]
        before = end


def _entry(data: bytes, span: Span) -> tuple[bytes, bytes]:
    parts = {number: data[start:end] for number, (start, end) in _fields(data, span, ENTRY)}
    return parts.get(1, b""), parts.get(2, b"")


def _fields(data: bytes, span: Span, known: Mapping[int, tuple[int, ...]]) -> Iterator[tuple[int, Span]]:
    return fields(ByteReader(BytesIO(data)), span, known)
