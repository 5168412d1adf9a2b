"""One family per file; a file registers its variants when it is imported."""
