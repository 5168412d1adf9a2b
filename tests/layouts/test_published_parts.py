"""Checkpoints of larger objects: detectors, segmenters, training programs and wrappers around a backbone.

Names are those of the real program where it is installed, and restated elsewhere. Weights and norm statistics are
random; the maps of the loaded extractor equal those of the model in the checkpoint.
"""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import images, randomize, relative_difference
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import detection, segmentation

import featx
from featx.adapters.torchvision import detection_backbone, detector_arguments
from featx.necks import FPN, Pipeline

NAME = "resnet18"
State = dict[str, Tensor]


def state_of(name: str = NAME, seed: int = 0) -> State:
    torch.manual_seed(seed)
    return randomize(featx.create_model(name)).state_dict()


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def without(state: State, *endings: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith(endings)}


def fsdp(state: State) -> State:
    """FSDP wraps the model and each of its stages."""
    stages = {f"layer{i}.": f"layer{i}._fsdp_wrapped_module." for i in range(1, 5)}
    names = {
        name: next((name.replace(a, b, 1) for a, b in stages.items() if name.startswith(a)), name) for name in state
    }
    return {f"_fsdp_wrapped_module.{names[name]}": tensor for name, tensor in state.items()}


def flattened(state: State) -> State:
    return {name.replace("stages.", "stages_", 1).replace("stem.", "stem_", 1): t for name, t in state.items()}


HEAD = {"head.0.weight": torch.zeros(2, 2), "loss.weight": torch.ones(3)}
COUNTER = "num_batches_tracked"
# by program: its checkpoint of a ResNet-18 with these tensors, and the arguments that it needs
RESNETS: dict[str, tuple[Callable[[State], Any], dict[str, Any]]] = {
    "before PyTorch 0.4.1": (lambda s: without(s, COUNTER), {}),
    "DETR": (lambda s: {"model": {**prefixed("backbone.0.body.", without(s, COUNTER)), **HEAD}}, {}),
    "MoCo v2": (
        lambda s: {
            "epoch": 200,
            "arch": NAME,
            "state_dict": {
                **prefixed("module.encoder_q.", s),
                **prefixed("module.encoder_k.", state_of(seed=1)),
                "module.queue": torch.zeros(4, 8),
                "module.queue_ptr": torch.zeros(1),
            },
        },
        {"container": "module.encoder_q"},
    ),
    "MoCo v2, the query encoder alone": (lambda s: {"state_dict": prefixed("module.encoder_q.", s)}, {}),
    "MoCo v3": (
        lambda s: {
            "state_dict": {
                **prefixed("module.base_encoder.", s),
                **prefixed("module.momentum_encoder.", state_of(seed=1)),
                "module.predictor.0.weight": torch.zeros(2, 2),
            }
        },
        {"container": "module.base_encoder"},
    ),
    "SwAV": (
        lambda s: prefixed(
            "module.",
            {
                **without(s, "fc.weight", "fc.bias"),
                "projection_head.0.weight": torch.zeros(3, 3),
                "projection_head.1.running_mean": torch.zeros(3),
                "prototypes.weight": torch.zeros(3, 3),
            },
        ),
        {},
    ),
    "DINO": (
        lambda s: {
            "student": {**prefixed("module.backbone.", state_of(seed=1)), **prefixed("module.", HEAD)},
            "teacher": {**prefixed("backbone.", s), **HEAD},
            "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]},
            "epoch": 3,
        },
        {"container": "teacher"},
    ),
    "DINOv2 training": (
        lambda s: {
            "model": {
                **prefixed("teacher.backbone.", s),
                **prefixed("student.backbone.", state_of(seed=1)),
                **prefixed("teacher.dino_head.", HEAD),
            },
            "iteration": 7,
        },
        {"container": "teacher.backbone"},
    ),
    "Lightning": (lambda s: {"state_dict": {**prefixed("model.", s), "loss_fn.weight": torch.ones(3)}, "epoch": 1}, {}),
    "net": (lambda s: prefixed("net.", s), {}),
    "trunk": (lambda s: prefixed("trunk.", s), {}),
    "FSDP": (fsdp, {}),
    "anomalib": (lambda s: prefixed("model.feature_extractor.feature_extractor.", s), {}),
    "AveragedModel": (lambda s: AveragedModel(loaded(s)).state_dict(), {}),
    "torch.compile": (lambda s: torch.compile(loaded(s)).state_dict(), {}),
    "DataParallel": (lambda s: nn.DataParallel(loaded(s)).state_dict(), {}),
    "PyTorch's ImageNet example": (lambda s: {"epoch": 90, "arch": NAME, "state_dict": prefixed("module.", s)}, {}),
    "timm's CheckpointSaver": (
        lambda s: {"epoch": 3, "state_dict": s, "args": Namespace(model=NAME), "version": 2},
        {},
    ),
    "entries beside tensors": (lambda s: {**s, "epoch": 3, "best": 0.9}, {}),
    "counters of shape (1,)": (lambda s: {n: t[None] if n.endswith(COUNTER) else t for n, t in s.items()}, {}),
    "counters in floating point": (lambda s: {n: t.float() if n.endswith(COUNTER) else t for n, t in s.items()}, {}),
}


def loaded(state: State) -> nn.Module:
    model = featx.create_model(NAME)
    model.load_state_dict(state)
    return model


@torch.no_grad()
def assert_maps(name: str, state: State, checkpoint: Any, **arguments: Any) -> featx.LoadReport:
    """The extractor with the weights of the checkpoint has the maps of the model with the state."""
    fields = {key: value for key, value in arguments.items() if key != "container"}
    reference = featx.create_model(name, features_only=True, checkpoint_path=state, **fields).eval()
    extractor = featx.create_model(name, features_only=True, checkpoint_path=checkpoint, **arguments).eval()
    for ours, theirs in zip(extractor(images()), reference(images()), strict=True):
        assert relative_difference(ours, theirs) <= 1e-5
    return extractor.load_report


@pytest.mark.parametrize("program", RESNETS)
def test_checkpoints_of_training_programs_load(program, tmp_path):
    build, arguments = RESNETS[program]
    state = state_of()
    checkpoint = build(state)
    report = assert_maps(NAME, state, checkpoint, **arguments)
    assert report.loaded
    if arguments:
        with pytest.raises(featx.CheckpointError, match=arguments["container"].partition(".")[0]):
            featx.create_model(NAME, features_only=True, checkpoint_path=checkpoint)


@pytest.mark.parametrize(
    "build", [detection.fasterrcnn_resnet50_fpn, detection.retinanet_resnet50_fpn, segmentation.fcn_resnet50]
)
def test_backbones_of_torchvisions_networks_load(build):
    """Detectors have frozen batch norms, without counters; the FCN dilates its backbone, which has the same tensors."""
    network = build(weights=None, weights_backbone=None)
    randomize(network)
    state = network.state_dict()
    prefix = "backbone.body." if "backbone.body.conv1.weight" in state else "backbone."
    backbone = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    report = assert_maps("resnet50", backbone, state)
    assert f"names are without their prefix {prefix}" in report.notes
    assert report.skipped
    assert all(not name.startswith(prefix) for name in report.skipped)


def test_the_detector_of_the_readme_gives_its_backbone_back():
    extractor = featx.create_model(NAME, features_only=True, out_indices=[2, 3, 4])
    source = Pipeline(extractor, FPN(extractor.feature_info, 32))
    arguments = detector_arguments(detection.RetinaNet, source)
    detector = randomize(detection.RetinaNet(detection_backbone(source), num_classes=3, **arguments))
    state = detector.state_dict()
    prefix = "backbone.body.backbone."
    backbone = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    assert backbone
    assert_maps(NAME, backbone, state, out_indices=[2, 3, 4])


@pytest.mark.parametrize(("encoder", "name"), [("resnet18", "resnet18"), ("tu-convnext_atto", "convnext_atto")])
def test_encoders_of_segmentation_models_pytorch_load(encoder, name):
    """Those of timm have a prefix more, and flattened names."""
    network = randomize(smp.Unet(encoder, encoder_weights=None))
    prefix = "encoder." if encoder == name else "encoder.model."
    state = network.state_dict()
    inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    report = assert_maps(name, inside, state)
    assert f"names are without their prefix {prefix}" in report.notes


def test_flattened_names_beside_a_head_load():
    state = without(state_of("convnext_atto"), "head.fc.weight", "head.fc.bias", "head.norm.weight", "head.norm.bias")
    assert_maps("convnext_atto", state, {**prefixed("backbone.", flattened(state)), **HEAD})


def test_dinov2_tokens_of_a_teacher_load():
    """The class token, positions and layer scale are not in blocks; the other encoder has all names, too."""
    name = "vit_small_patch14_dinov2"
    state = without(state_of(name), "head.weight", "head.bias")
    checkpoint = {"teacher": prefixed("backbone.", state), "student": prefixed("backbone.", state_of(name, seed=1))}
    assert_maps(name, state, checkpoint, container="teacher", image_size=56)
