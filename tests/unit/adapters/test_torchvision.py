"""torchvision's detectors and segmenters on our backbones."""

import pytest
import torch
from conftest import images, random_extractor
from support.adapters import CNNS, assert_close, assert_trains, matrix, pyramid, reloaded, side
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.models.segmentation import FCN, LRASPP, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

import featx
from featx.adapters import torchvision as adapter
from featx.necks import FPN, P6P7, ChannelMapper, MaxPoolLevel, Pipeline


def targets(count=2):
    box = torch.tensor([[4.0, 6.0, 40.0, 52.0]])
    mask = torch.zeros(1, 96, 96, dtype=torch.uint8)
    mask[:, 6:52, 4:40] = 1
    return [{"boxes": box, "labels": torch.tensor([1]), "masks": mask} for _ in range(count)]


# of the heads of torchvision, which are made for larger images
FEWER = {"rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 20, "box_batch_size_per_image": 16}


def detector(kind, name):
    source = pyramid(name, 32)
    more = {"size": (side(name), side(name))} if kind is SSD else {"min_size": side(name), "max_size": side(name)}
    backbone = adapter.ssd_backbone(source) if kind is SSD else adapter.detection_backbone(source)
    more |= FEWER if issubclass(kind, FasterRCNN) else {}
    more |= {"score_thresh": 0.0} if kind in (RetinaNet, FCOS) else {}
    torch.manual_seed(0)
    return kind(backbone, num_classes=2, **more, **adapter.detector_arguments(kind, source))


@pytest.mark.parametrize(("kind", "name"), matrix([SSD, FasterRCNN, MaskRCNN, RetinaNet, FCOS]))
def test_detectors_train_and_keep_their_numbers_through_a_file(kind, name):
    model = detector(kind, name).train()
    photos = [torch.rand(3, 96, 96) for _ in range(2)]
    assert_trains(model, sum(model(photos, targets()).values()))
    model.eval()
    again = reloaded(model, detector(kind, name))
    with torch.no_grad():
        for ours, theirs in zip(again(photos), model(photos), strict=True):
            assert ours.keys() == theirs.keys()
            assert len(theirs["scores"])
            for key in ours:
                assert_close(ours[key], theirs[key])


def test_images_are_normalized_once_with_the_statistics_of_the_weights():
    source = pyramid("mobilenetv3_small_050")
    model = detector(FasterRCNN, "mobilenetv3_small_050").eval()
    photo = torch.rand(3, 96, 96)
    given, _ = model.transform([photo])
    mean, std = (torch.tensor(values)[:, None, None] for values in (source.data_config.mean, source.data_config.std))
    torch.testing.assert_close(given.tensors[0], (photo - mean) / std)


def test_statistics_other_than_imagenets_reach_the_detector():
    source = pyramid("vit_wee_patch16_reg1_gap_256")
    assert source.data_config.mean == (0.5, 0.5, 0.5)
    assert adapter.detector_arguments(RetinaNet, source)["image_mean"] == [0.5, 0.5, 0.5]


def test_anchors_are_those_of_torchvisions_own_builders():
    plain = random_extractor("resnet18", out_indices=[1, 2, 3, 4])
    fpn = FPN(plain.feature_info, 8)
    two_stage = Pipeline(plain, fpn, MaxPoolLevel(fpn.feature_info))
    ours = adapter.detector_arguments(FasterRCNN, two_stage)
    theirs = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    assert ours["rpn_anchor_generator"].sizes == theirs.rpn.anchor_generator.sizes
    assert ours["rpn_anchor_generator"].aspect_ratios == theirs.rpn.anchor_generator.aspect_ratios
    pooler = theirs.roi_heads.box_roi_pool
    assert ours["box_roi_pool"].featmap_names == pooler.featmap_names
    assert (ours["box_roi_pool"].output_size, ours["box_roi_pool"].sampling_ratio) == ((7, 7), pooler.sampling_ratio)


@pytest.mark.parametrize("kind", [RetinaNet, FCOS])
def test_anchors_of_one_stage_detectors_are_torchvisions(kind):
    plain = random_extractor("resnet18", out_indices=[2, 3, 4])
    fpn = FPN(plain.feature_info, 8)
    source = Pipeline(plain, fpn, P6P7(fpn.feature_info, 8))
    build = {RetinaNet: detection.retinanet_resnet50_fpn, FCOS: detection.fcos_resnet50_fpn}[kind]
    theirs = build(weights=None, weights_backbone=None).anchor_generator
    ours = adapter.detector_arguments(kind, source)["anchor_generator"]
    assert ours.sizes == theirs.sizes
    assert ours.aspect_ratios == theirs.aspect_ratios


def test_a_single_map_carries_all_sizes_of_anchors():
    source = random_extractor("resnet18", out_indices=[3])
    arguments = adapter.detector_arguments(FasterRCNN, source)
    assert arguments["rpn_anchor_generator"].sizes == ((32, 64, 128, 256, 512),)
    model = FasterRCNN(adapter.detection_backbone(source), 2, min_size=96, max_size=96, **arguments).train()
    assert_trains(model, sum(model([torch.rand(3, 96, 96)], targets(1)).values()))


def test_maps_are_named_by_numbers():
    backbone = adapter.detection_backbone(pyramid("resnet18"))
    maps = backbone(images(1, 3, 64, 64))
    assert list(maps) == ["0", "1", "2", "3"]
    assert backbone.out_channels == 8
    assert [map_.shape[1] for map_ in maps.values()] == [8] * 4


def test_ssd_is_reported_the_channels_of_each_map():
    assert adapter.ssd_backbone(random_extractor("resnet18", out_indices=[2, 3])).out_channels == [128, 256]


def test_levels_of_different_channels_need_a_neck():
    source = random_extractor("resnet18", out_indices=[1, 2])
    with pytest.raises(featx.ContractError, match=r"\[64, 128\].*FPN or ChannelMapper.*Pipeline"):
        adapter.detection_backbone(source)
    mapped = Pipeline(source, ChannelMapper(source.feature_info, 32))
    assert adapter.detection_backbone(mapped).out_channels == 32


@pytest.mark.parametrize("levels", [[1, 3], [4, 3]])
def test_two_stage_detectors_need_strides_that_double(levels):
    plain = random_extractor("resnet18", out_indices=levels)
    source = Pipeline(plain, ChannelMapper(plain.feature_info, 8, norm=lambda chs: nn.BatchNorm2d(chs)))
    with pytest.raises(featx.ContractError, match="must double"):
        adapter.detector_arguments(FasterRCNN, source)


def test_other_detectors_are_refused():
    with pytest.raises(featx.ArgumentError, match=r"FasterRCNN.*RetinaNet.*FCOS.*SSD"):
        adapter.detector_arguments(nn.Linear, pyramid("resnet18"))


def test_a_source_that_does_not_state_its_normalization_is_refused():
    source = random_extractor("resnet18", in_chans=4)
    with pytest.raises(featx.ArgumentError, match=r"4 channels.*3 means"):
        adapter.detector_arguments(SSD, source)


@pytest.mark.parametrize("wrong", [nn.Conv2d(3, 8, 1), featx.create_model("resnet18")], ids=["module", "classifier"])
def test_what_is_not_a_source_is_refused(wrong):
    with pytest.raises(featx.ArgumentError, match="features_only=True"):
        adapter.detection_backbone(wrong)


def segmenter(kind, name):
    stride = {} if not name.startswith(("resnet", "mobilenet")) else {"output_stride": 8}
    torch.manual_seed(0)
    if kind is LRASPP:
        source = random_extractor(name, out_indices=[2, 4], **stride)
        return LRASPP(adapter.lraspp_backbone(source), *source.feature_info.channels(), num_classes=3)
    source = random_extractor(name, out_indices=[-2, -1], **stride)
    aux, out = source.feature_info.channels()
    head = DeepLabHead(out, 3) if kind is DeepLabV3 else FCNHead(out, 3)
    return kind(adapter.segmentation_backbone(source), head, FCNHead(aux, 3))


@pytest.mark.parametrize(("kind", "name"), matrix([LRASPP, FCN, DeepLabV3]))
def test_segmenters_train_and_keep_their_numbers_through_a_file(kind, name):
    model, x = segmenter(kind, name).train(), images(2, 3, side(name), side(name))
    assert_trains(model, sum(logits.square().mean() for logits in model(x).values()))
    model.eval()
    again = reloaded(model, segmenter(kind, name))
    with torch.no_grad():
        for key, logits in model(x).items():
            assert logits.shape == (2, 3, *x.shape[2:])
            assert_close(again(x)[key], logits)


def test_a_single_level_has_no_auxiliary_map():
    backbone = adapter.segmentation_backbone(random_extractor("resnet18", out_indices=[4]))
    assert list(backbone(images(1, 3, 64, 64))) == ["out"]


def test_segmenters_refuse_more_levels_than_they_read():
    with pytest.raises(featx.ContractError, match="takes 2 maps, the source has 3"):
        adapter.segmentation_backbone(random_extractor("resnet18", out_indices=[2, 3, 4]))


def test_lraspp_takes_the_finer_map_first():
    with pytest.raises(featx.ContractError, match="finer map first"):
        adapter.lraspp_backbone(random_extractor(CNNS[0], out_indices=[4, 2]))


def test_keys_of_the_backbone_are_those_of_the_plain_model():
    backbone = adapter.segmentation_backbone(random_extractor("resnet18", out_indices=[4]))
    plain = featx.create_model("resnet18", num_classes=0)
    assert set(backbone.state_dict()) == {f"body.{key}" for key in plain.state_dict()}
