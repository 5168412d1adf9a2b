"""The version of featx, which the package, its metadata and the files it writes state."""

__version__ = "0.1.0"
