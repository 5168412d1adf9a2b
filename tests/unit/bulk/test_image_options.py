"""Image options of an extraction: reduced decoding, color management, truncated files, and very large images."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from support.extraction import index, small_extractor, stored
from support.photographs import ADOBE, PHOTOGRAPH, encoded, to_srgb
from typer.testing import CliRunner

import featx
from featx import ArgumentError, FeatxError, OutputError
from featx.bulk import Recipe, Resources, find_items
from featx.bulk.decoder import Decoder, decoder_for
from featx.bulk.provenance import result_identity
from featx.cli import app


@pytest.fixture(scope="module")
def extractor() -> featx.FeatureExtractWrapper:
    return small_extractor()


def decoder(extractor: featx.FeatureExtractWrapper, folder: Path, **options: object) -> Decoder:
    return decoder_for(extractor, find_items(folder), Recipe(size=64, **options))


def pixels(decoder: Decoder) -> list[np.ndarray]:
    found = [decoder(item) for item in range(len(decoder.items))]
    assert [one.reason for one in found] == [""] * len(found)
    return [one.pixels.astype(float) for one in found]


# decoding at a fraction


@pytest.mark.parametrize("keep_aspect", [False, True], ids=["crop", "keep aspect"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_at_every_size_a_jpeg_decoded_at_a_fraction_is_close_to_the_whole_one(
    tmp_path, extractor, orientation, keep_aspect
):
    """Sides of any remainder by eight; photographs differ by less than 0.01 in relative L2, as the page says."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for remainder in range(8):
        size = 592 + remainder, 440 + (5 * remainder) % 8
        picture = Image.fromarray(data.coffee()).resize(size)
        picture.save(tmp_path / f"{remainder}.jpg", quality=95, exif=exif)
    whole = decoder(extractor, tmp_path, keep_aspect=keep_aspect)
    part = decoder(extractor, tmp_path, keep_aspect=keep_aspect, scaled_decode=True)
    for one, other in zip(pixels(whole), pixels(part), strict=True):
        assert one.shape == other.shape
        difference = np.linalg.norm(one - other) / np.linalg.norm(one)
        assert 0 < difference < 0.01
    assert [whole(item).size for item in range(8)] == [part(item).size for item in range(8)]


def test_pixels_asked_for_one_by_one_are_not_decoded_at_a_fraction(extractor, tmp_path):
    Image.fromarray(data.coffee()).save(tmp_path / "a.jpg")
    nearest = small_extractor()
    nearest.source.data_config = featx.DataConfig((64, 64), interpolation="nearest")
    assert decoder(nearest, tmp_path, scaled_decode=True).opening.shorter is None
    assert decoder(extractor, tmp_path, scaled_decode=True).opening.shorter is not None


# colors


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_colors_are_converted_as_if_before_the_picture_is_resized(tmp_path, crop_mode):
    (tmp_path / "a.png").write_bytes(encoded(PHOTOGRAPH, "PNG", icc_profile=ADOBE))
    converted = np.rint(to_srgb(np.asarray(PHOTOGRAPH))).astype(np.uint8)
    extractor = small_extractor()
    extractor.source.data_config = featx.DataConfig((64, 64), crop_mode=crop_mode)
    given = decoder(extractor, tmp_path)
    (found,) = pixels(given)
    difference = np.abs(found - given.pixels(Image.fromarray(converted)))
    assert difference.mean() < 1.5  # of 255; what resizing before and after a change of gamut differs by
    (ignored,) = pixels(decoder(extractor, tmp_path, color_management="none"))
    assert np.array_equal(ignored, given.pixels(PHOTOGRAPH))


def test_gray_models_see_the_gray_of_the_converted_colors(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(PHOTOGRAPH, "PNG", icc_profile=ADOBE))
    gray = featx.create_model("mobilenetv3_small_050", features_only=True, out_indices=[1], in_chans=1).eval()
    gray.source.data_config = featx.DataConfig((64, 64), (0.5,), (0.5,))
    given = decoder(gray, tmp_path)
    converted = Image.fromarray(np.rint(to_srgb(np.asarray(PHOTOGRAPH))).astype(np.uint8))
    assert np.abs(pixels(given)[0] - given.pixels(converted)).mean() < 1


def test_resuming_in_other_colors_is_refused(tmp_path, extractor):
    (tmp_path / "a.png").write_bytes(encoded(PHOTOGRAPH, "PNG", icc_profile=ADOBE))
    featx.extract(tmp_path / "a.png", extractor, tmp_path / "out", size=64, color_management="none")
    with pytest.raises(OutputError, match='color_management: "none" there, "srgb" now'):
        featx.extract(tmp_path / "a.png", extractor, tmp_path / "out", size=64)


def test_what_a_folder_of_before_these_options_says_is_what_they_say_if_they_are_not_used(extractor):
    """Its fingerprint stays the same, and so it can be gone on with."""
    before = {"dtype", "keep_aspect", "levels", "model", "preprocessing", "runtime", "scaled_decode", "size", "weights"}
    assert result_identity(extractor, "a", Recipe(color_management="none")).keys() == before
    assert result_identity(extractor, "a", Recipe())["color_management"] == "srgb"
    assert result_identity(extractor, "a", Recipe(allow_truncated=True))["allow_truncated"] is True


def test_only_known_ways_to_treat_colors_are_taken():
    with pytest.raises(ArgumentError, match=r"color_management='cmyk': choose one of \('srgb', 'none'\)"):
        Recipe(color_management="cmyk")


def test_a_picture_of_a_folder_is_in_the_colors_that_the_model_saw(tmp_path, extractor):
    from featx.bulk.preview import _model_view

    (tmp_path / "a.png").write_bytes(encoded(PHOTOGRAPH, "PNG", icc_profile=ADOBE))
    seen = {}
    for way in ("srgb", "none"):
        featx.extract(tmp_path / "a.png", extractor, tmp_path / way, keep_aspect=True, size=64, color_management=way)
        dataset = featx.FeatureDataset(tmp_path / way)
        seen[way] = np.asarray(_model_view(str(tmp_path / "a.png"), dataset[0], dataset.meta["decided"])).astype(int)
    assert np.array_equal(seen["none"], np.asarray(PHOTOGRAPH))
    assert np.abs(seen["srgb"] - to_srgb(np.asarray(PHOTOGRAPH))).mean() < 0.6


# cut short, and very large


def test_a_jpeg_that_is_cut_short_is_extracted_as_what_is_there_if_that_is_allowed(tmp_path, extractor):
    whole = encoded(PHOTOGRAPH.resize((480, 320)), "JPEG")
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    summary = featx.extract(tmp_path / "a.jpg", extractor, tmp_path / "refused", size=64)
    assert "truncated" in summary.failed["a.jpg"]
    summary = featx.extract(tmp_path / "a.jpg", extractor, tmp_path / "out", size=64, allow_truncated=True)
    assert (summary.written, summary.failed) == (1, {})
    with Image.open(io.BytesIO(whole[: len(whole) // 2] + b"\xff\xd9")) as shown, torch.inference_mode():
        maps = extractor(featx.transform(extractor, size=64)(shown.convert("RGB"))[None])
    assert torch.allclose(stored(tmp_path / "out")["a.jpg"][0], maps[0][0], atol=1e-5)


def test_images_that_failed_for_their_size_are_done_with_a_larger_limit(tmp_path, extractor):
    (tmp_path / "in").mkdir()
    PHOTOGRAPH.save(tmp_path / "in/a.png")
    PHOTOGRAPH.resize((60, 40)).save(tmp_path / "in/b.png")
    options = {"size": 64, "rows_per_shard": 1}
    summary = featx.extract(tmp_path / "in", extractor, tmp_path / "out", max_pixels=5000, **options)
    assert list(summary.failed) == ["a.png"]
    assert "120x80 pixels are more than 5000" in summary.failed["a.png"]
    again = featx.extract(tmp_path / "in", extractor, tmp_path / "out", max_pixels=9600, retry_failed=True, **options)
    assert (again.written, again.made) == (2, 1)


# the command


def run(*words: object):
    asked = ["--model", "mobilenetv3_small_050", "--random-weights", "0", "--size", "64", "--out-indices", "1"]
    return CliRunner().invoke(app, ["extract", *map(str, words), *asked])


def test_the_command_takes_the_options(tmp_path):
    whole = encoded(PHOTOGRAPH, "JPEG", icc_profile=ADOBE)
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    options = ["--allow-truncated", "--color-management", "none", "--max-pixels", 9600]
    assert run(tmp_path / "a.jpg", "--out", tmp_path / "out", *options).exit_code == 0
    said = json.loads((tmp_path / "out/meta.json").read_text())
    assert said["decided"]["allow_truncated"] is True
    assert "color_management" not in said["decided"]
    assert said["recorded"]["max_pixels"] == 9600
    assert run(tmp_path / "a.jpg", "--out", tmp_path / "few", "--max-pixels", 9599).exit_code == 2
    assert "more than 9599" in index(tmp_path / "few")[0]["error"]


def test_the_command_refuses_a_limit_of_time_for_threads(tmp_path):
    PHOTOGRAPH.save(tmp_path / "a.png")
    result = run(tmp_path / "a.png", "--out", tmp_path / "out", "--decode-timeout", 5)
    assert isinstance(result.exception, FeatxError)
    assert "decoders='processes'" in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.sweep
def test_the_command_decodes_in_processes_with_a_limit_of_time(tmp_path):
    PHOTOGRAPH.save(tmp_path / "a.png")
    options = ["--decoders", "processes", "--workers", 1, "--decode-timeout", 30]
    assert run(tmp_path / "a.png", "--out", tmp_path / "out", *options).exit_code == 0
    assert Resources(decoders="processes", decode_timeout=30).decode_timeout == 30
