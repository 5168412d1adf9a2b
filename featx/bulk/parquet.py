"""The optional package that reads and writes Parquet."""

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
