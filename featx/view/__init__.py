"""A local page: drop a photograph, choose a model, see what its maps and its attention are."""
