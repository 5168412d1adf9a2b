"""What a model does, found by running it: what its modules return and need, in which order, axes and sizes; copies."""
