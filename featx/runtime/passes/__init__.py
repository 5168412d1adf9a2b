"""Passes that make an extractor faster on every runtime; each one changes modules or weights in place."""
