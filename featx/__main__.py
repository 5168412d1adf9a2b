"""`python -m featx` is `featx`."""

from .cli import main

main()
