"""Preprocessing survives saving, loading by timm, extraction, wrapping and optimization."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import random_extractor, relative_difference
from PIL import Image
from skimage import data
from support.extraction import CLOSE, stored
from timm.data import create_transform, resolve_model_data_config
from typer.testing import CliRunner

import featx
from featx import ArgumentError, CheckpointError, DataConfig, FeatureExtractWrapper
from featx.adapters.requirements import statistics
from featx.bulk.config import Recipe
from featx.bulk.decoder import decoder_for
from featx.bulk.inputs import find_items
from featx.bulk.preview import _model_view
from featx.cli import app
from featx.heads.ssd import SSDConfig, _image_statistics
from featx.necks import ChannelMapper, Pipeline

SQUASH = DataConfig((64, 96), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", 0.9, "squash")
BORDER = replace(SQUASH, size=(96, 64), crop_mode="border", crop=1.0)
BGR = replace(SQUASH, crop_mode="center", channel_order="bgr", crop_rounding="down")
OTHER = replace(SQUASH, crop_mode="other")
EVERY = pytest.mark.parametrize("config", [SQUASH, BORDER, BGR, OTHER], ids=["squash", "border", "bgr", "other"])
WIDE = Image.fromarray(data.rocket())
NAME = "mobilenetv3_small_050"


def expecting(config: DataConfig, **choice: object) -> FeatureExtractWrapper:
    """A small extractor of a model that expects such images."""
    extractor = random_extractor(NAME, out_indices=[1, 3], **choice)
    extractor.source.data_config = config
    return extractor


@EVERY
def test_a_saved_folder_is_read_with_its_preprocessing(config, tmp_path):
    model = featx.create_model(NAME)
    model.data_config = config
    featx.save(model, tmp_path)
    assert featx.create_model(f"local-dir:{tmp_path}", pretrained=True).data_config == config
    assert featx.create_model(f"local-dir:{tmp_path}", features_only=True).data_config == config


@pytest.mark.parametrize("config", [SQUASH, BORDER], ids=["squash", "border"])
def test_timm_reads_the_preprocessing_of_a_saved_folder(config, tmp_path):
    model = featx.create_model(NAME)
    model.data_config = config
    featx.save(model, tmp_path)
    theirs = resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}", pretrained=True))
    assert torch.equal(featx.transform(model)(WIDE), create_transform(**theirs, is_training=False)(WIDE))


def test_what_timm_saves_is_read_with_its_preprocessing(tmp_path):
    cfg = {"input_size": (3, 64, 96), "mean": SQUASH.mean, "std": SQUASH.std, "crop_pct": 0.9, "crop_mode": "squash"}
    theirs = timm.create_model(NAME, pretrained_cfg_overlay={**cfg, "interpolation": "bilinear"})
    timm.models.save_for_hf(theirs, tmp_path)
    assert featx.create_model(f"local-dir:{tmp_path}", pretrained=True).data_config == SQUASH


@pytest.fixture
def folder(tmp_path) -> Path:
    featx.save(featx.create_model(NAME), tmp_path)
    return tmp_path


def test_a_file_that_states_its_preprocessing_at_the_top_is_read(folder):
    read = json.loads((folder / "config.json").read_text())
    stated = {**read.pop("pretrained_cfg"), "crop_mode": "squash", "crop_pct": 0.75}
    (folder / "config.json").write_text(json.dumps({**read, **stated}))
    config = featx.create_model(f"local-dir:{folder}", pretrained=True).data_config
    assert (config.crop_mode, config.crop) == ("squash", 0.75)


@pytest.mark.parametrize(
    ("stated", "match"), [({"crop_pct": 0}, "crop=0: "), ({"crop_mode": "fill"}, "'fill': choose")]
)
def test_a_folder_whose_preprocessing_means_nothing_is_refused(folder, stated, match):
    read = json.loads((folder / "config.json").read_text())
    read["pretrained_cfg"] |= stated
    (folder / "config.json").write_text(json.dumps(read))
    with pytest.raises(CheckpointError, match=rf"config\.json of local-dir:.* invalid preprocessing: .*{match}"):
        featx.create_model(f"local-dir:{folder}")


def test_pipelines_and_optimized_extractors_keep_the_preprocessing():
    extractor = expecting(BGR)
    assert Pipeline(extractor, ChannelMapper(extractor.feature_info, 8)).data_config == BGR
    assert featx.optimize(extractor, runtime="eager").data_config == BGR


@pytest.mark.parametrize(
    ("config", "size"), [(SQUASH, None), (BORDER, 64), (BGR, None)], ids=["squash", "border", "bgr"]
)
def test_an_extraction_crops_as_transform_does_and_says_so(config, size, tmp_path):
    extractor = expecting(config)
    WIDE.save(tmp_path / "wide.png")
    featx.extract([tmp_path / "wide.png"], extractor, tmp_path / "out", size=size)
    with torch.inference_mode():
        maps = extractor(featx.transform(extractor, size=size)(WIDE)[None])
    for ours, map_ in zip(stored(tmp_path / "out")["wide.png"], maps, strict=True):
        assert relative_difference(ours, map_[0]) < CLOSE
    decided = json.loads((tmp_path / "out/meta.json").read_text())["decided"]
    assert decided["preprocessing"] == json.loads(json.dumps(asdict(config)))
    changed = expecting(replace(config, crop_mode="center", channel_order="rgb"))
    with pytest.raises(featx.OutputError, match="has other settings"):
        featx.extract([tmp_path / "wide.png"], changed, tmp_path / "out", size=size)


def test_an_extraction_of_whole_images_turns_their_channels(tmp_path):
    extractor = expecting(BGR)
    Image.fromarray(data.chelsea()).resize((96, 64)).save(tmp_path / "image.png")
    featx.extract([tmp_path / "image.png"], extractor, tmp_path / "out", keep_aspect=True)
    with torch.inference_mode():
        maps = extractor(featx.transform_whole(extractor)(Image.open(tmp_path / "image.png"))[None])
    for ours, map_ in zip(stored(tmp_path / "out")["image.png"], maps, strict=True):
        assert relative_difference(ours, map_[0]) < CLOSE


def test_an_extraction_of_a_model_that_no_mode_suits_needs_whole_images(tmp_path):
    extractor = expecting(OTHER)
    WIDE.save(tmp_path / "wide.png")
    with pytest.raises(featx.ArgumentError, match="keep_aspect=True"):
        featx.extract([tmp_path / "wide.png"], extractor, tmp_path / "refused")
    summary = featx.extract([tmp_path / "wide.png"], extractor, tmp_path / "out", keep_aspect=True)
    assert summary.written == 1


def test_a_model_of_one_channel_extracts_gray_images(tmp_path):
    extractor = expecting(DataConfig((64, 64), (0.4,), (0.2,)), in_chans=1)
    WIDE.save(tmp_path / "wide.png")
    featx.extract([tmp_path / "wide.png"], extractor, tmp_path / "out")
    with torch.inference_mode():
        maps = extractor(featx.transform(extractor)(WIDE.convert("L"))[None])
    for ours, map_ in zip(stored(tmp_path / "out")["wide.png"], maps, strict=True):
        assert relative_difference(ours, map_[0]) < CLOSE


@pytest.mark.parametrize("config", [SQUASH, BORDER], ids=["squash", "border"])
def test_scaled_decoding_leaves_twice_the_pixels_of_every_crop_mode(config, tmp_path):
    """A gradient comes out alike whatever the scale it is decoded at."""
    gradient = np.linspace(0, 255, 1600)[None, :, None].repeat(800, 0).repeat(3, 2).astype(np.uint8)
    Image.fromarray(gradient).save(tmp_path / "wide.jpg", quality=95)
    items, pixels = find_items([tmp_path / "wide.jpg"]), {}
    for scaled in (False, True):
        decoder = decoder_for(expecting(config), items, Recipe(scaled_decode=scaled))
        assert decoder.opening.shorter == (max(config.resized()) if scaled else None)
        pixels[scaled] = decoder(0).pixels.astype(int)
    assert np.abs(pixels[True] - pixels[False]).max() <= 2


@pytest.mark.parametrize("config", [SQUASH, BORDER], ids=["squash", "border"])
def test_a_picture_of_an_extraction_shows_what_the_model_saw(config, tmp_path):
    WIDE.save(tmp_path / "wide.png")
    featx.extract([tmp_path / "wide.png"], expecting(config), tmp_path / "out")
    dataset = featx.FeatureDataset(tmp_path / "out")
    seen = np.asarray(_model_view(str(tmp_path / "wide.png"), dataset[0], dataset.meta["decided"]))
    plain = expecting(replace(config, mean=(0.0,) * 3, std=(1.0,) * 3))
    if config.crop_mode == "squash":
        assert np.array_equal(seen, (featx.transform(plain)(WIDE) * 255).round().permute(1, 2, 0).byte().numpy())
    else:
        assert (seen[0, 0] == [round(255 * mean) for mean in config.mean]).all()


def test_what_normalizes_images_itself_refuses_a_backbone_for_bgr():
    extractor = expecting(BGR)
    with pytest.raises(ArgumentError, match=r"in the order BGR, and would be given RGB: .*mobilevit_s"):
        statistics(extractor)
    with pytest.raises(ArgumentError, match="in the order BGR, and a detector gives it RGB"):
        _image_statistics(extractor, SSDConfig())


def test_info_says_which_images_the_weights_expect():
    result = CliRunner().invoke(app, ["info", "convnextv2_nano.fcmae_ft_in22k_in1k_384"])
    assert (
        "images: 384×384 pixels, squash crop of 1, bicubic, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
        in result.output
    )
