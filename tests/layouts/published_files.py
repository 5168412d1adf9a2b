"""Files that people have, as their programs save them: names, containers and prefixes around a network.

Each is built from random weights: of the program itself where it is installed, else of one of our models whose names
are restated.
"""

import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torchvision
import transformers
from conftest import randomize
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import featx

State = dict[str, Tensor]
Reference = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class PublishedFile:
    """A file and what must be made of it.

    model: our model that reads it, an extractor unless `logits`. build: makes what the file stores, and a function from
    images to the maps or logits that it must give. fields: of the model. options: of loading. size: of the images.
    suffix: of the file's name. allowed: classes that the user lets PyTorch unpickle.
    """

    model: str
    build: Callable[[], tuple[Any, Reference]]
    fields: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    logits: bool = False
    size: tuple[int, int] = (64, 64)
    suffix: str = ".pth"
    allowed: tuple[type, ...] = ()


def seeded(make: Callable[[], nn.Module]) -> Any:
    """A module with random weights and norm statistics, equal at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize(make())


def ours(
    model: str,
    saved: Callable[[State], Any],
    *,
    logits: bool = False,
    fields: Mapping[str, Any] | None = None,
    size: tuple[int, int] = (64, 64),
    suffix: str = ".pth",
    allowed: tuple[type, ...] = (),
    **options: Any,
) -> PublishedFile:
    """A file that `saved` makes of the state dict of our own model."""
    fields = {"num_classes": 7, **(fields or {})} if logits else fields or {}

    def build() -> tuple[Any, Reference]:
        whole = seeded(lambda: featx.create_model(model, **fields))
        reference = (lambda x: [whole(x)]) if logits else featx.FeatureExtractWrapper(whole).eval()
        return saved(whole.state_dict()), reference

    return PublishedFile(model, build, fields, options, logits, size, suffix, allowed)


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def named(state: State, *rules: tuple[str, str]) -> State:
    """With the rules, patterns and replacements, applied to all names in order."""
    new = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        new[name] = tensor
    return new


def without(state: State, *beginnings: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(beginnings)}


def without_counters(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def zeros(*names: str) -> State:
    """What else a file holds."""
    return {name: torch.zeros(3, 3) for name in names}


def other(state: State) -> State:
    """The same names with zeros: a network that must not be loaded."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def flattened(state: State) -> State:
    """Names of timm's extractors of ConvNeXt, with underscores."""
    return named(without(state, "head."), (r"^(stem|stages)\.(\d+)\.", r"\1_\2."))


TINY = {"depth": 2, "image_size": 64}
VIT, RESNET = "vit_tiny_patch16_224", "resnet18"
DINO_HEAD = zeros("dino_head.mlp.0.weight", "dino_head.last_layer.weight_v")


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
CLIP = "vit_base_patch16_clip_224"
CLIP_FIELDS = {"dim": 96, "depth": 2, "heads": 3, "image_size": 64, "num_classes": 0}
CLIP_SIZES = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT = zeros("positional_embedding", "token_embedding.weight", "transformer.resblocks.0.ln_1.weight", "text_projection")


def openai(state: State) -> State:
    names = named(
        state,
        (r"^cls_token$", "class_embedding"),
        (r"^pos_embed$", "positional_embedding"),
        (r"^patch_embed\.proj\.", "conv1."),
        (r"^norm_pre\.", "ln_pre."),
        (r"^norm\.", "ln_post."),
        (r"^blocks\.", "transformer.resblocks."),
        (r"\.norm(\d)\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    )
    names["class_embedding"] = names["class_embedding"].flatten()
    names["positional_embedding"] = names["positional_embedding"][0]
    return prefixed("visual.", names | {"proj": torch.zeros(96, 24)}) | TEXT


def hf_maps(model: nn.Module, prefix: int) -> Reference:
    """Maps after each block, of hidden states without the first `prefix` tokens."""

    def maps(x: Tensor) -> list[Tensor]:
        hidden = model(x, output_hidden_states=True).hidden_states[1:]
        return [tokens[:, prefix:].transpose(1, 2).unflatten(2, (4, 4)) for tokens in hidden]

    return maps


def hf_clip() -> tuple[State, Reference]:
    config = transformers.CLIPVisionConfig(**CLIP_SIZES, image_size=64, patch_size=16, projection_dim=24)
    model = seeded(lambda: transformers.CLIPVisionModelWithProjection(config))
    return model.state_dict(), hf_maps(model, 1)


def hf_siglip() -> tuple[State, Reference]:
    config = transformers.SiglipVisionConfig(**CLIP_SIZES, image_size=64, patch_size=16)
    model = seeded(lambda: transformers.SiglipVisionModel(config))
    return model.state_dict(), hf_maps(model, 0)


def hf_vit() -> tuple[State, Reference]:
    config = transformers.ViTConfig(**CLIP_SIZES, image_size=64, patch_size=16)
    model = seeded(lambda: transformers.ViTModel(config, add_pooling_layer=False))
    return model.state_dict(), hf_maps(model, 1)


def hf_registers() -> tuple[State, Reference]:
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=3, image_size=64, patch_size=16
    )
    model = seeded(lambda: transformers.Dinov2WithRegistersModel(config))
    return model.state_dict(), hf_maps(model, 5)


SMALL = {name: CLIP_FIELDS[name] for name in ("dim", "depth", "heads", "image_size")}
IMAGE_TEXT = {
    "OpenCLIP": ours(CLIP, openai, fields=CLIP_FIELDS, layout="clip"),
    "OpenCLIP under DistributedDataParallel": ours(
        CLIP, lambda state: {"state_dict": prefixed("module.", openai(state))}, fields=CLIP_FIELDS, layout="clip"
    ),
    "OpenCLIP with a tower of timm": ours(
        VIT,
        lambda state: {"state_dict": prefixed("module.visual.trunk.", state) | zeros("module.logit_scale")},
        fields=TINY,
        container="module.visual.trunk",
    ),
    "transformers CLIP": PublishedFile(CLIP, hf_clip, CLIP_FIELDS, {"layout": "transformers-clip-quickgelu"}),
    "transformers SigLIP": PublishedFile("vit_base_patch16_224", hf_siglip, SMALL),
    "transformers ViT": PublishedFile("vit_base_patch16_224", hf_vit, SMALL),
    "transformers DINOv2 with registers": PublishedFile(
        "vit_small_patch14_reg4_dinov2", hf_registers, {**SMALL, "patch": 16, "norm_maps": False}
    ),
}


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
WRAPPED = {
    "Lightning": ours(
        RESNET,
        lambda state: {"state_dict": prefixed("model.", state) | zeros("loss_fn.weight"), "epoch": 3},
        logits=True,
        container="model",
    ),
    **{
        prefix: ours(RESNET, lambda state, prefix=prefix: {"state_dict": prefixed(prefix, state)}, logits=True)
        for prefix in (
            *("net.", "trunk.", "_fsdp_wrapped_module.", "module._orig_mod.", "_orig_mod.module."),
            "model.feature_extractor.feature_extractor.",
        )
    },
    "segmentation_models_pytorch": ours(
        "convnext_atto", lambda state: prefixed("encoder.model.", flattened(state)) | zeros("decoder.blocks.0.weight")
    ),
    "segmentation_models_pytorch, encoder": ours(
        "convnext_atto", lambda state: prefixed("encoder.model.", flattened(state))
    ),
    "backbone with flattened names beside a head": ours(
        "convnext_atto", lambda state: prefixed("backbone.", flattened(state)) | zeros("head.fc1.weight")
    ),
    "PyTorch's ImageNet example": ours(
        RESNET,
        lambda state: {
            "epoch": 3,
            "arch": RESNET,
            "state_dict": prefixed("module.", state),
            "best_acc1": torch.tensor(70.0),
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        },
        logits=True,
        suffix=".pth.tar",
    ),
    "training file with a Namespace": ours(
        RESNET, lambda state: {"model": state, "args": Namespace(lr=0.1)}, logits=True, allowed=(Namespace,)
    ),
    "grid of positions that is not square": ours(
        VIT, lambda state: state, fields={"depth": 2, "image_size": (128, 32)}, size=(128, 32), logits=True
    ),
}
ENDS = (
    (r"^conv_stem\.", "_conv_stem."),
    (r"^bn1\.", "_bn0."),
    (r"^conv_head\.", "_conv_head."),
    (r"^bn2\.", "_bn1."),
    (r"^classifier\.", "_fc."),
)
FIRST = ((r"\.bn2\.", "._bn2."), (r"\.bn1\.", "._bn1."), (r"\.conv_pw\.", "._project_conv."))
OTHERS = (
    *((rf"\.bn{k}\.", f"._bn{k - 1}.") for k in (1, 2, 3)),
    (r"\.conv_pw\.", "._expand_conv."),
    (r"\.conv_pwl\.", "._project_conv."),
)


def lukemelas(state: State) -> State:
    blocks = list(dict.fromkeys(name.split(".conv")[0] for name in state if re.match(r"blocks\.\d+\.\d+\.conv", name)))
    new = named(without(state, "blocks."), *ENDS)
    for number, block in enumerate(blocks):
        inside = {name: tensor for name, tensor in state.items() if name.startswith(f"{block}.")}
        new |= named(
            inside,
            (rf"^{re.escape(block)}\.", f"_blocks.{number}."),
            *(OTHERS if number else FIRST),
            (r"\.conv_dw\.", "._depthwise_conv."),
            (r"\.se\.conv_(reduce|expand)\.", r"._se_\1."),
        )
    return new


def tonylins(state: State) -> State:
    """A MobileNetV2 whose layers are numbered in each block, activations included."""
    blocks = list(dict.fromkeys(name.split(".conv")[0] for name in state if re.match(r"blocks\.\d+\.\d+\.conv", name)))
    ends = ((r"^conv_stem\.", "features.0.0."), (r"^bn1\.", "features.0.1."), (r"^conv_head\.", "conv.0."))
    new = named(without(state, "blocks."), *ends, (r"^bn2\.", "conv.1."))
    for number, block in enumerate(blocks):
        order = ("conv_pw", "conv_dw", "conv_pwl") if number else ("conv_dw", "conv_pw")
        inside = {name: tensor for name, tensor in state.items() if name.startswith(f"{block}.")}
        new |= named(
            inside,
            (rf"^{re.escape(block)}\.", f"features.{number + 1}.conv."),
            *((rf"\.{conv}\.", f".{3 * k}.") for k, conv in enumerate(order)),
            *((rf"\.bn{k + 1}\.", f".{3 * k + 1}.") for k in range(3)),
        )
    return new


MOBILE = {
    "lukemelas EfficientNet": ours("tf_efficientnet_b0", lukemelas, logits=True),
    "lukemelas EfficientNet-Lite": ours("tf_efficientnet_lite0", lukemelas, logits=True),
    "tonylins MobileNetV2": ours("mobilenetv2_035", tonylins, logits=True),
}
HALF = {
    f"{dtype} weights": ours(
        RESNET,
        lambda state, dtype=dtype: {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()
        },
        logits=True,
    )
    for dtype in (torch.float64,)
}
FILES: dict[str, PublishedFile] = {
    **DETECTORS,
    **PROGRAMS,
    **IMAGE_TEXT,
    **SELF_SUPERVISED,
    **WRAPPED,
    **MOBILE,
    **HALF,
}
