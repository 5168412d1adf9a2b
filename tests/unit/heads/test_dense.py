"""Segmentation heads and their loss."""

import pytest
import torch
import torch.nn.functional as F
from conftest import images, randomize, relative_difference

from featx import ArgumentError, FeatureInfo, InputError, Levels
from featx.heads import (
    AuxiliaryHead,
    DeepLabV3,
    DeepLabV3Config,
    LinearConfig,
    LinearProbe,
    PSPNet,
    PSPNetConfig,
    segmentation_loss,
)

LEVELS = Levels([FeatureInfo(48, 8, "early"), FeatureInfo(64, 16, "late")])
CONFIGS = [DeepLabV3Config(chs=16), PSPNetConfig(chs=24), LinearConfig()]


def maps(batch=2, height=5, width=7):
    return [images(batch, 48, 2 * height, 2 * width), images(batch, 64, height, width, seed=1)]


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda cfg: type(cfg).__name__)
def test_a_head_gives_logits_at_the_size_of_the_last_map(cfg):
    assert cfg.build(LEVELS, 5)(maps()).shape == (2, 5, 5, 7)


def test_the_auxiliary_head_takes_the_map_before_the_last():
    assert AuxiliaryHead(LEVELS, 5)(maps()).shape == (2, 5, 10, 14)


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda cfg: type(cfg).__name__)
def test_every_parameter_of_a_head_learns(cfg):
    head = cfg.build(LEVELS, 5)
    segmentation_loss(head(maps()), torch.randint(0, 5, (2, 5, 7))).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())


def normed(conv, bn, x, padding=0, dilation=1):
    """What a convolution, a norm of its statistics and ReLU give, by the definition."""
    x = F.conv2d(x, conv.weight, padding=padding, dilation=dilation)
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias).relu()


def test_deeplabv3_is_its_formula():
    head, x = randomize(DeepLabV3(LEVELS, 5, DeepLabV3Config(16, (2, 4)))), maps()[1]
    one, two, four, pool = head.aspp.convs
    mean = normed(pool[1], pool[2], x.mean((2, 3), keepdim=True)).expand(-1, -1, 5, 7)
    branches = [normed(one[0], one[1], x), normed(two[0], two[1], x, 2, 2), normed(four[0], four[1], x, 4, 4), mean]
    fused = normed(*head.aspp.project[:2], torch.cat(branches, 1))
    assert relative_difference(head(maps()), head.classifier(fused)) <= 1e-6


def test_pspnet_is_its_formula():
    head, x = randomize(PSPNet(LEVELS, 5, PSPNetConfig(24, (1, 3)))), maps()[1]
    grids = [F.adaptive_avg_pool2d(x, side) for side in (1, 3)]
    pooled = [normed(branch[1].conv, branch[1].bn, grid) for branch, grid in zip(head.branches, grids, strict=True)]
    wide = [F.interpolate(grid, (5, 7), mode="bilinear", align_corners=True) for grid in pooled]
    assert pooled[0].shape[1] == 32  # half the channels, in multiples of 16
    fused = normed(head.fusion.conv, head.fusion.bn, torch.cat((x, *wide), 1), padding=1)
    assert relative_difference(head(maps()), head.classifier(fused)) <= 1e-6


def test_a_linear_probe_sees_each_cell_by_itself():
    head, (early, late) = LinearProbe(LEVELS, 5), maps()
    changed = late.clone()
    changed[:, :, 0, 0] += 1
    differs = (head([early, late]) != head([early, changed])).any(1)
    assert differs[:, 0, 0].all()
    assert differs.sum() == 2


def test_the_auxiliary_head_is_no_narrower_than_that_of_cvnets():
    wide = Levels([FeatureInfo(1024, 8, "early"), FeatureInfo(64, 16, "late")])
    assert AuxiliaryHead(LEVELS, 5).local.conv.weight.shape == (128, 48, 3, 3)
    assert AuxiliaryHead(wide, 5).local.conv.weight.shape == (256, 1024, 3, 3)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_of_dropout_is_checked(rate):
    with pytest.raises(ArgumentError, match="expected a rate from 0 to below 1"):
        DeepLabV3(LEVELS, 5, DeepLabV3Config(dropout=rate))


def test_dropout_drops_whole_maps_in_training_alone():
    torch.manual_seed(0)
    head = DeepLabV3(LEVELS, 5, DeepLabV3Config(16, dropout=0.5))
    seen = []
    head.aspp.register_forward_hook(lambda _, __, output: seen.append(output.flatten(2)))
    with torch.no_grad():
        head.eval()(maps())
        head.train()(maps())
    in_eval, in_training = (output.abs().amax(2) == 0 for output in seen)  # by image and channel
    assert not in_eval.any()
    assert 0.2 < in_training.float().mean() < 0.8


@pytest.mark.parametrize("classes", [0, -3, True, 2.0])
def test_a_number_of_classes_is_checked(classes):
    with pytest.raises(ArgumentError, match="expected an int of at least 1"):
        LinearProbe(LEVELS, classes)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (DeepLabV3Config(chs=0), "expected positive channels"),
        (DeepLabV3Config(atrous_rates=()), "one or more positive rates"),
        (DeepLabV3Config(atrous_rates=(6, 0)), "one or more positive rates"),
        (PSPNetConfig(chs=-1), "expected positive channels"),
        (PSPNetConfig(pool_sizes=()), "one or more positive pool_sizes"),
        (PSPNetConfig(pool_sizes=(1, 2, 3, 4, 6)), "64 channels is too narrow for 5 branches: it needs 80"),
    ],
)
def test_a_head_that_cannot_be_built_is_refused(cfg, message):
    with pytest.raises(ArgumentError, match=message):
        cfg.build(LEVELS, 5)


def test_a_level_that_is_not_there_is_refused():
    with pytest.raises(ArgumentError, match=r"AuxiliaryHead takes map -2 of its source, which gives 1"):
        AuxiliaryHead(LEVELS[1:], 5)


@pytest.mark.parametrize("given", [maps()[:1], maps()[::-1], [*maps(), maps()[1]], [x[0] for x in maps()]])
def test_other_maps_than_those_of_the_levels_are_refused(given):
    with pytest.raises(InputError, match=r"expects maps \(N, chs, h, w\) with chs \[48, 64\], got shapes"):
        LinearProbe(LEVELS, 5)(given)


def labels(classes=4, shape=(2, 6, 8)):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_the_cross_entropy_of_the_pixels_that_count():
    logits, wanted = images(2, 4, 6, 8), labels()
    wanted[0, :3] = 255
    of_pixels = -logits.log_softmax(1).gather(1, wanted.clamp(max=3)[:, None])[:, 0]
    torch.testing.assert_close(segmentation_loss(logits, wanted), of_pixels[wanted != 255].mean())


def test_pixels_to_ignore_have_no_gradient():
    logits, wanted = images(2, 4, 6, 8).requires_grad_(), labels()
    wanted[0, :3] = 255
    segmentation_loss(logits, wanted).backward()
    assert (logits.grad[0, :, :3] == 0).all()
    assert (logits.grad[0, :, 3:] != 0).all()


def test_the_auxiliary_loss_is_added_with_its_weight():
    logits, aux = images(2, 4, 6, 8), images(2, 4, 6, 8, seed=1)
    parts = [segmentation_loss(part, labels()) for part in (logits, aux)]
    torch.testing.assert_close(segmentation_loss(logits, labels(), aux=aux), parts[0] + 0.4 * parts[1])
    torch.testing.assert_close(segmentation_loss(logits, labels(), aux=aux, aux_weight=1.0), parts[0] + parts[1])


def test_an_image_without_any_label_costs_nothing():
    logits = images(2, 4, 6, 8).requires_grad_()
    loss = segmentation_loss(logits, torch.full((2, 6, 8), 255))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_of_any_kind_of_integers(dtype):
    logits = images(2, 4, 6, 8)
    torch.testing.assert_close(segmentation_loss(logits, labels().to(dtype)), segmentation_loss(logits, labels()))


def test_another_label_can_be_ignored():
    wanted = labels()
    wanted[:, 0] = -1
    rest = segmentation_loss(images(2, 4, 6, 8)[:, :, 1:], wanted[:, 1:])
    torch.testing.assert_close(segmentation_loss(images(2, 4, 6, 8), wanted, ignore_index=-1), rest)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (labels(shape=(2, 1, 6, 8)), r"labels have shape \(2, 1, 6, 8\), .* need \(2, 6, 8\): one class per pixel"),
        (labels(shape=(2, 8, 6)), r"need \(2, 6, 8\)"),
        (labels(shape=(1, 6, 8)), r"need \(2, 6, 8\)"),
        (labels().float(), "labels are torch.float32: expected integers"),
        (labels() > 0, "labels are torch.bool: expected integers"),
        (labels() + 1, r"labels \[4\] are not classes: expected 0 to 3, or 255"),
        (labels() - 1, r"labels \[-1\] are not classes"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        segmentation_loss(images(2, 4, 6, 8), wrong)


def test_a_single_class_is_refused():
    with pytest.raises(InputError, match="nothing to learn from the cross entropy of 1 class"):
        segmentation_loss(images(2, 1, 6, 8), labels(1))


def test_auxiliary_logits_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"aux has shape \(2, 4, 3, 4\), the logits have \(2, 4, 6, 8\)"):
        segmentation_loss(images(2, 4, 6, 8), labels(), aux=images(2, 4, 3, 4))
