"""Files of self-supervised training, whose networks stand beside their heads, teachers and queues."""

from typing import Any

import torch

from layouts.published_file import (
    RESNET,
    TINY,
    VIT,
    State,
    named,
    other,
    ours,
    prefixed,
    without,
    zeros,
)

DINO_HEAD = zeros("dino_head.mlp.0.weight", "dino_head.last_layer.weight_v")


def dinov2(state: State) -> State:
    """Names of DINOv2's training, which groups blocks."""
    return prefixed("backbone.", named(state, (r"^blocks\.", "blocks.0.")) | {"mask_token": torch.zeros(1, 384)})


def dinov2_training(state: State) -> dict[str, Any]:
    teacher = dinov2(state) | DINO_HEAD
    return {"model": prefixed("teacher.", teacher) | prefixed("student.", other(teacher)), "iteration": 3}


def dino_training(state: State) -> dict[str, Any]:
    teacher = prefixed("backbone.", without(state, "head.")) | zeros("head.mlp.0.weight", "head.last_layer.weight_v")
    student = prefixed("module.", other(teacher))
    return {"teacher": teacher, "student": student, "epoch": 3, "dino_loss": {"center": torch.zeros(1, 3)}}


def moco(state: State) -> dict[str, Any]:
    encoder = without(state, "fc.") | zeros("fc.0.weight", "fc.2.weight")
    names = prefixed("module.encoder_q.", encoder) | prefixed("module.encoder_k.", other(encoder))
    return {
        "epoch": 3,
        "arch": RESNET,
        "state_dict": names | zeros("module.queue") | {"module.queue_ptr": torch.zeros(1)},
    }


def moco_v3(state: State) -> dict[str, Any]:
    encoder = without(state, "head.") | zeros("head.0.weight")
    names = prefixed("module.base_encoder.", encoder) | prefixed("module.momentum_encoder.", other(encoder))
    return {"epoch": 3, "state_dict": names | zeros("module.predictor.0.weight")}


def swav(state: State) -> State:
    return prefixed("module.", without(state, "fc.") | zeros("projection_head.0.weight", "prototypes.weight"))


def ijepa(state: State) -> dict[str, Any]:
    return {
        "encoder": prefixed("module.", state),
        "predictor": prefixed("module.", zeros("predictor_embed.weight")),
        "target_encoder": prefixed("module.", other(state)),
    }


NO_TOKEN = {**TINY, "class_token": False, "global_pool": "avg", "num_classes": 0}
DINOV2 = {"depth": 2, "image_size": 56}
SELF_SUPERVISED = {
    "DINOv2 training": ours(
        "vit_small_patch14_dinov2", dinov2_training, fields=DINOV2, size=(56, 56), container="teacher"
    ),
    "DINO": ours(VIT, dino_training, fields=TINY, container="teacher"),
    "MoCo v2": ours(RESNET, moco, container="module.encoder_q", suffix=".pth.tar"),
    "MoCo v3": ours(VIT, moco_v3, fields=TINY, container="module.base_encoder", suffix=".pth.tar"),
    "SwAV": ours(RESNET, swav),
    "I-JEPA": ours(VIT, ijepa, fields=NO_TOKEN, container="encoder"),
    "MAE": ours(
        VIT,
        lambda state: {"model": without(state, "head.") | zeros("decoder_embed.weight", "decoder_pred.weight")},
        fields=TINY,
    ),
    "SimCLR": ours(
        RESNET, lambda state: {"state_dict": prefixed("backbone.", without(state, "fc.") | zeros("fc.0.weight"))}
    ),
    "BYOL": ours(
        RESNET, lambda state: prefixed("backbone.", without(state, "fc.")) | zeros("projector.0.weight", "pred.weight")
    ),
    "Barlow Twins": ours(
        RESNET,
        lambda state: {
            "model": prefixed("module.", prefixed("backbone.", without(state, "fc.")) | zeros("projector.0.weight"))
        },
    ),
    "Lightly": ours(
        RESNET,
        lambda state: named(
            without(state, "fc."),
            (r"^conv1\.", "0."),
            (r"^bn1\.", "1."),
            *((f"^layer{k}\\.", f"{k + 3}.") for k in range(1, 5)),
        ),
    ),
}
