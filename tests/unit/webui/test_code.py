"""The code that the local page shows reproduces its picture."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.webui import LOCAL, NAME, SIZE, VIT, asked, random
from support.webui import closed_loops as closed_loops
from support.webui import coffee as coffee
from support.webui import file as file
from support.webui import models as models
from support.webui import session as session

import featx
from featx.webui.model_choice import ModelChoice, WeightsKind
from featx.webui.session import ModelParts, Models, PictureKind, PictureRequest, answer, attention_by_head

# gradio leaves its look at a port that is taken to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed.*socket:ResourceWarning")


def run(code: str, photograph: Path) -> dict:
    scope: dict = {}
    exec(code.replace('"photograph.jpg"', repr(str(photograph))), scope)
    return scope


@pytest.mark.parametrize("size", [None, SIZE])
def test_the_code_gives_the_maps_that_are_shown(session, models, file, size):
    given = answer(session, models, PictureRequest(random(), PictureKind.maps, ModelParts((1, 3)), size), **LOCAL)
    _, maps = session.maps(models, random(), size)
    ran = run(given.code, file)["maps"]
    assert len(ran) == 2
    assert all(torch.equal(map_, maps[i]) for map_, i in zip(ran, (1, 3), strict=True))


def test_the_code_gives_the_similarity_that_is_shown(session, models, file):
    given = answer(session, models, asked(PictureKind.similarity, level=2), **LOCAL)
    alike = run(given.code, file)["alike"]
    assert torch.equal(alike, featx.viz.similarity(session.maps(models, random(), SIZE)[1][2], (0.3, 0.7)))


def test_the_code_gives_the_attention_that_is_shown(session, models, file):
    given = answer(session, models, asked(PictureKind.attention, VIT, block="blocks.3"), **LOCAL)
    seen, extractor = run(given.code, file)["seen"], models.get(random(VIT))
    heads, _ = attention_by_head(extractor, session.input(extractor, SIZE), "blocks.3", None)
    assert torch.equal(seen.maps["blocks.3"][0, :, 0, 1:].reshape(heads.shape), heads)


def test_the_code_names_the_checkpoint(session, tmp_path, file):
    checkpoint = tmp_path / "it's mine.safetensors"
    torch.manual_seed(3)
    save_file(featx.create_model(NAME).state_dict(), checkpoint)
    choice = ModelChoice(NAME, WeightsKind.checkpoint, checkpoint=str(checkpoint))
    given = answer(session, Models(), PictureRequest(choice, PictureKind.norms, ModelParts((0,)), SIZE), **LOCAL)
    assert torch.equal(run(given.code, file)["maps"][0], session.maps(Models(), choice, SIZE)[1][0])


def test_the_code_of_published_weights_says_so():
    from featx.webui.model_choice import code_of_maps

    assert f"featx.create_model('{NAME}', pretrained=True, features_only=True, out_indices=[1])" in code_of_maps(
        ModelChoice(NAME), None, [1]
    )
