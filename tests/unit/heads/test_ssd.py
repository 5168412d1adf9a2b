"""SSD: anchors, coding, loss and layers against their definitions and CVNets' facts, and its checkpoints."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import images, randomize, relative_difference, same_state
from safetensors.torch import save_file
from support.mindspore_names import both, conv_norm

import featx
from featx import ArgumentError, CheckpointError, FeatureInfo, InputError, Levels, OutIndicesError
from featx.heads import SSDConfig, SSDHead
from featx.heads.ssd import SSD
from featx.weights.layout import all_layouts, recognize_layout

SMALL = SSDConfig(size=(96, 128))
SCALES = [0.1 + 0.95 * k / 6 for k in range(7)]


def detector(backbone="mobilevitv2_050", head=SMALL, num_classes=4, **arguments):
    return featx.create_detector(head, backbone, num_classes=num_classes, **arguments)


def target(boxes=((10.0, 20.0, 50.0, 70.0),), labels=(1,)):
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def anchors_of(model, height, width):
    batch, _ = model.transform([torch.zeros(3, height, width)])
    every = model.head.every_map(model.backbone(batch.tensors))
    return model.anchor_generator(batch, every)[0], [tuple(map_.shape[2:]) for map_ in every]


@pytest.fixture(scope="module")
def published():
    """The model that CVNets published for COCO, without its weights."""
    return randomize(featx.create_detector("ssd", "mobilevitv2_100", num_classes=81))


def test_the_published_model_has_as_many_parameters(published):
    assert round(sum(p.numel() for p in published.parameters()) / 1e6, 3) == 5.609


@torch.no_grad()
def test_anchors_are_those_of_cvnets(published):
    anchors, cells = anchors_of(published, 320, 320)
    assert cells == [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    expected = []
    for (rows, columns), small, large, ratios in zip(cells, SCALES, SCALES[1:], [(2, 3)] * 5 + [(2,)], strict=False):
        sides = [(small, small), (math.sqrt(small * large),) * 2]
        for ratio in ratios:
            sides += [(small * ratio**0.5, small / ratio**0.5), (small / ratio**0.5, small * ratio**0.5)]
        for row in range(rows):
            for column in range(columns):
                x, y = (column + 0.5) / columns, (row + 0.5) / rows
                clipped = [(min(w, 1), min(h, 1)) for w, h in sides]
                expected += [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for w, h in clipped]
    assert len(expected) == 3232
    torch.testing.assert_close(anchors, 320 * torch.tensor(expected), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_boxes_are_coded_with_the_variances_of_the_paper(published):
    anchors, _ = anchors_of(published, 320, 320)
    boxes = torch.rand(len(anchors), 4, generator=torch.Generator().manual_seed(0)) * 100
    boxes[:, 2:] += boxes[:, :2] + 5
    codes = published.box_coder.encode_single(boxes, anchors)
    center, side = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    middle, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    by_hand = torch.cat(((middle - center) / side / 0.1, (extent / side).log() / 0.2), 1)
    torch.testing.assert_close(codes, by_hand, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(published.box_coder.decode_single(codes, anchors), boxes, rtol=1e-4, atol=1e-2)


def test_an_anchor_learns_what_it_overlaps_by_half_or_best():
    model = detector()
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 21], [0, 0, 10, 19], [50, 50, 60, 60]])
    assert model._match(torch.tensor([[0.0, 0, 10, 10]]), anchors).tolist() == [0, -1, 0, -1]
    assert model._match(torch.tensor([[0.0, 0, 10, 10], [58, 58, 70, 70]]), anchors).tolist() == [0, -1, 0, 1]
    assert model._match(torch.zeros(0, 4), anchors).tolist() == [-1] * 4


def test_predictions_come_map_by_map_and_cell_by_cell():
    head = randomize(SSDHead(Levels([FeatureInfo(24, 16, "a"), FeatureInfo(32, 32, "b")]), 4))
    maps = [images(2, 24, 6, 8), images(2, 32, 3, 4)]
    out = head(maps)
    cells = [6 * 8, 3 * 4, 2 * 2, 1, 1, 1]
    counts = [6, 6, 6, 6, 6, 4]
    total = sum(count * cell for count, cell in zip(counts, cells, strict=True))
    assert out["bbox_regression"].shape == (2, total, 4)
    assert out["cls_logits"].shape == (2, total, 4)
    fine = head.predictions[0](head.projections[0](maps[0]))  # (2, 6 * (4 + 4), 6, 8)
    row, column, anchor = 4, 5, 3
    values = fine[0, anchor * 8 : anchor * 8 + 8, row, column]
    position = (row * 8 + column) * 6 + anchor
    assert torch.equal(out["bbox_regression"][0, position], values[:4])
    assert torch.equal(out["cls_logits"][0, position], values[4:])


def test_a_map_that_is_as_wide_as_asked_is_not_projected():
    levels = Levels([FeatureInfo(512, 16, "a"), FeatureInfo(512, 32, "b")])
    kinds = [type(layer).__name__ for layer in SSDHead(levels, 4).projections]
    assert kinds == ["Identity", "ConvNorm", "Identity", "Identity", "Identity", "Identity"]


@pytest.mark.parametrize("backbone", ["resnet18", "mobilevit_xxs", "mobilevitv2_050"])
def test_detections_are_what_torchvision_gives(backbone):
    model = randomize(detector(backbone))
    with torch.no_grad():
        found = model([torch.rand(3, 60, 200), torch.rand(3, 96, 128)])
    assert len(found) == 2
    for boxes, scores, labels in ((one["boxes"], one["scores"], one["labels"]) for one in found):
        assert boxes.shape == (len(scores), 4)
        assert 0 < len(scores) <= 200
        assert (scores.diff() <= 0).all()
        assert labels.dtype == torch.int64
        assert labels.min() >= 1
        assert labels.max() <= 3
    limits = torch.tensor([200.0, 60.0, 200.0, 60.0])  # pixels of the image as it came, not as it was resized
    assert (found[0]["boxes"] >= 0).all()
    assert (found[0]["boxes"] <= limits + 1e-3).all()


def test_overlapping_boxes_of_one_class_are_suppressed():
    from torchvision.ops import box_iou

    def overlaps(nms_thresh):
        """The largest within each class."""
        torch.manual_seed(0)
        model = randomize(detector(head=replace(SMALL, nms_thresh=nms_thresh)))
        with torch.no_grad():
            (found,) = model(images(1, 3, 96, 128))
        boxes = [found["boxes"][found["labels"] == label] for label in (1, 2, 3)]
        return [box_iou(each, each).fill_diagonal_(0).max().item() for each in boxes if len(each) > 1]

    assert max(overlaps(1.0)) > 0.5
    assert 0 < max(overlaps(0.5)) <= 0.5


def test_images_are_normalized_by_the_backbones_mean_and_std():
    model = detector("resnet18")
    batch, _ = model.transform([torch.full((3, 96, 128), 0.5)])
    data = model.backbone.data_config
    expected = (0.5 - torch.tensor(data.mean)) / torch.tensor(data.std)
    torch.testing.assert_close(batch.tensors[0, :, 0, 0], expected)
    assert batch.tensors.shape == (1, 3, 96, 128)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilevit_xxs", "mobilevitv2_050"])
def test_a_step_of_training_reaches_every_parameter(backbone):
    model = randomize(detector(backbone)).train()  # residual branches start with a scale of zero
    losses = model(torch.rand(2, 3, 96, 128), [target(), target([[0.0, 0, 90, 90], [100.0, 5, 120, 40]], [2, 3])])
    assert losses.keys() == {"bbox_regression", "classification"}
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_a_detector_learns_a_toy():
    torch.manual_seed(0)
    image = torch.zeros(2, 3, 96, 128)
    image[:, :, 20:70, 10:50] = 1
    model, targets = detector("resnet18"), [target()] * 2
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = sum(model(image, targets).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[-2:]) < 0.8 * losses[0]


def test_an_image_without_objects_teaches_nothing():
    model = detector("resnet18").eval()
    losses = model(torch.rand(1, 3, 96, 128), [target((), ())])
    assert losses["bbox_regression"] == losses["classification"] == 0


def test_losses_can_be_had_in_eval_mode_too():
    model = randomize(detector("resnet18"))
    with torch.no_grad():
        assert model(torch.rand(1, 3, 96, 128), [target()]).keys() == {"bbox_regression", "classification"}


def cvnets_names():
    """Of the heads of CVNets' SSD on MobileViTv2 of width 1."""
    names = {"extra_layers.os_-1.1.block.conv.weight"}
    for stride in (64, 128, 256):
        names |= conv_norm(f"extra_layers.os_{stride}.dw_conv") | conv_norm(f"extra_layers.os_{stride}.pw_conv")
    for number in range(5):
        names |= conv_norm(f"ssd_heads.{number}.loc_cls_layer.dw_conv")
        names |= both(f"ssd_heads.{number}.loc_cls_layer.pw_conv.block.conv")
    names |= conv_norm("ssd_heads.0.proj_layer") | conv_norm("ssd_heads.1.proj_layer")
    return names | both("ssd_heads.5.loc_cls_layer.block.conv")


def cvnets_layout(number):
    return [layout for layout in all_layouts() if layout.family == "SSD"][number]


def test_the_names_of_cvnets_lead_there_and_back(published):
    native = published.state_dict()
    foreign = cvnets_layout(1).from_native(native)
    assert {name for name in foreign if not name.startswith("encoder.")} == cvnets_names()
    assert recognize_layout(foreign, ["SSD"]) is cvnets_layout(1)
    back = cvnets_layout(1).to_native(foreign, native.keys())
    assert same_state(back, native)


@pytest.mark.parametrize(("number", "backbone"), [(0, "mobilevit_xxs"), (1, "mobilevitv2_050")])
def test_a_checkpoint_of_cvnets_fills_a_detector(number, backbone, tmp_path):
    model = randomize(detector(backbone))
    foreign = cvnets_layout(number).from_native(model.state_dict())
    torch.save({**foreign, "encoder.neural_augmentor.noise._low": torch.zeros(1)}, tmp_path / "w.pt")
    again = detector(backbone, checkpoint_path=tmp_path / "w.pt").eval()
    assert again.load_report.layout == "cvnets"
    x = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        assert torch.equal(again(x)[0]["scores"], model(x)[0]["scores"])


def test_layers_that_cvnets_lacks_have_no_way_back(published):
    with pytest.raises(CheckpointError, match=r"cvnets has no place for 1 of these tensors: 'head\.strange'"):
        cvnets_layout(1).from_native({**published.state_dict(), "head.strange": torch.zeros(1)})


def test_a_saved_detector_loads_again(tmp_path):
    model = randomize(detector("resnet18"))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    again = detector("resnet18", checkpoint_path=tmp_path / "w.safetensors").eval()
    x = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        assert relative_difference(again(x)[0]["scores"], model(x)[0]["scores"]) <= 1e-5


def test_another_number_of_classes_leaves_the_predictions_fresh():
    report = detector("resnet18", num_classes=9, checkpoint_path=detector("resnet18").state_dict()).load_report
    assert report.fresh
    assert all(name.startswith("head.predictions.") for name in report.fresh)


@pytest.mark.parametrize("backbone", ["timm/resnet18", "torchvision/mobilenet_v3_small"])
def test_backbones_of_other_packages_serve_as_well(backbone):
    pytest.importorskip("timm")
    model = detector(backbone).train()
    sum(model(torch.rand(2, 3, 96, 128), [target()] * 2).values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_whole_loads_in_place_too():
    state = randomize(detector("resnet18")).state_dict()
    model = detector("resnet18")
    assert featx.load_weights(model, state).layout == "native"
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (SSDConfig(strides=(16, 32)), "expected one of each per map"),
        (SSDConfig(strides=(64, -1), chs=(8, 8), aspect_ratios=((2,), (2,))), "a stride of the backbone first"),
        (SSDConfig(strides=(32, 16, 64, 128, 256, -1)), "expected them to ascend"),
        (SSDConfig(strides=(16, 32, 128, 256, 512, -1)), "to double after 32"),
        (SSDConfig(strides=(16, 32, 64, -1, 256, 512)), "the last may be -1"),
        (SSDConfig(mean=(0.5,)), "give SSDConfig one of each per channel"),
    ],
)
def test_a_head_that_cannot_be_built_is_refused(cfg, message):
    with pytest.raises(ArgumentError, match=message):
        detector("resnet18", cfg)


def test_strides_that_the_backbone_lacks_are_named():
    with pytest.raises(OutIndicesError, match="starts from a map of stride 32, which this backbone lacks"):
        detector("resnet18", output_stride=16)
    with pytest.raises(OutIndicesError, match="stride 32"):
        detector("vit_tiny_patch16_224")


def test_other_levels_than_those_of_the_strides_are_refused():
    extractor = featx.create_model("resnet18", features_only=True, out_indices=[2, 3])
    with pytest.raises(ArgumentError, match=r"starts from maps of strides \(16, 32\), but the source gives"):
        SSD(extractor, 4)


def test_a_source_without_preprocessing_needs_mean_and_std():
    extractor = featx.create_model("resnet18", features_only=True, out_indices=[3, 4], in_chans=4)
    with pytest.raises(ArgumentError, match="images of 4 channels are to be normalized by mean="):
        SSD(extractor, 4)
    cfg = SSDConfig(size=(96, 128), mean=(0.5,) * 4, std=(0.5,) * 4)
    assert SSD(extractor, 4, cfg).eval()(torch.rand(1, 4, 96, 128))[0]["boxes"].shape[1] == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "0 targets for 1 images"),
        ([{"boxes": torch.zeros(0, 4)}], r"target 0 lacks \['labels'\]"),
        ([target([[1.0, 2, 3, 4]], [1]) | {"boxes": torch.zeros(1, 5)}], r"boxes of shape \(1, 5\)"),
        ([target() | {"boxes": torch.zeros(1, 4, dtype=torch.int64)}], "type torch.int64; expected floating"),
        ([target() | {"labels": torch.ones(2, dtype=torch.int64)}], r"labels of shape \(2,\)"),
        ([target() | {"labels": torch.ones(1)}], r"expected int64 \(1,\)"),
        ([target([[5.0, 5, 5, 9]])], r"boxes without an area, \[\[5.0, 5.0, 5.0, 9.0\]\]; expected x1 < x2"),
        ([target([[5.0, 5, float("nan"), 9]])], "boxes without an area"),
        ([target(labels=[0])], r"labels \[0\]; expected 1 to 3, as 0 is nothing"),
        ([target(labels=[4])], r"labels \[4\]; expected 1 to 3"),
    ],
)
def test_targets_that_cannot_be_learnt_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        detector("resnet18")(torch.rand(1, 3, 96, 128), wrong)


def test_training_needs_targets():
    with pytest.raises(InputError, match="training needs targets"):
        detector("resnet18").train()(torch.rand(1, 3, 96, 128))


def test_images_of_other_channels_are_refused():
    with pytest.raises(InputError, match="expected 3 channels on axis 1"):
        detector("resnet18").eval()([torch.rand(1, 96, 128)])


@pytest.mark.parametrize("classes", [1, 0, True])
def test_a_number_of_classes_is_checked(classes):
    with pytest.raises(ArgumentError, match="expected an int of at least 2"):
        detector(num_classes=classes)


def test_an_unknown_head_is_named():
    with pytest.raises(ArgumentError, match=r"there is no head 'yolo': choose one of \['ssd'\]"):
        detector(head="yolo")
