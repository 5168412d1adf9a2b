"""ONNX files with a description of the extractor in their metadata."""

import hashlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...tracing.program import Program
from ...weights.protobuf import BYTES, VARINT, ByteReader, Span, fields
from ..description import KEY, Description, from_json, to_json, weights_file
from .translation import onnx_model

LARGEST = 1 << 30  # bytes of weights in the file itself, half of protobuf's limit; more are written to a second file
# Wire types of the fields of ONNX's ModelProto, by field number.
MODEL = {1: (VARINT,), 5: (VARINT,), **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), (BYTES,))}
METADATA, ENTRY = 14, {1: (BYTES,), 2: (BYTES,)}
DIGEST = f"{KEY}.sha256"  # key of the digests of all other fields and of the weights file, which detect damage
LARGEST_FILE = 2**31  # bytes, the limit of protobuf


def write_onnx(program: Program, description: Description, path: Path) -> None:
    """Write a program and its description as an ONNX file, with the input `images` and the description's outputs.

    Weights of more than LARGEST bytes are written to a second file.

    Raises:
        UntranslatedError: An operation has no translation to ONNX.
    """
    from onnx.external_data_helper import convert_model_to_external_data, write_external_data_tensors

    guard = description.guard
    shape = [None if axis in guard.free else length for axis, length in enumerate(guard.shape)]
    model = onnx_model(program, description.output_names(), shape)
    if sum(tensor.nbytes for tensor in program.constants.values()) > LARGEST:
        convert_model_to_external_data(model, location=weights_file(path).name, size_threshold=0)
        write_external_data_tensors(model, str(path.parent))
    _write_described(model, description, path)


def describe_onnx(path: Path, description: Description) -> None:
    """Write a description into the metadata of an ONNX file, and replace an existing one."""
    import onnx

    _write_described(onnx.load(path, load_external_data=False), description, path)


def _write_described(model: Any, description: Description, path: Path) -> None:
    import onnx

    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != DIGEST}
    onnx.helper.set_model_props(model, {**kept, KEY: to_json(description)})
    path.write_bytes(model.SerializeToString())


def seal(path: Path) -> None:
    """Append the digests of the file and its weights file to the metadata, by which `read_onnx` detects damage."""
    import onnx

    suffix = onnx.ModelProto()  # protobuf merges the fields of concatenated messages
    digest = _digest(path, path.read_bytes(), weights_file(path).exists())
    onnx.helper.set_model_props(suffix, {DIGEST: digest.decode()})
    with path.open("ab") as file:
        file.write(suffix.SerializeToString())


def read_onnx(path: Path) -> Description:
    """The description in a file that `featx.export` wrote; the graph is not parsed, only hashed.

    Raises:
        CheckpointError: The file has no description, or is damaged.
    """
    data = content_of(path)
    try:
        fields_of_model = _fields(data, (0, len(data)), MODEL)
        metadata = dict(_entry(data, span) for number, span in fields_of_model if number == METADATA)
        digest = metadata.get(DIGEST.encode())  # absent in files of the cache, which `seal` has not closed
        damaged = digest is not None and digest != _digest(path, data, b" " in digest)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a complete ONNX file: {error}") from error
    if KEY.encode() not in metadata:
        raise CheckpointError(f"{path} was not written by featx.export: it has no description of levels")
    description = from_json(metadata[KEY.encode()], path)
    if damaged:
        raise CheckpointError(f"{path} was changed after it was written, or is damaged: write it again")
    return description


def content_of(path: Path) -> bytes:
    """The bytes of a file, which later changes of the file do not affect."""
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
    """SHA-256 of all fields except the digest, in hexadecimal; with a weights file, a space and its SHA-256 follow."""
    digest = hashlib.sha256()
    for part in _parts_without_digest(data):
        digest.update(part)
    if not has_weights:
        return digest.hexdigest().encode()
    try:
        with weights_file(path).open("rb") as file:
            return f"{digest.hexdigest()} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode()
    except OSError as error:
        raise CheckpointError(f"{weights_file(path)}, which has its weights, cannot be read: {error}") from error


def _parts_without_digest(data: bytes) -> Iterator[memoryview]:
    """The encoded fields of a model, except the metadata entry with the digest."""
    view, position = memoryview(data), 0
    for number, (start, end) in _fields(data, (0, len(data)), MODEL):
        if number != METADATA or _entry(data, (start, end))[0] != DIGEST.encode():
            yield view[position:end]
        position = end


def _entry(data: bytes, span: Span) -> tuple[bytes, bytes]:
    """Key and value of a metadata entry."""
    parts = {number: data[start:end] for number, (start, end) in _fields(data, span, ENTRY)}
    return parts.get(1, b""), parts.get(2, b"")


def _fields(data: bytes, span: Span, known: Mapping[int, tuple[int, ...]]) -> Iterator[tuple[int, Span]]:
    return fields(ByteReader(BytesIO(data)), span, known)
