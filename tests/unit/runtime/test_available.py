"""Runtimes that are available on this machine."""

import pytest

from featx.runtime import runtimes


def test_runtimes_that_can_be_used_here_have_nothing_missing():
    assert list(runtimes()) == ["eager", "onnxruntime", "openvino"]
    assert runtimes()["eager"] is None


@pytest.mark.parametrize(
    ("name", "absent", "message"),
    [
        ("onnxruntime", ["onnxruntime"], "it needs onnxruntime: pip install 'featx[onnx]'"),
        ("onnxruntime", ["onnx", "onnxruntime"], "it needs onnx and onnxruntime: pip install 'featx[onnx]'"),
        ("openvino", ["openvino"], "it needs openvino: pip install 'featx[openvino]'"),
    ],
)
def test_what_a_runtime_lacks_is_reported_with_how_to_get_it(name, absent, message, monkeypatch):
    monkeypatch.setattr("featx.runtime.available.find_spec", lambda package: None if package in absent else package)
    assert runtimes()[name] == message
