"""Types of Arrow that can hold images or paths, and their cells as plain bytes and text."""

from typing import Any, Literal, NamedTuple

from .parquet import require_pyarrow

Held = Literal["bytes", "paths"]
BYTES: Held = "bytes"
PATHS: Held = "paths"


class Holding(NamedTuple):
    """What the cells of a column can be: image files, paths of image files, or neither.

    many: each cell is a list of them. usual: the type is one in which images are usually stored, and so is looked for.
    """

    what: Held | None
    many: bool = False
    usual: bool = True


def bare(kind: Any) -> Any:
    """The type of the values themselves, of a dictionary or an extension type."""
    pyarrow, _ = require_pyarrow()
    while True:
        if isinstance(kind, pyarrow.BaseExtensionType):
            kind = kind.storage_type
        elif pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def holding(kind: Any) -> Holding:
    """What a column of this type can hold: bytes, text, structs with a field `bytes` or `path`, or lists of these."""
    types = require_pyarrow()[0].types
    inner = bare(kind)
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    if any(is_list(inner) for is_list in lists):
        element = holding(inner.value_type)
        return Holding(None if element.many else element.what, True, False)
    if types.is_struct(inner):
        fields = {field.name: field.type for field in inner}
        if "bytes" in fields and _single(fields["bytes"]) == BYTES:
            return Holding(BYTES, usual=_is_usual(fields["bytes"]))
        return Holding(PATHS if "path" in fields and _single(fields["path"]) == PATHS else None)
    return Holding(_single(kind), usual=_is_usual(kind))


def _single(kind: Any) -> Held | None:
    types, inner = require_pyarrow()[0].types, bare(kind)
    if types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner):
        return PATHS
    binary = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return BYTES if any(is_binary(inner) for is_binary in binary) else None


def _is_usual(kind: Any) -> bool:
    types = require_pyarrow()[0].types
    return types.is_binary(kind) or types.is_large_binary(kind)


def plain(scalar: Any, position: int | None = None) -> Any:
    """The value of a cell as bytes, text, a dictionary, a list or a number; of a list the one at a position, if given.

    Bytes of a column of text that are no UTF-8 become what `os.fsdecode` makes of them.
    """
    pyarrow, _ = require_pyarrow()
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pyarrow.DictionaryScalar | pyarrow.ExtensionScalar):
        return plain(scalar.value, position)
    if isinstance(scalar, pyarrow.StructScalar):
        return {name: plain(scalar[name]) for name in ("bytes", "path") if name in scalar}
    if isinstance(scalar, pyarrow.ListScalar):
        return [plain(one) for one in scalar.values] if position is None else plain(scalar[position])
    if isinstance(scalar, pyarrow.StringScalar):
        return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    return scalar.as_py()
