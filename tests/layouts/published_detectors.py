"""Files of detectors, and of programs for detection, segmentation and classification."""

import re
from typing import Any

import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from layouts.published_file import (
    RESNET,
    TINY,
    VIT,
    PublishedFile,
    Reference,
    State,
    named,
    ours,
    prefixed,
    seeded,
    without,
    without_counters,
    zeros,
)


def detector() -> tuple[State, Reference]:
    """torchvision's own detector on a ResNet with frozen norms."""

    def make() -> nn.Module:
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
        return torchvision.models.detection.FasterRCNN(backbone, num_classes=2)

    model = seeded(make)
    return model.state_dict(), lambda x: list(model.backbone.body(x).values())


def mask_rcnn() -> tuple[State, Reference]:
    def make() -> nn.Module:
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
        return torchvision.models.detection.MaskRCNN(backbone, num_classes=2)

    model = seeded(make)
    return {"model": model.state_dict(), "epoch": 3}, lambda x: list(model.backbone.body(x).values())


LEVELS = {"out_indices": (1, 2, 3, 4)}
DETECTION = zeros("roi_heads.box_head.fc6.weight", "rpn.head.conv.0.0.weight")

DETECTORS = {
    "BatchNorm without counters": ours(RESNET, without_counters, logits=True),
    "torchvision FasterRCNN": PublishedFile(RESNET, detector, LEVELS),
    "torchvision FasterRCNN, container": PublishedFile(RESNET, detector, LEVELS, {"container": "backbone.body"}),
    "torchvision MaskRCNN in a training file": PublishedFile(RESNET, mask_rcnn, LEVELS),
    "detector around our extractor": ours(
        RESNET,
        lambda state: (
            prefixed("backbone.body.backbone.", without(state, "fc."))
            | zeros("backbone.fpn.inner_blocks.0.0.weight")
            | DETECTION
        ),
    ),
    "DETR": ours(
        RESNET,
        lambda state: {
            "model": prefixed("backbone.0.body.", without_counters(without(state, "fc.")))
            | zeros("transformer.encoder.layers.0.self_attn.in_proj_weight", "class_embed.weight", "query_embed.weight")
        },
    ),
    "DETR, container": ours(
        RESNET,
        lambda state: (
            prefixed("backbone.0.body.", without_counters(without(state, "fc.")))
            | zeros("transformer.encoder.layers.0.norm1.weight")
        ),
        container="backbone.0.body",
    ),
}


def detectron2(state: State) -> State:
    names = named(
        without(state, "fc."),
        (r"^conv1\.", "stem.conv1."),
        (r"^bn1\.", "stem.conv1.norm."),
        (r"\.bn(\d)\.", r".conv\1.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
    )
    return {re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name): t for name, t in names.items()}


def deep_stem(state: State) -> State:
    """MMSegmentation's names of ResNetV1c: the stem counts its activations."""
    return named(without(state, "fc."), (r"^conv1\.", "stem."), (r"^bn1\.", "stem.7."))


def mmpretrain_convnext(state: State) -> State:
    names = named(
        state,
        (r"^head\.norm\.", "norm3."),
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"\.conv_dw\.", ".depthwise_conv."),
        (r"\.mlp\.fc(\d)\.", r".pointwise_conv\1."),
    )
    linear = {n: t.flatten(1) if re.search(r"pointwise_conv\d\.weight$", n) else t for n, t in names.items()}
    return {name if name.startswith("head.") else f"backbone.{name}": tensor for name, tensor in linear.items()}


def mmpretrain_vit(state: State) -> State:
    names = named(
        state,
        (r"^head\.", "head.layers.head."),
        (r"^norm\.", "ln1."),
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^blocks\.(\d+)\.norm(\d)\.", r"layers.\1.ln\2."),
        (r"^blocks\.", "layers."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    )
    return {name if name.startswith("head.") else f"backbone.{name}": tensor for name, tensor in names.items()}


def in_training(state: State) -> dict[str, Any]:
    """A file of OpenMMLab's runner."""
    return {"meta": {"epoch": 3}, "state_dict": state}


PROGRAMS = {
    "detectron2 detector": ours(
        RESNET,
        lambda state: {
            "model": prefixed("backbone.bottom_up.", without_counters(detectron2(state)))
            | zeros("backbone.fpn_lateral2.weight", "proposal_generator.rpn_head.conv.weight", "pixel_mean")
        },
    ),
    "detectron2 ResNet of bottlenecks": ours(
        "resnet26", lambda state: without_counters(detectron2(state)), layout="detectron2"
    ),
    "MMPretrain ConvNeXt": ours("convnext_atto", lambda state: in_training(mmpretrain_convnext(state)), logits=True),
    "MMPretrain ViT": ours(VIT, lambda state: in_training(mmpretrain_vit(state)), logits=True, fields=TINY),
    "MMSegmentation ResNetV1c": ours(
        "resnet50c", lambda state: in_training(prefixed("backbone.", deep_stem(state)) | zeros("decode_head.a.weight"))
    ),
    "MMDetection ResNet": ours(
        RESNET, lambda state: in_training(prefixed("backbone.", without(state, "fc.")) | zeros("neck.a.weight"))
    ),
}
