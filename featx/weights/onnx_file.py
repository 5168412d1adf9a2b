"""Read the weights of an ONNX file that PyTorch exported, under the names of the model's state dict.

The file is a protobuf message: https://onnx.ai/onnx/repo-docs/IR.html. Its initializers keep the names of parameters
and buffers, with two exceptions. Most linear layers become a MatMul with a transposed, unnamed weight, and the name or
the metadata of the node has the path of the module. Equal tensors are stored once. The graph is neither run nor built,
and no tensor is allocated before its size has been checked against the file.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BufferedReader
from math import prod
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from ..errors import CheckpointError, in_short, names_in
from .npz import MAX_MEMBERS
from .protobuf import BYTES, VARINT, ByteReader, Span, all_fields, damaged, integers, text, varint
from .state_dict_keys import StateDict

# Numbers of the types of tensors, and their types in PyTorch.
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    14: torch.complex64,
    15: torch.complex128,
    16: torch.bfloat16,
}
MOST_FIELDS = 2_000_000  # of all messages, which takes a few seconds; a large network has 100,000
MOST_NODES = 200_000
MOST_DIMENSIONS = 32
MOST_ENTRIES = 100  # of the metadata of a node, or of the place of external data

# field numbers by message
GRAPH, NODE, INITIALIZER = 7, 1, 5
INPUT, OUTPUT, NODE_NAME, OPERATION, METADATA = 1, 2, 3, 4, 9
DIMENSION, TYPE, FLOATS, TENSOR_NAME, RAW, DOUBLES, PLACE, IS_ELSEWHERE = 1, 2, 4, 8, 9, 10, 13, 14
KEY, VALUE = 1, 2
CONTENT = (RAW, FLOATS, DOUBLES)

SCOPES = "pkg.torch.onnx.name_scopes"  # metadata of a node: paths of the modules around it, and its own name
UNNAMED = re.compile(r"onnx::\w+|val_\d+|\d+|/.*")  # what the exporter calls tensors of its own
FOLDED = re.compile(r"onnx::Conv\w*_\d+|.*\.weight_bias")  # weights and biases of convolutions that it computed


@dataclass(frozen=True, slots=True)
class Initializer:
    """A tensor of the graph. content: the span of its values. place: where they are in another file."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    content: Span | None
    place: Mapping[str, str] | None


@dataclass(slots=True)
class Node:
    """An operation of the graph. scopes: paths of the modules around it, in the metadata of newer exporters."""

    operation: str = ""
    name: str = ""
    scopes: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def read_onnx(path: Path, file: BufferedReader) -> StateDict:
    """Read the weights of an ONNX file into memory, under the names of the exported model's state dict.

    Tensors of the graph that no module owns keep the exporter's name, unless they are integers or single numbers.

    Raises:
        CheckpointError: the file is damaged, has no weights, or refers to a file outside its folder.
    """
    try:
        graph = GraphFile(ByteReader(file))
        graph.parse()
        tensors = _with_aliases({**_inside(graph), **_outside(graph, path.parent)}, graph.nodes)
        refuse_folded(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    state = named_weights(tensors, graph.nodes)
    weights = {name: tensor for name, tensor in state.items() if not _is_constant(name, tensor)}
    if not weights:
        raise CheckpointError(f"{path} has no weights: expected an ONNX file with the parameters of a model in it")
    return weights


class GraphFile:
    """The nodes and initializers of a file, parsed without their values."""

    def __init__(self, data: ByteReader) -> None:
        self.data, self.parsed = data, 0
        self.nodes: list[Node] = []
        self.initializers: dict[str, Initializer] = {}

    def parse(self) -> None:
        """Fill `nodes` and `initializers`; CheckpointError if the file is not an ONNX model or is too large."""
        graphs = [span for _, span in self.fields((0, self.data.size), {GRAPH: (BYTES,)})]
        if len(graphs) != 1:
            raise damaged(f"it has {len(graphs)} graphs, and a model has one")
        for number, span in self.fields(graphs[0], {NODE: (BYTES,), INITIALIZER: (BYTES,)}):
            if number == NODE:
                self.nodes.append(self.node(span))
            else:
                self.add(self.initializer(span))
            if len(self.nodes) > MOST_NODES or len(self.initializers) > MAX_MEMBERS:
                raise CheckpointError(
                    f"it has more than {MOST_NODES} nodes or {MAX_MEMBERS} tensors, as no network has"
                )

    def fields(self, message: Span, known: Mapping[int, tuple[int, ...]]) -> Iterator[tuple[int, Span]]:
        """Number and span of the known fields of a message; others are skipped, because new releases add some."""
        for number, wire_type, span in all_fields(self.data, message):
            self.parsed += 1
            if self.parsed > MOST_FIELDS:
                raise CheckpointError(f"it has more than {MOST_FIELDS} entries, as no network has")
            if number in known and wire_type not in known[number]:
                raise damaged(f"the field {number} at byte {span[0]} is of kind {wire_type}, not {known[number]}")
            if number in known:
                yield number, span

    def node(self, message: Span) -> Node:
        node = Node()
        texts = (INPUT, OUTPUT, NODE_NAME, OPERATION)
        for number, span in self.fields(message, {**dict.fromkeys(texts, (BYTES,)), METADATA: (BYTES,)}):
            if number == INPUT:
                node.inputs.append(text(self.data, span))
            elif number == OUTPUT:
                node.outputs.append(text(self.data, span))
            elif number == NODE_NAME:
                node.name = text(self.data, span)
            elif number == OPERATION:
                node.operation = text(self.data, span)
            elif scopes := self.entries([span], (SCOPES,)).get(SCOPES):
                node.scopes = scopes
        return node

    def entries(self, messages: list[Span], keys: tuple[str, ...]) -> dict[str, str]:
        """The values of these keys in messages of a key and a value each."""
        if len(messages) > MOST_ENTRIES:
            raise damaged(f"a tensor has {len(messages)} entries of external data")
        found: dict[str, str] = {}
        for message in messages:
            parts = dict(self.fields(message, {KEY: (BYTES,), VALUE: (BYTES,)}))
            key = text(self.data, parts[KEY]) if KEY in parts else ""
            if key in keys and VALUE in parts:
                found[key] = text(self.data, parts[VALUE])
        return found

    def add(self, initializer: Initializer) -> None:
        if initializer.name in self.initializers:
            raise damaged(f"{initializer.name!r} is there twice")
        self.initializers[initializer.name] = initializer

    def initializer(self, message: Span) -> Initializer:
        shape: list[int] = []
        places: list[Span] = []
        parts: dict[int, Span] = {}
        known = {**dict.fromkeys((*CONTENT, TENSOR_NAME, PLACE), (BYTES,)), DIMENSION: (VARINT, BYTES)}
        for number, span in self.fields(message, {**known, TYPE: (VARINT,), IS_ELSEWHERE: (VARINT,)}):
            if number == DIMENSION:
                shape.extend(integers(self.data, span))
            elif number == PLACE:
                places.append(span)
            elif number in parts:
                raise damaged(f"the tensor at byte {message[0]} has field {number} twice")
            else:
                parts[number] = span
            if len(shape) > MOST_DIMENSIONS:
                raise damaged(f"the tensor at byte {message[0]} has more than {MOST_DIMENSIONS} dimensions")
        name = text(self.data, parts[TENSOR_NAME]) if TENSOR_NAME in parts else ""
        content = [parts[number] for number in CONTENT if number in parts]
        if len(content) > 1:
            raise damaged(f"{name!r} has its values twice")
        elsewhere = (
            self.entries(places, ("location", "offset", "length")) if self._number(parts, IS_ELSEWHERE) else None
        )
        return Initializer(name, self._number(parts, TYPE), tuple(shape), content[0] if content else None, elsewhere)

    def _number(self, parts: Mapping[int, Span], number: int) -> int:
        return varint(self.data, *parts[number])[0] if number in parts else 0


def _inside(graph: GraphFile) -> StateDict:
    """The initializers whose values are in the file itself; those that are not numbers are left out."""
    tensors: StateDict = {}
    for one in graph.initializers.values():
        if one.dtype in DTYPES and one.place is None:
            start, stop = one.content or (0, 0)
            tensors[one.name] = _read(graph.data, one, start, stop - start)
    return tensors


def _outside(graph: GraphFile, folder: Path) -> StateDict:
    """The initializers whose values are in other files, which are in the folder of the ONNX file."""
    from .readers import require_unchanged

    others = [one for one in graph.initializers.values() if one.dtype in DTYPES and one.place is not None]
    paths = {one.name: _data_file(folder, one) for one in others}
    unique = sorted(set(paths.values()))
    needed, there = sum(_size(one) for one in others), sum(path.stat().st_size for path in unique)
    if needed > there:
        raise damaged(f"its external tensors would take {needed} bytes, but {names_in(unique)} have {there}")
    tensors: StateDict = {}
    with ExitStack() as stack, require_unchanged(unique, folder):
        files = {path: ByteReader(stack.enter_context(path.open("rb"))) for path in unique}
        for one in others:
            place = one.place or {}
            start, length = (_count(place.get(key, default), one) for key, default in _defaults(one))
            tensors[one.name] = _read(files[paths[one.name]], one, start, length)
    return tensors


def _defaults(one: Initializer) -> tuple[tuple[str, str], ...]:
    return ("offset", "0"), ("length", str(_size(one)))


def _count(digits: str, one: Initializer) -> int:
    if not re.fullmatch(r"\d{1,18}", digits, re.ASCII):
        raise damaged(f"the place of {one.name!r} has {digits[:40]!r} for a number")
    return int(digits)


def _data_file(folder: Path, one: Initializer) -> Path:
    """The file with the tensor's values; CheckpointError unless it is a plain file in the folder."""
    location = (one.place or {}).get("location", "")
    relative = PurePosixPath(location)
    path = folder / relative
    is_inside = location.isprintable() and "\\" not in location and not relative.is_absolute()
    is_inside = is_inside and ".." not in relative.parts and bool(relative.parts)
    try:
        if not is_inside or not path.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(
                f"the values of {one.name!r} are in {location[:200]!r}, outside the folder of the file: they were not "
                "read; export the model again, with its data beside it"
            )
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, which holds values of {one.name!r}: put it beside the ONNX file")
    except OSError as error:
        raise CheckpointError(f"{location[:200]!r} with the values of {one.name!r}: {in_short(error)}") from error
    return path


def _size(one: Initializer) -> int:
    """Bytes that type and shape of the tensor need; CheckpointError if no tensor has the shape."""
    if min(one.shape, default=0) < 0 or prod(max(side, 1) for side in one.shape) >= 1 << 60:
        raise damaged(f"{one.name!r} has a shape that no tensor has")
    return prod(one.shape) * DTYPES[one.dtype].itemsize


def _read(data: ByteReader, one: Initializer, start: int, length: int) -> Tensor:
    """Copy the values of a tensor, which are little-endian, into new memory."""
    dtype, size = DTYPES[one.dtype], _size(one)
    if length != size or start + length > data.size:
        raise damaged(f"{one.name!r} has {length} bytes, which does not match {dtype} of shape {list(one.shape)}")
    values = torch.empty(size, dtype=torch.uint8)
    data.copy(start, values.numpy().data)
    if dtype is torch.bool and bool((values > 1).any()):
        raise damaged(f"{one.name!r} is of the type bool, but has bytes other than 0 and 1")
    return values.view(dtype).reshape(one.shape)


def _with_aliases(tensors: StateDict, nodes: list[Node]) -> StateDict:
    """The tensors, and those that the exporter stored once for several parameters of equal values."""
    tensors = dict(tensors)
    for node in nodes:
        is_alias = node.operation == "Identity" and len(node.inputs) == 1 == len(node.outputs)
        if is_alias and node.inputs[0] in tensors and not node.outputs[0].startswith("/"):
            tensors.setdefault(node.outputs[0], tensors[node.inputs[0]])
    return tensors


def refuse_folded(tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if the exporter computed weights of convolutions from those of the model."""
    if folded := [name for name in tensors if FOLDED.fullmatch(name)]:
        raise CheckpointError(
            f"its exporter folded batch norms or other factors into {len(folded)} convolutions, whose own weights are "
            f"gone ({names_in(folded)}): export the model again, with dynamo=False, "
            "training=torch.onnx.TrainingMode.PRESERVE or with dynamo=True, optimize=False"
        )


def named_weights(tensors: Mapping[str, Tensor], nodes: list[Node]) -> StateDict:
    """The tensors, of which weights of linear layers get their names and their shapes back.

    Two layers of equal weights share a tensor of the file. A tensor keeps its name if none can be found for it.
    """
    bias = {out: other for node in nodes if node.operation == "Add" for out, other in _biases(node, tensors)}
    found: dict[str, str] = {}
    for node in nodes:
        weight = node.inputs[1] if node.operation == "MatMul" and len(node.inputs) == 2 else ""
        is_weight = weight in tensors and UNNAMED.fullmatch(weight) and tensors[weight].ndim == 2
        name = _weight_name(node, bias.get(node.outputs[0], "")) if is_weight and node.outputs else None
        if name is not None and name not in tensors:
            found.setdefault(name, weight)
    renamed = set(found.values())
    transposed = {weight: tensors[weight].T.contiguous() for weight in renamed}
    state = {name: tensor for name, tensor in tensors.items() if name not in renamed}
    return {**state, **{name: transposed[weight] for name, weight in found.items()}}


def _biases(node: Node, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Pairs of a computed input of a sum and the name of the bias that is added to it."""
    for one, other in (node.inputs, node.inputs[::-1]) if len(node.inputs) == 2 else ():
        if other in tensors and one not in tensors and other.endswith("bias"):
            yield one, other


def _weight_name(node: Node, bias: str) -> str | None:
    """The name of the weight of a product: the path of its module, and the leaf that belongs to that of its bias."""
    owner, _, leaf = bias.rpartition(".")
    weight = f"{leaf.removesuffix('bias')}weight"  # in_proj_weight of nn.MultiheadAttention, too
    paths = module_paths(node)
    if owner in paths or not paths:
        return f"{owner}.{weight}" if owner else None
    return f"{paths[0]}.{weight}"


def module_paths(node: Node) -> list[str]:
    """Paths that the module of a node may have, the likeliest one first; none if the exporter did not write it.

    A node of TorchScript's exporter is called "/blocks.0/mlp/mlp.2/MatMul": parts of a Sequential repeat its name.
    """
    if scopes := re.findall(r"'([^']*)'", node.scopes):
        return [scopes[-2]] if len(scopes) > 1 and scopes[-2] else []
    if not node.name.startswith("/"):
        return []
    parts = node.name.split("/")[1:-1]
    joined = [part for part, after in zip(parts, [*parts[1:], ""], strict=False) if not after.startswith(f"{part}.")]
    return [".".join(joined), ".".join(parts)] if parts else []


def _is_constant(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is one of the exporter's own, such as a shape or a factor, and cannot be a weight."""
    return bool(UNNAMED.fullmatch(name)) and (tensor.numel() <= 1 or not tensor.is_floating_point())
