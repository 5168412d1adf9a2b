"""ONNX graphs: written from a captured program, described, quantised."""
