"""The preprocessing of transformers' models, compared with the pixels of the package's image processors."""

import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn

import featx
from featx import CheckpointError, DataConfig
from featx.bridges import transformers as bridge
from featx.bridges.transformers_preprocessing import data_config

transformers = pytest.importorskip("transformers")

WIDE = Image.fromarray(data.rocket())
TALL = Image.fromarray(data.coffee()).transpose(Image.Transpose.ROTATE_90)
# Types whose processors do what no crop mode does: borders at one side, sizes that follow the image.
OTHER = {"donut-swin", "glpn", "pp_lcnet", "sam_hq_vision_model", "sam_vision_model", "textnet"}
# Processors that resize tensors alone; one step of 255, by the smallest std of theirs.
OF_TENSORS = {
    **dict.fromkeys(("dinov3_vit", "sapiens2", "sam2_vision_model"), 0.0176),
    "tipsv2_vision_model": 0.00393,
    "sam3_vision_model": 0.00785,
}
MAPPING = transformers.models.auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES


def processor_for(kind: str) -> type | None:
    found = MAPPING.get(kind) or MAPPING.get(kind.removesuffix("_vision_model"))
    return getattr(transformers, found.get("pil") or found["torchvision"]) if found else None


def transformed(config: DataConfig, photograph: Image.Image) -> Tensor:
    model = nn.Identity()
    model.data_config = config
    return featx.transform(model)(photograph)


def difference(processor: object, config: DataConfig, photograph: Image.Image) -> float:
    theirs = torch.as_tensor(np.asarray(processor(photograph, return_tensors="np")["pixel_values"][0]))
    ours = transformed(config, photograph)
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


def of_size(processor: type, size: tuple[int, int]) -> object:
    """The processor for a model of that image size, configured like published processors of such models."""
    own = processor()
    if own.do_center_crop and tuple(own.crop_size[side] for side in ("height", "width")) == size:
        return own
    sides = {"height": size[0], "width": size[1]}
    return processor(size={"shortest_edge": size[0]} if own.size.shortest_edge else sides, crop_size=sides)


DISTINCT: dict[tuple, str] = {}
for kind in bridge.names():
    default = data_config("", transformers.CONFIG_MAPPING[kind]())
    DISTINCT.setdefault((processor_for(kind), default), kind)


def test_types_that_no_crop_mode_suits_are_those_known():
    assert {kind for (_, config), kind in DISTINCT.items() if config.crop_mode == "other"} <= OTHER
    modes = {kind: data_config("", transformers.CONFIG_MAPPING[kind]()).crop_mode for kind in OTHER}
    assert set(modes.values()) == {"other"}


@pytest.mark.parametrize(
    ("kind", "processor", "config"),
    [
        pytest.param(kind, processor, config, id=kind)
        for (processor, config), kind in DISTINCT.items()
        if processor is not None and config.crop_mode != "other"
    ],
)
def test_pixels_are_those_of_the_types_processor(kind, processor, config):
    theirs = of_size(processor, config.size)
    allowed = OF_TENSORS.get(kind, 0)
    assert all(difference(theirs, config, photograph) <= allowed for photograph in (WIDE, TALL))


SHORTER, SQUARE = {"shortest_edge": 48}, {"height": 48, "width": 64}
CROPPED = {"size": SHORTER, "crop_size": {"height": 40, "width": 40}}
FILES = [
    ("ViTImageProcessor", {"size": SQUARE, "resample": 0}),
    ("ViTImageProcessor", {"size": SQUARE, "resample": 1, "do_normalize": False}),
    ("ViTImageProcessor", {"size": 48, "rescale_factor": 1 / 127.5}),
    ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False}),
    ("ViTImageProcessor", {"size": SQUARE, "image_mean": 0.4, "image_std": 0.2}),
    ("CLIPImageProcessor", CROPPED),
    ("CLIPImageProcessor", {**CROPPED, "size": 48, "crop_size": 40}),
    ("CLIPImageProcessor", {**CROPPED, "crop_size": {"height": 32, "width": 32}, "resample": 2}),
    ("DeiTImageProcessor", {"size": {"height": 51, "width": 51}, "crop_size": {"height": 48, "width": 48}}),
    ("BeitImageProcessor", {"size": {"height": 64, "width": 64}, "do_center_crop": True, "crop_size": 48}),
    ("ConvNextImageProcessor", {"size": SHORTER, "crop_pct": 0.75}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "crop_pct": 0.75}),
    ("PoolFormerImageProcessor", {**CROPPED, "crop_pct": 0.95, "crop_size": {"height": 48, "width": 48}}),
    ("LevitImageProcessor", {**CROPPED, "crop_size": {"height": 48, "width": 48}}),
    ("EfficientNetImageProcessor", {"size": SQUARE, "image_std": [0.4, 0.5, 0.6]}),
    ("EfficientNetImageProcessor", {"size": SQUARE, "rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ("EfficientNetImageProcessor", {"size": SQUARE, "include_top": False}),
    ("MobileViTImageProcessor", CROPPED),
    ("MobileViTImageProcessor", {**CROPPED, "do_flip_channel_order": False}),
    ("DPTImageProcessor", {"size": {"height": 64, "width": 64}, "ensure_multiple_of": 32}),
]


def stated(tmp_path, **fields: object) -> DataConfig:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    return data_config(str(tmp_path), transformers.CONFIG_MAPPING["vit"]())


@pytest.mark.parametrize(("name", "fields"), FILES)
def test_pixels_are_those_of_the_processor_that_a_file_states(name, fields, tmp_path):
    config = stated(tmp_path, image_processor_type=name, **fields)
    theirs = getattr(transformers, f"{name}Pil")(**fields)
    # files of other scales: mean and std are multiplied by it before, which rounds
    allowed = 1e-4 if {"rescale_factor", "do_rescale"} & fields.keys() else 1e-6
    assert max(difference(theirs, config, photograph) for photograph in (WIDE, TALL)) <= allowed


@pytest.mark.parametrize("suffix", ["ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor"])
def test_a_file_is_read_by_the_processor_it_names_and_not_by_the_models_type(suffix, tmp_path):
    config = stated(tmp_path, feature_extractor_type=f"ConvNext{suffix}", size=SHORTER)
    assert (config.size, config.resized(), config.crop_mode) == ((48, 48), (54, 54), "center")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("ViTImageProcessor", {"size": SQUARE, "do_resize": False}),
        ("ViTImageProcessor", {"size": {"longest_edge": 64}}),
        ("CLIPImageProcessor", {"size": SHORTER, "do_center_crop": False}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 48}, "crop_size": SQUARE}),
        ("DPTImageProcessor", {"size": SQUARE, "keep_aspect_ratio": True}),
        ("DPTImageProcessor", {"size": SQUARE, "ensure_multiple_of": 14}),
        ("ViTImageProcessor", {"size": SQUARE, "do_pad": True}),
    ],
)
def test_what_no_crop_mode_does_is_not_taken_for_one(name, fields, tmp_path):
    config = stated(tmp_path, image_processor_type=name, **fields)
    assert config.crop_mode == "other"
    with pytest.raises(featx.ArgumentError, match="no crop mode has"):
        transformed(config, WIDE)
    assert transformed(replace(config, crop_mode="squash"), WIDE).shape == (3, *config.size)


def test_a_file_that_states_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json of .* invalid value: crop_pct=0: expected"):
        stated(tmp_path, image_processor_type="ConvNextImageProcessor", crop_pct=0, size=SHORTER)


ODD = (True, 0, -1, 3, 0.5, 1e308, float("nan"), 10**30, "", "x", [], [1], [1, 2], [0, 0, 0], ["a"] * 3, {}, {"a": 1})
ODD += ({"shortest_edge": 0}, {"shortest_edge": "x"}, {"height": 7, "width": -1}, [[[[]]]])
STATED = ("size", "crop_size", "image_mean", "image_std", "crop_pct", "rescale_factor", "ensure_multiple_of")
STATED += ("size_divisor", "resample", "image_processor_type", "feature_extractor_type", "do_resize", "do_normalize")


@pytest.mark.parametrize("kind", ["ConvNextImageProcessor", "LevitImageProcessor", "ViTImageProcessor"])
@pytest.mark.parametrize("field", STATED)
def test_odd_values_of_the_file_are_read_or_errors_of_featx(tmp_path, field, kind):
    for value in ODD:
        whole = {"image_processor_type": kind, "size": SHORTER, "crop_pct": 0.9, "image_mean": [0.5] * 3}
        with suppress(CheckpointError):
            stated(tmp_path, **{**whole, "image_std": [0.5] * 3, field: value})


@pytest.mark.parametrize("text", ["", "[", "[1]", "null", "[" * 900 + "]" * 900])
def test_a_file_that_is_no_object_is_an_error(tmp_path, text):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"is not JSON|expected a JSON object|deep"):
        data_config(str(tmp_path), None)
