"""The local page without a browser: what it computes, and its messages."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.webui import LOCAL, NAME, SIZE, VIT, asked, random
from support.webui import closed_loops as closed_loops
from support.webui import coffee as coffee
from support.webui import models as models
from support.webui import session as session

import featx
from featx.webui import session as session_module
from featx.webui.guard import Limits
from featx.webui.model_choice import ModelChoice, WeightsKind, build, levels_and_blocks, require_published
from featx.webui.session import (
    ModelParts,
    Models,
    PictureKind,
    PictureRequest,
    Session,
    answer,
    attention_by_head,
    default_parts,
    draw,
    hide_folders,
    with_marker,
)

# gradio leaves its look at a port that is taken to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed.*socket:ResourceWarning")


# Models and levels


def test_random_weights_are_those_of_their_seed_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (build(random(seed=seed)).state_dict()["conv_stem.weight"] for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(featx.ArgumentError, match=f"the seed is {seed}: choose one from 0 to 4294967295"):
        build(random(seed=seed))


def test_a_checkpoint_must_be_named():
    with pytest.raises(featx.ArgumentError, match="no checkpoint is named: enter a file"):
        build(ModelChoice(NAME, WeightsKind.checkpoint))


def test_levels_and_blocks_are_reported_without_weights():
    levels, blocks = levels_and_blocks(VIT)
    assert (len(levels), blocks[-1]) == (12, "blocks.11")
    assert levels_and_blocks("resnet18")[1] == []


@pytest.mark.parametrize(("name", "shown"), [("resnet18", [0, 1, 2, 3, 4]), (VIT, [2, 5, 8, 11])])
def test_of_many_levels_four_are_shown(name, shown):
    assert list(default_parts(*levels_and_blocks(name)).levels) == shown


def test_a_model_is_kept_for_the_next_picture():
    models = Models()
    assert models.get(random()) is models.get(random())
    assert models.get(random(seed=1)) is not models.get(random())


def test_a_checkpoint_is_read_again_when_it_changed(session, tmp_path):
    file, models = tmp_path / "last.safetensors", Models()
    choice = ModelChoice(NAME, WeightsKind.checkpoint, checkpoint=str(file))
    maps = []
    for seed, written in ((0, 10), (1, 20)):
        torch.manual_seed(seed)
        save_file(featx.create_model(NAME).state_dict(), file)
        os.utime(file, (written, written))
        maps.append(session.maps(models, choice, SIZE)[1][0])
    assert not torch.equal(*maps)


def test_visitors_on_other_machines_reach_no_files():
    require_published(ModelChoice("resnet50.a1_in1k"))
    for choice in (
        ModelChoice(NAME, WeightsKind.checkpoint, checkpoint="/etc/passwd"),
        ModelChoice("local-dir:/etc"),
        ModelChoice("hf-hub:someone/something"),
        ModelChoice("transformers//etc"),
    ):
        with pytest.raises(featx.ArgumentError, match="this page is served to other machines: it shows featx's own"):
            require_published(choice)
        assert answer(Session(), Models(), PictureRequest(choice), remote=True).message.startswith(
            "this page is served"
        )


# Pictures


@pytest.mark.parametrize("what", PictureKind)
def test_every_kind_of_picture_is_drawn(session, models, what):
    given = answer(session, models, asked(what, VIT, block="blocks.3"), **LOCAL)
    assert given.message == ""
    assert given.picture is not None
    assert min(given.picture.size) > 100
    assert len(given.picture.getcolors(2**24)) > 100


@pytest.mark.parametrize("what", [PictureKind.similarity, PictureKind.attention])
def test_another_point_is_another_picture(session, models, what):
    first = draw(session, models, asked(what, VIT, block="blocks.3"))
    session.point = 0.9, 0.1
    assert not np.array_equal(first, draw(session, models, asked(what, VIT, block="blocks.3")))


def test_without_a_point_attention_is_the_class_tokens(session, models):
    of_point = draw(session, models, asked(PictureKind.attention, VIT, block="blocks.3"))
    session.point = None
    of_class = draw(session, models, asked(PictureKind.attention, VIT, block="blocks.3"))
    assert not np.array_equal(of_point, of_class)


def test_maps_are_computed_once_for_a_photograph(session, models, monkeypatch):
    first = session.maps(models, random(), SIZE)
    monkeypatch.setattr(session_module, "build", None)
    assert session.maps(models, random(), SIZE)[1] is first[1]


def test_another_photograph_forgets_the_point_and_the_maps(session, models, coffee):
    session.maps(models, random(), SIZE)
    session.show(coffee)
    assert (session.point, session.computed) == (None, None)


@pytest.mark.parametrize(
    ("fields", "point", "message"),
    [
        ({"what": PictureKind.similarity}, None, "click a point of the photograph"),
        ({"what": PictureKind.maps, "levels": ()}, None, "no level was asked for"),
        ({"what": PictureKind.channels, "level": 9}, None, "there is no level 9"),
        ({"what": PictureKind.channels, "level": None}, None, "choose a level"),
        ({"what": PictureKind.attention}, None, "has no attention among tokens"),
        ({"what": PictureKind.attention, "name": VIT}, None, "choose one of the blocks with attention: blocks.0, "),
        ({"what": PictureKind.maps, "name": "resnet1"}, None, "no model is named 'resnet1'"),
    ],
    ids=["point", "levels", "other level", "level", "attention", "block", "model"],
)
def test_what_is_missing_is_reported_instead_of_a_picture(session, models, fields, point, message):
    session.point = point
    given = answer(session, models, asked(**fields), **LOCAL)
    assert message in given.message
    assert (given.picture, given.code) == (None, "")


def test_without_a_photograph_there_is_nothing_to_draw(models):
    assert answer(Session(), models, asked(PictureKind.maps), **LOCAL).message == "there is no photograph yet: drop one"


def test_the_photograph_is_marked_at_the_point(session, coffee):
    changed = np.abs(np.asarray(with_marker(session), dtype=int) - np.asarray(coffee, dtype=int)).sum(2) > 0
    rows, columns = np.nonzero(changed)
    assert rows.mean() == pytest.approx(0.7 * 96, abs=1)  # a ring, of whole pixels
    assert columns.mean() == pytest.approx(0.3 * 144, abs=1)


def test_a_large_photograph_is_shown_smaller_and_kept_whole(session):
    session.show(Image.new("RGB", (4000, 2000)))
    assert with_marker(session).size == (1024, 512)
    assert session.photograph.size == (4000, 2000)


# Attention


def test_heads_attend_as_the_capture_says():
    extractor = build(random(VIT))
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), featx.capture_attention(extractor, [3]) as seen:
        extractor(image)
    map_ = seen.maps["blocks.3"][0]  # (3, 1 + 24, 1 + 24): a class token, then 4x6 patches in rows
    heads, looks = attention_by_head(extractor, image, "blocks.3", None)
    assert torch.equal(heads, map_[:, 0, 1:].reshape(3, 4, 6))
    assert looks == "the class token"
    heads, looks = attention_by_head(extractor, image, "blocks.3", (0.4, 0.8))  # column 2, row 3
    assert torch.equal(heads, map_[:, 1 + 3 * 6 + 2, 1:].reshape(3, 4, 6))
    assert looks == "the patch clicked"


def test_a_model_without_class_token_attends_from_all_patches():
    extractor = build(random("vit_wee_patch16_reg1_gap_256"))
    extractor_maps = attention_by_head(extractor, torch.randn(1, 3, 64, 64), "blocks.0", None)
    assert extractor_maps[0].shape[1:] == (4, 4)


def test_a_pixel_of_mobilevit_attends_to_the_patches_at_its_place():
    extractor = build(random("mobilevit_xxs"))
    image = torch.randn(1, 3, 128, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), featx.capture_attention(extractor, [-1]) as seen:
        extractor(image)  # the last map has 4x8 pixels, 2x4 patches of 2x2
    (block,) = seen.maps
    heads, looks = attention_by_head(
        extractor, image, block, (0.99, 0.3)
    )  # pixel in row 1, column 7: the fourth of its patch
    assert torch.equal(heads, seen.maps[block][3, :, 3].reshape(4, 2, 4))
    assert looks == "the pixel clicked"


def test_mobilevitv2_scores_patches_for_all_pixels():
    extractor = build(random("mobilevitv2_050"))
    heads, looks = attention_by_head(extractor, torch.randn(1, 3, 128, 256), "stages.4.1.transformer.2", (0.5, 0.5))
    assert (heads.shape, looks) == ((1, 2, 4), "all pixels")
    assert heads.sum().item() == pytest.approx(1, abs=1e-5)  # single precision


def test_windows_are_no_grid_over_the_image():
    extractor = build(random("timm/swin_tiny_patch4_window7_224"))
    with pytest.raises(featx.ContractError, match="attends within 64 windows"):
        attention_by_head(extractor, torch.randn(1, 3, 224, 224), "layers.0.blocks.0", None)


# Messages


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("no such file: /home/ann/weights/last.pt", "no such file: …/last.pt"),
        ("'/srv/data/cut.jpg' is cut short", "'…/cut.jpg' is cut short"),
        (f"{Path.cwd()}/inner folder/a.pt: not a checkpoint", "…/inner folder/a.pt: not a checkpoint"),
        (r"C:\Users\ann\last.pt is gone", "…/last.pt is gone"),
        ("~/weights/last.pt is gone", "…/last.pt is gone"),
        (f"{Path.cwd()}/a/b/c.pt is gone", "…/c.pt is gone"),
        ("https://huggingface.co/timm/resnet18/a", "https://huggingface.co/timm/resnet18/a"),
        ("config.json of timm/resnet18.a1_in1k", "config.json of timm/resnet18.a1_in1k"),
        ("at 1/4 and 1/16, yes/no/maybe", "at 1/4 and 1/16, yes/no/maybe"),
    ],
)
def test_messages_do_not_tell_where_files_are(message, told):
    assert hide_folders(featx.CheckpointError(message)) == told


def test_a_checkpoint_that_is_absent_is_reported_without_its_folder(session, tmp_path):
    choice = ModelChoice(NAME, WeightsKind.checkpoint, checkpoint=str(tmp_path / "absent.pt"))
    message = answer(session, Models(), PictureRequest(choice, parts=ModelParts((0,))), **LOCAL).message
    assert "absent.pt" in message
    assert str(tmp_path) not in message
    assert tmp_path.name not in message


# The fields


def test_another_model_brings_its_levels_and_blocks(session):
    from featx.webui.page import Handlers

    handlers = Handlers(Limits(), remote=False)
    levels, level, block, picture, message, code = handlers.change_model(session, VIT, "random", 0, "", SIZE, "maps")
    assert levels.value == [2, 5, 8, 11]
    assert level.choices[level.value][0] == "blocks.11 · 1/16"
    assert block.value == "blocks.11"
    assert picture is not None
    assert (message.value, code.visible) == ("", True)
    *_, picture, message, code = handlers.change_model(session, "resnet1", "random", 0, "", SIZE, "maps")
    assert picture is None
    assert message.value.startswith("no model is named 'resnet1'")
    assert not code.visible


def test_a_click_shows_similarity_and_keeps_attention(session):
    from featx.webui.page import on_click

    event = SimpleNamespace(index=[36, 24])  # of 144x96
    assert on_click(session, "maps", event)[1] == "similarity"
    assert session.point == (0.25, 0.25)
    assert on_click(session, "attention", event)[1] == "attention"


@pytest.mark.parametrize("what", [PictureKind.maps, PictureKind.similarity])
def test_a_photograph_of_another_aspect_is_cut_for_a_model_of_one_size(session, monkeypatch, what):
    monkeypatch.setattr(featx.backbone.Pyramid, "fixed_size", (SIZE, SIZE))
    wanted = asked(what, name=VIT, levels=(-1,), level=-1)
    assert answer(session, Models(), wanted, **LOCAL).picture is not None
    session.point = (0.01, 0.5)
    seen = answer(session, Models(), wanted, **LOCAL)
    assert seen.picture is not None or seen.message.startswith("the model sees the center of this photograph alone")
    assert not answer(session, Models(), PictureRequest(random(VIT), what, wanted.parts, 96), **LOCAL).picture


@pytest.mark.parametrize("size", [None, SIZE])
def test_a_photograph_of_any_aspect_is_drawn_for_a_model_whose_patches_must_fit(session, monkeypatch, size):
    monkeypatch.setattr(featx.FeatureExtractWrapper, "size_divisor", 28)
    assert (
        answer(session, Models(), PictureRequest(random(), PictureKind.maps, ModelParts((1,)), size), **LOCAL).picture
        is not None
    )
    assert session.input(build(random()), size).shape[2] % 28 == session.input(build(random()), size).shape[3] % 28 == 0
