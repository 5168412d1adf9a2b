"""Models of ours beside transformers' configurations of the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers as hf
from conftest import images, randomize, relative_difference
from torch import Tensor, nn

import featx
from featx.weights.layout import Layout, all_layouts

TOLERANCE = 1e-5  # single precision, summed in another order; relative to the largest value
CLASSES = 7
DIM, DEPTH = 48, 2  # of the vision transformers
VIT = {"dim": DIM, "depth": DEPTH, "heads": 3, "patch": 8, "image_size": 32}
RAW = {**VIT, "norm_maps": False}  # as hidden states are

HF_VIT = {
    "hidden_size": DIM,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 3,
    "patch_size": 8,
    "image_size": 32,
}


def hidden(*taken: int) -> Callable[[Any], list[Tensor]]:
    return lambda output: [output.hidden_states[i] for i in taken]


def patches(grid: tuple[int, int], prefix: int) -> Callable[[Any], list[Tensor]]:
    """The tokens after each layer as maps."""
    return lambda output: [t[:, prefix:].transpose(1, 2).unflatten(2, grid) for t in output.hidden_states[1:]]


@dataclass(frozen=True)
class Case:
    """A model of ours and transformers' configuration of the same.

    size: sides of images that both take, as awkward as both give the same maps of. levels: of ours, which `maps` takes
    from what transformers returns. classifies: it has a classifier that reads what ours does. flip: it expects blue
    first. forward: further arguments of transformers' models.
    """

    ours: str
    arch: dict[str, Any]
    config: Any
    size: tuple[int, int]
    levels: Sequence[int]
    maps: Callable[[Any], list[Tensor]]
    system: str = "transformers"
    classifies: bool = True
    flip: bool = False
    forward: dict[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        family = type(self.model(num_classes=0)).__name__
        (layout,) = (found for found in all_layouts() if (found.system, found.family) == (self.system, family))
        return layout

    @property
    def num_classes(self) -> int:
        return CLASSES if self.classifies else 0

    def model(self, **kwargs: Any) -> nn.Module:
        return featx.create_model(self.ours, **{**self.arch, **kwargs})

    def loaded(self, path: Any, **kwargs: Any) -> nn.Module:
        """With the settings that the layout asks for, in eval mode."""
        return self.model(checkpoint_path=path, **dict(self.layout.settings), **kwargs).eval()

    def backbone(self) -> Any:
        """transformers' model without classifier."""
        vision = isinstance(self.config, hf.BlipVisionConfig)
        return hf.BlipVisionModel(self.config) if vision else hf.AutoModel.from_config(self.config)

    def theirs(self) -> Any:
        """transformers' model of that many classes."""
        self.config.num_labels = CLASSES
        return hf.AutoModelForImageClassification.from_config(self.config) if self.classifies else self.backbone()


def resnet(block: str, chs: int) -> Any:
    return hf.ResNetConfig(hidden_sizes=doubled(chs), depths=[1, 2, 1, 1], layer_type=block)


def doubled(chs: int) -> list[int]:
    return [chs, 2 * chs, 4 * chs, 8 * chs]


def convnext(config: Any, chs: Sequence[int]) -> Any:
    return config(hidden_sizes=list(chs), depths=[1, 2, 1, 1], layer_scale_init_value=0.5)


def efficientnet(width: float, depth: float) -> Any:
    return hf.EfficientNetConfig(
        width_coefficient=width, depth_coefficient=depth, hidden_dim=int(1280 * width + 4) // 8 * 8
    )


def mobilevit(dims: list[int], chs: list[int], expand: float) -> Any:
    return hf.MobileViTConfig(hidden_sizes=dims, neck_hidden_sizes=chs, expand_ratio=expand)


SHORT = {"depths": (1, 2, 1, 1)}
WIDE, NARROW = (96, 104, 112, 120), (40, 48, 56, 64)
XXS = mobilevit([64, 80, 96], [16, 16, 24, 48, 64, 80, 320], 2.0)
STAGES, LAST_FOUR = hidden(1, 2, 3, 4), hidden(-4, -3, -2, -1)
GRID, RESIZED = (3, 5), {"interpolate_pos_encoding": True}
REGISTERS = hf.Dinov2WithRegistersConfig(**HF_VIT, use_swiglu_ffn=True)

CASES = {
    "resnet, basic": Case("resnet18", SHORT, resnet("basic", 64), (65, 99), (1, 2, 3, 4), STAGES),
    "resnet, bottleneck": Case("resnet50", SHORT, resnet("bottleneck", 256), (65, 99), (1, 2, 3, 4), STAGES),
    "convnext": Case(
        "convnext_tiny", {**SHORT, "chs": WIDE}, convnext(hf.ConvNextConfig, WIDE), (70, 101), range(4), LAST_FOUR
    ),
    "convnextv2": Case(
        "convnextv2_tiny", {**SHORT, "chs": WIDE}, convnext(hf.ConvNextV2Config, WIDE), (70, 101), range(4), LAST_FOUR
    ),
    "convnextv2, 1x1 convolutions": Case(
        "convnextv2_atto",
        {**SHORT, "chs": NARROW},
        convnext(hf.ConvNextV2Config, NARROW),
        (70, 101),
        range(4),
        LAST_FOUR,
    ),
    "efficientnet": Case("efficientnet_b0", {}, efficientnet(1.0, 1.0), (64, 96), range(5), hidden(1, 3, 5, 11, 16)),
    "mobilenet_v2": Case(
        "mobilenetv2_035",
        {},
        hf.MobileNetV2Config(depth_multiplier=0.35),
        (65, 99),
        (1, 2, 3, 4),
        hidden(1, 4, 11, 15),
        "transformers-mobilenet_v2",
    ),
    "mobilevit": Case("mobilevit_xxs", {}, XXS, (72, 104), range(5), hidden(0, 1, 2, 3, 4), flip=True),
    "mobilevitv2": Case(
        "mobilevitv2_050", {}, hf.MobileViTV2Config(width_multiplier=0.5), (64, 128), range(5), hidden(0, 1, 2, 3, 4)
    ),
    "vit": Case(
        "vit_tiny_patch16_224",
        VIT,
        hf.ViTConfig(**HF_VIT, intermediate_size=4 * DIM),
        (24, 40),
        range(DEPTH),
        patches(GRID, 1),
        forward=RESIZED,
    ),
    "dinov2": Case(
        "vit_small_patch14_dinov2",
        RAW,
        hf.Dinov2Config(**HF_VIT),
        (24, 40),
        range(DEPTH),
        patches(GRID, 1),
        "transformers-dinov2",
        classifies=False,
    ),
    "dinov2, gated": Case(
        "vit_giant_patch14_dinov2",
        RAW,
        hf.Dinov2Config(**HF_VIT, use_swiglu_ffn=True),
        (24, 40),
        range(DEPTH),
        patches(GRID, 1),
        "transformers-dinov2",
        classifies=False,
    ),
    "dinov2 with registers": Case(
        "vit_giant_patch14_reg4_dinov2",
        RAW,
        REGISTERS,
        (24, 40),
        range(DEPTH),
        patches(GRID, 5),
        "transformers-dinov2_with_registers",
        classifies=False,
    ),
    "dinov3": Case(
        "vit_tiny_patch16_dinov3_qkvb",
        RAW,
        hf.DINOv3ViTConfig(**HF_VIT, intermediate_size=4 * DIM, num_register_tokens=4),
        (24, 40),
        range(DEPTH),
        patches(GRID, 5),
        "transformers-dinov3_vit",
        classifies=False,
    ),
    "dinov3, gated": Case(
        "vit_small_plus_patch16_dinov3",
        RAW,
        hf.DINOv3ViTConfig(
            **HF_VIT, intermediate_size=4 * DIM, num_register_tokens=4, use_gated_mlp=True, hidden_act="silu"
        ),
        (24, 40),
        range(DEPTH),
        patches(GRID, 5),
        "transformers-dinov3_vit",
        classifies=False,
    ),
    "dinov3 convnext": Case(
        "convnext_tiny",
        {**SHORT, "chs": WIDE},
        convnext(hf.DINOv3ConvNextConfig, WIDE),
        (70, 101),
        range(4),
        LAST_FOUR,
        "transformers-dinov3_convnext",
        classifies=False,
    ),
    "blip": Case(
        "vit_base_patch16_224",
        VIT,
        hf.BlipVisionConfig(**HF_VIT, intermediate_size=4 * DIM),
        (24, 40),
        range(DEPTH),
        patches(GRID, 1),
        "transformers-blip",
        classifies=False,
        forward=RESIZED,
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def built(model: Any) -> Any:
    """With random weights, tokens, positions and norm scales, in place, in eval mode.

    Batch norms have the statistics of images, so that what enters the model is not lost on the way.
    """
    randomize(model)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.named_parameters():
        if "token" in name or "position_embedding" in name or "class_embedding" in name:
            nn.init.normal_(tensor, 0, 0.3, generator=generator)
        elif tensor.ndim > 1 and tensor.numel() > max(tensor.shape):
            nn.init.kaiming_normal_(tensor, nonlinearity="linear", generator=generator)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        with torch.no_grad():
            model(images(4, 3, 96, 96, seed=2))
    return model.eval()


def outputs(case: Case, model: Any, x: Tensor) -> Any:
    with torch.no_grad():
        return model(x.flip(1) if case.flip else x, output_hidden_states=True, **case.forward)


def saved(model: Any, folder: Any) -> Any:
    """The file that transformers writes."""
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Of a batch of images, on which what is compared depends."""
    assert all(relative_difference(b[:1], b[1:]) > 0.01 for b in theirs if len(b) > 1)
    assert max(relative_difference(a, b) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE


def vit(kind: Any, size: tuple[int, int, int], patch: int, side: int, **kwargs: Any) -> Any:
    dim, depth, heads = size
    shape = {"hidden_size": dim, "num_hidden_layers": depth, "num_attention_heads": heads}
    return kind(**shape, patch_size=patch, image_size=side, **kwargs)
