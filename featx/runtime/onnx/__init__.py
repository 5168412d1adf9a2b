"""ONNX graphs: translation of a captured program, description in the metadata, quantization."""
