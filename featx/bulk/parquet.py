"""The optional package that reads and writes Parquet, and the texts that it takes."""

from typing import Any

from ..errors import MissingPackageError


def require_pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet; MissingPackageError saying how to have them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError(
            "tables of images are Parquet files, which pyarrow reads and writes: pip install 'featx[extract]'"
        ) from error
    return pyarrow, pyarrow.parquet


def cell_text(text: str) -> str:
    r"""A text as a cell of a table holds it: surrogates, which UTF-8 cannot hold, as \udcff."""
    return text.encode("utf-8", "backslashreplace").decode()
