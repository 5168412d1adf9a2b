"""The runtimes that run a captured graph."""
