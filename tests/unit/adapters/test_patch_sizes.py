"""ViTs with 14-pixel patches, and with other patches than 16 pixels, in the models of other packages."""

from functools import cache

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import transformers
from conftest import images, random_extractor, randomize
from support.adapters import assert_close
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet

import featx
from featx.adapters import smp as smp_adapter
from featx.adapters import smp_dpt
from featx.adapters import torchvision as torchvision_adapter
from featx.adapters import transformers as transformers_adapter
from featx.adapters.requirements import STRIDES, simple_pyramid
from featx.necks import (
    FPN,
    DeformableConfig,
    DINOv3Adapter,
    MaxPoolLevel,
    Pipeline,
    Reassemble,
    Resample,
    SimpleFeaturePyramid,
)

Config, Backbone = transformers_adapter.register()
SMALL = {"dim": 32, "depth": 4, "heads": 2}
PATCH_14, PATCH_16 = "vit_small_patch14_dinov2", "vit_tiny_patch16_224"


def plain(name=PATCH_14, **choice):
    return random_extractor(name, **{"out_indices": [-1], **SMALL, **choice})


def pyramid(scales=(2.0, 1.0, 0.5, 0.25)):
    source = plain()
    return Pipeline(source, SimpleFeaturePyramid([source.feature_info[-1]], 32, scale_factors=scales))


# Resample


def test_each_new_cell_is_interpolated_at_its_own_place():
    """Of a map that holds the place of each cell in pixels, the new cells are at their own places."""
    neck = Resample([{"chs": 2, "reduction": 14, "name": "blocks.0"}], 16)
    centers = torch.meshgrid(14 * torch.arange(20.0) + 7, 14 * torch.arange(23.0) + 7, indexing="ij")
    (moved,) = neck([torch.stack(centers)[None]])
    wanted = torch.meshgrid(16 * torch.arange(17.0) + 8, 16 * torch.arange(20.0) + 8, indexing="ij")
    torch.testing.assert_close(moved[0], torch.stack(wanted))
    assert [neck.cells([cells]) for cells in (20, 23)] == [[17], [20]]


def test_a_map_without_a_whole_new_cell_is_refused():
    with pytest.raises(featx.InputError, match="1x3 cells has no whole cell at a reduction of 16"):
        Resample([{"chs": 2, "reduction": 14, "name": "blocks.0"}], 16)([torch.zeros(1, 2, 1, 3)])


@pytest.mark.parametrize("reduction", [0, -4, 2.5])
def test_a_reduction_is_a_number_of_pixels(reduction):
    with pytest.raises(featx.ArgumentError, match="expected pixels per cell"):
        Resample([{"chs": 2, "reduction": 14, "name": "blocks.0"}], reduction)


@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_pyramids_have_strides_of_4_to_32_pixels_whatever_the_patch(patch):
    source = simple_pyramid(plain(PATCH_16, patch=patch, image_size=224), 8, None)
    assert source.feature_info.reduction() == list(STRIDES)
    for h, w in [(224, 224), (192, 256), (96, 160)]:
        assert [map_.shape[2:] for map_ in source(images(1, 3, h, w))] == [(h // s, w // s) for s in STRIDES]


def test_a_pyramid_of_patches_of_16_is_the_neck_alone():
    source, levels = plain(PATCH_16), plain(PATCH_16).feature_info
    torch.manual_seed(0)
    ours = simple_pyramid(source, 8, None)
    torch.manual_seed(0)
    reference = Pipeline(source, SimpleFeaturePyramid(levels, 8))
    assert all(torch.equal(a, b) for a, b in zip(ours(images()), reference(images()), strict=True))


def test_small_images_pass_a_pyramid_whose_deepest_cell_is_larger():
    source = simple_pyramid(plain(PATCH_16), 8, [0, 1, 2])
    assert [map_.shape[-1] for map_ in source(images(1, 3, 16, 16))] == [4, 2, 1]


# segmentation_models_pytorch


@cache
def tokens_of(patch):
    return plain(PATCH_16, patch=patch, out_indices=None, output="tokens", image_size=112)


@pytest.mark.parametrize("readout", ["ignore", "add", "cat"])
@pytest.mark.parametrize("cells", [(8, 8), (5, 8), (11, 7)])
@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_dpt_takes_every_patch_and_odd_numbers_of_cells(patch, cells, readout):
    model = smp_dpt.dpt(tokens_of(patch), 2, readout=readout, intermediate_channels=(8,) * 4, fusion_channels=8).eval()
    size = [patch * count for count in cells]
    assert model(images(1, 3, *size)).shape == (1, 2, *size)


def test_dpt_of_patches_of_16_is_the_packages_own():
    """Its DPT on timm's transformer, whose tokens are ours."""
    chosen = {"decoder_intermediate_channels": (8,) * 4, "decoder_fusion_channels": 8, "classes": 2}
    encoder = {"encoder_weights": None, "encoder_depth": 4, "encoder_output_indices": [0, 1, 2, 3]}
    theirs = randomize(smp.DPT("tu-test_vit", **encoder, **chosen))
    source = featx.FeatureExtractWrapper(theirs.encoder.model, [0, 1, 2, 3], output="tokens")
    ours = smp_dpt.dpt(source, 2, intermediate_channels=(8,) * 4, fusion_channels=8).eval()
    for part in ("decoder", "segmentation_head"):
        getattr(ours, part).load_state_dict(getattr(theirs, part).state_dict())
    x = images(1, 3, 160, 160)
    assert_close(ours(x), theirs(x))


def test_dpt_of_patches_of_14_is_that_of_16_resized_to_the_image():
    """Its decoder sees no patches, so that the same maps give the same logits but for their last resizing."""
    chosen = {"intermediate_channels": (8,) * 4, "fusion_channels": 8}
    ours, reference = (smp_dpt.dpt(tokens_of(patch), 2, **chosen).eval() for patch in (14, 16))
    reference.decoder.load_state_dict(ours.decoder.state_dict())
    maps = [images(1, 32, 8, 6, seed=level) for level in range(4)]
    prefix = [images(1, 1, 32, seed=level) for level in range(4)]
    decoded = ours.decoder(maps, prefix)
    assert torch.equal(decoded, reference.decoder(maps, prefix))
    head = ours.segmentation_head
    resized = F.interpolate(head.head(decoded), (8 * 14, 6 * 14), mode="bilinear", align_corners=True)
    assert_close(head(decoded), resized)


@pytest.mark.parametrize("kind", ["UPerNet", "FPN"])
def test_decoders_take_patches_of_14_at_sizes_of_whole_strides(kind, monkeypatch):
    monkeypatch.setattr(smp.encoders, "encoders", dict(smp.encoders.encoders))
    narrow = {"UPerNet": {"decoder_channels": 16}, "FPN": {"decoder_segmentation_channels": 32}}[kind]
    name = smp_adapter.register(PATCH_14, pyramid_channels=16, **SMALL)
    model = getattr(smp, kind)(name, encoder_weights=None, classes=2, **narrow).eval()
    for size in [(224, 224), (192, 256)]:
        assert model(images(1, 3, *size)).shape == (1, 2, *size)


# torchvision


def test_boxes_are_pooled_at_the_strides_of_the_maps():
    """A map that holds the place of its cells in pixels is pooled to the places of the box's own cells.

    torchvision takes a cell for a point at its upper left corner.
    """
    pooler = torchvision_adapter.detector_arguments(FasterRCNN, pyramid())["box_roi_pool"]
    maps = {}
    for name, stride in zip("012", (7, 14, 28), strict=True):
        places = stride * torch.arange(448.0 // stride)
        maps[name] = torch.stack(torch.meshgrid(places, places, indexing="ij"))[None]
    for side in (40.0, 120.0, 250.0):
        box = torch.tensor([[100.0, 150.0, 100.0 + side, 150.0 + side]])
        (cells,) = pooler(maps, [box], [(448, 448)])
        centers = side * (torch.arange(7) + 0.5) / 7
        rows, columns = cells[0, :, 0], cells[1, 0]
        torch.testing.assert_close(rows, 150 + centers, rtol=0, atol=0.01)
        torch.testing.assert_close(columns, 100 + centers, rtol=0, atol=0.01)


def test_strides_of_powers_of_two_are_pooled_as_torchvision_does():
    from torchvision.ops import MultiScaleRoIAlign

    source = random_extractor("resnet18", out_indices=[1, 2, 3, 4])
    fpn = FPN(source.feature_info, 8)
    levels = Pipeline(source, fpn, MaxPoolLevel(fpn.feature_info))
    ours = torchvision_adapter.detector_arguments(FasterRCNN, levels)["box_roi_pool"]
    maps = {f"{i}": images(1, 8, 256 >> i, 256 >> i, seed=i) for i in range(5)}
    corners = 400 * torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([corners, corners + torch.logspace(1, 2.7, 20)[:, None]], dim=1)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    assert torch.equal(ours(maps, [boxes], [(1024, 1024)]), theirs(maps, [boxes], [(1024, 1024)]))


@pytest.mark.parametrize("kind", [FasterRCNN, MaskRCNN, KeypointRCNN, RetinaNet, FCOS])
def test_detectors_take_patches_of_14_with_anchors_in_place(kind):
    source = pyramid()
    arguments = torchvision_adapter.detector_arguments(kind, source)
    fewer = {"rpn_post_nms_top_n_test": 4} if issubclass(kind, FasterRCNN) else {}
    model = kind(
        torchvision_adapter.detection_backbone(source), num_classes=2, min_size=100, max_size=130, **fewer, **arguments
    ).eval()
    batch, _ = model.transform([torch.rand(3, 100, 130)])
    height, width = batch.tensors.shape[2:]
    cells = [tuple(map_.shape[2:]) for map_ in model.backbone(batch.tensors).values()]
    # torchvision's anchors are as far apart as the image has pixels per cell
    assert [(height // h, width // w) for h, w in cells] == [(7, 7), (14, 14), (28, 28), (56, 56)]
    with torch.no_grad():
        assert model([torch.rand(3, 100, 130)])[0]["boxes"].isfinite().all()


@pytest.mark.parametrize("name", [PATCH_14, "vit_tiny_patch16_dinov3_qkvb"])
@pytest.mark.parametrize("kind", [FasterRCNN, RetinaNet])
def test_detectors_take_vits_with_an_adapter_or_with_dpts_neck(kind, name):
    source = plain(name, out_indices=[0, 1, 2, 3])
    adapted = featx.FeatureExtractWrapper(DINOv3Adapter(source, DeformableConfig(2), prior_chs=4)).eval()
    resampled = Resample(source.feature_info, 16)
    reassemble = Reassemble(resampled.feature_info, (8, 8, 8, 8))
    for levels in (adapted, Pipeline(source, resampled, reassemble)):
        pyramid = Pipeline(levels, FPN(levels.feature_info, 8))
        arguments = torchvision_adapter.detector_arguments(kind, pyramid)
        model = kind(
            torchvision_adapter.detection_backbone(pyramid), num_classes=2, min_size=96, max_size=128, **arguments
        )
        with torch.no_grad():
            assert model.eval()([torch.rand(3, 96, 128)])[0]["boxes"].isfinite().all()


@pytest.mark.parametrize("kind", [FasterRCNN, RetinaNet])
def test_batches_are_padded_so_that_enlarged_maps_have_their_strides(kind):
    source = random_extractor("mobilevitv2_050", out_indices=[2, 3, 4])
    levels = Pipeline(source, FPN(source.feature_info, 8))
    assert torchvision_adapter.detector_arguments(kind, levels)["size_divisible"] == 64
    assert [map_.shape[-1] for map_ in levels(images(1, 3, 64, 64))] == [8, 4, 2]
    assert [map_.shape[-1] for map_ in levels(images(1, 3, 32, 32))] == [4, 2, 2]


# transformers


def depth_anything(backbone):
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    return transformers.DepthAnythingForDepthEstimation(config)


def dpt(backbone):
    config = transformers.DPTConfig(
        backbone_config=backbone, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, use_auxiliary_head=False
    )
    return transformers.DPTForDepthEstimation(config)


@pytest.mark.parametrize("size", [(112, 112), (230, 310), (117, 209)])
@pytest.mark.parametrize("build", [depth_anything, dpt])
def test_depth_is_that_of_the_packages_own_dinov2_at_any_size(build, size):
    own = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=112,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    theirs = randomize(build(own))
    arguments = {**SMALL, "image_size": 112, "norm_maps": True, "antialias": False}
    ours = build(Config(backbone=PATCH_14, arguments=arguments, return_tokens=True)).eval()
    state = theirs.state_dict()
    featx.load_weights(ours.backbone.body, theirs.backbone.state_dict())
    ours.load_state_dict({n: t for n, t in state.items() if not n.startswith("backbone.")}, strict=False)
    x = images(1, 3, *size)
    with torch.no_grad():
        assert_close(ours(x).predicted_depth, theirs(x).predicted_depth)
