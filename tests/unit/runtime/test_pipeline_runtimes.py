"""Pipelines on every runtime and in files: accepted images and properties are those of the original."""

import pytest
import torch
from conftest import images, randomize, worst

import featx
from featx.necks import FPN, P6P7, Pipeline
from featx.runtime import runtimes

SMALL = (96, 96)  # pixels, less than a cell of the deepest map
RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(lacking is not None, reason=str(lacking)))
    for name, lacking in runtimes().items()
]


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    source = featx.create_model("resnet18", features_only=True, out_indices=[2, 3, 4])
    fpn = FPN(source.feature_info, 8)
    return randomize(Pipeline(source, fpn, P6P7(fpn.feature_info, 8)))


def assert_stands_in_for(made, original):
    """Compare the maps of small images, the error for smaller ones, and the properties."""
    x = images(1, 3, *SMALL)
    assert [map_.shape[-1] for map_ in made(x)] == [12, 6, 3, 2, 1]
    assert worst(made, original, x) < 1e-4
    told = []
    for extractor in (made, original):
        with pytest.raises(featx.InputError) as raised:
            extractor(images(1, 3, 31, 96))
        told.append(str(raised.value))
    assert told[0] == told[1]
    assert "one cell of the deepest map (32 pixels)" in told[0]
    for fact in ("in_chans", "data_config", "size_divisor", "feature_info"):
        assert getattr(made, fact) == getattr(original, fact), fact
    assert made._inner.fixed_size == original._inner.fixed_size


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_optimized_pipeline_takes_small_images(pipeline, runtime):
    made = featx.optimize(pipeline, runtime=runtime, example=images(1, 3, *SMALL))
    assert_stands_in_for(made, pipeline)


@pytest.mark.usefixtures("tolerant_of_torch")
def test_an_exported_pipeline_takes_small_images(pipeline, tmp_path):
    path = tmp_path / "pipeline.onnx"
    featx.export(pipeline, path, example=images(1, 3, *SMALL))
    assert_stands_in_for(featx.load_exported(path), pipeline)


def test_what_loading_did_is_reported_by_what_is_optimized(tmp_path):
    featx.save(featx.create_model("resnet18"), tmp_path)
    source = featx.create_model("resnet18", features_only=True, out_indices=[1], checkpoint_path=str(tmp_path))
    assert source.load_report is not None
    for runtime in ("eager", "onnxruntime"):
        if runtimes()[runtime] is None:
            assert featx.optimize(source.eval(), runtime=runtime).load_report == source.load_report


def test_levels_chosen_from_a_pipeline_take_its_small_images(pipeline):
    chosen = featx.FeatureExtractWrapper(pipeline._inner, [3, 4])
    assert [map_.shape[-1] for map_ in chosen.eval()(images(1, 3, *SMALL))] == [2, 1]
