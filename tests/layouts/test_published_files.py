"""Files that people have give the maps or logits of the network whose weights they hold."""

import pytest
import torch
from conftest import images, relative_difference

import featx
from layouts.published_files import FILES

TOLERANCE = 1e-5  # single precision, the same operations in another order


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_gives_what_its_network_computes(name, tmp_path):
    file = FILES[name]
    saved, reference = file.build()
    path = tmp_path / f"weights{file.suffix}"
    file.write(saved, path)
    with torch.serialization.safe_globals([*file.allowed]):
        model = featx.create_model(
            file.model, features_only=not file.logits, checkpoint_path=path, **file.fields, **file.options
        ).eval()
    x = images(1, 3, *file.size)
    with torch.no_grad():
        outputs, expected = [model(x)] if file.logits else model(x), reference(x)
    assert len(outputs) == len(expected)
    assert max(map(relative_difference, outputs, expected)) <= TOLERANCE
