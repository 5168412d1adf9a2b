"""Runtimes that execute a captured graph: ONNX Runtime and OpenVINO."""
