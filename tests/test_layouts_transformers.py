"""Checkpoints of transformers: its own models, built from configurations and run beside ours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers as hf
from conftest import images, randomise, relative_difference
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import featx
from featx import CheckpointError
from featx.weights.layout import Layout, all_layouts, recognise

TOLERANCE = 1e-5  # single precision, summed in another order; relative to the largest value
CLASSES = 7
DIM, DEPTH = 48, 2  # of the vision transformers
VIT = {"dim": DIM, "depth": DEPTH, "heads": 3, "patch": 8, "image_size": 32}
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
        VIT,
        hf.Dinov2Config(**HF_VIT),
        (24, 40),
        range(DEPTH),
        patches(GRID, 1),
        "transformers-dinov2",
        classifies=False,
    ),
    "dinov2, gated": Case(
        "vit_giant_patch14_dinov2",
        VIT,
        hf.Dinov2Config(**HF_VIT, use_swiglu_ffn=True),
        (24, 40),
        range(DEPTH),
        patches(GRID, 1),
        "transformers-dinov2",
        classifies=False,
    ),
    "dinov2 with registers": Case(
        "vit_giant_patch14_reg4_dinov2",
        VIT,
        REGISTERS,
        (24, 40),
        range(DEPTH),
        patches(GRID, 5),
        "transformers-dinov2_with_registers",
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
CLASSIFIERS = [name for name, case in CASES.items() if case.classifies]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def built(model: Any) -> Any:
    """With random weights, tokens, positions and norm scales, in place, in eval mode.

    Batch norms have the statistics of images, so that what enters the model is not lost on the way.
    """
    randomise(model)
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


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_maps_are_those_of_transformers(case, tmp_path):
    theirs, x = built(case.backbone()), images(2, 3, *case.size)
    ours = case.loaded(saved(theirs, tmp_path), features_only=True, out_indices=case.levels, num_classes=0)
    with torch.no_grad():
        close(ours(x), case.maps(outputs(case, theirs, x)))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_are_those_of_a_model_fine_tuned_in_transformers(name, tmp_path):
    case = CASES[name]
    theirs, x = built(case.theirs()), images(2, 3, *case.size)
    ours = case.loaded(saved(theirs, tmp_path), num_classes=CLASSES)
    with torch.no_grad():
        close([ours(x)], [outputs(case, theirs, x).logits])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifiers_file_fills_an_extractor(name, tmp_path):
    case = CASES[name]
    path = saved(built(case.theirs()), tmp_path)
    deepest = case.loaded(path, features_only=True, out_indices=[-1], num_classes=CLASSES)
    full = case.loaded(path, num_classes=CLASSES)
    assert all(torch.equal(full.state_dict()[name], tensor) for name, tensor in deepest.state_dict().items())


def test_the_names_of_a_model_in_memory_are_read_like_those_of_its_file(case, tmp_path):
    theirs = built(case.theirs())
    path = tmp_path / "memory.pt"
    torch.save(theirs.state_dict(), path)
    from_memory = case.loaded(path, num_classes=case.num_classes)
    from_file = case.loaded(saved(theirs, tmp_path), num_classes=case.num_classes)
    assert equal(from_memory.state_dict(), from_file.state_dict())


NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def test_every_norm_adds_to_the_variance_what_transformers_adds(case):
    theirs, ours = case.theirs(), case.model(num_classes=case.num_classes, **dict(case.layout.settings))
    added = [sorted(norm.eps for norm in model.modules() if isinstance(norm, NORMS)) for model in (ours, theirs)]
    assert added[0] == added[1]


def native(case: Case) -> dict[str, Tensor]:
    return randomise(case.model(num_classes=case.num_classes)).state_dict()


def test_there_and_back_nothing_changes(case):
    state = native(case)
    before = {name: tensor.clone() for name, tensor in state.items()}
    theirs = case.layout.from_native(state)
    given = {name: tensor.clone() for name, tensor in theirs.items()}
    kept = {name: tensor for name, tensor in theirs.items() if not name.endswith("mask_token")}
    assert equal(case.layout.to_native(kept, state.keys()), before)
    assert equal(state, before)
    assert equal(theirs, given)


def test_transformers_loads_what_is_written_for_it_and_writes_the_same(case, tmp_path):
    state = native(case)
    written = case.layout.from_native(state)
    case.config.num_labels = case.num_classes
    case.config.save_pretrained(tmp_path)
    save_file({name: tensor.contiguous() for name, tensor in written.items()}, tmp_path / "model.safetensors")
    theirs, info = type(case.theirs()).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert equal(load_file(saved(theirs, tmp_path / "again")), written)


def test_a_model_without_classifier_is_written_as_the_backbone_alone(case):
    state = randomise(case.model(num_classes=0)).state_dict()
    with torch.device("meta"):
        theirs = case.backbone()
    in_file = {name for name in theirs.state_dict() if not name.startswith("pooler.")}
    if case.ours.startswith("vit_"):  # whose layers have other names in files
        in_file = {name for name in in_file if "layer" not in name or name.startswith("layernorm")}
    written = case.layout.from_native(state)
    assert in_file <= written.keys()
    assert not any(name.startswith(f"{theirs.base_model_prefix}.") for name in written)


def test_a_model_of_ours_is_not_taken_for_one_of_transformers():
    names = sorted({case.ours for case in CASES.values()} | {"vit_base_patch16_clip_224", "deit3_small_patch16_224"})
    for name in names:
        with torch.device("meta"):
            model = featx.create_model(name)
        assert recognise(model.state_dict(), [type(model).__name__]) is None, name


def test_one_layout_recognises_a_model_of_transformers(case, tmp_path):
    theirs = built(case.theirs())
    for state in (theirs.state_dict(), load_file(saved(theirs, tmp_path))):
        assert [layout for layout in all_layouts() if layout.recognises(state)] == [case.layout]


def test_the_first_convolution_of_mobilevit_is_turned_round_and_that_of_v2_is_not(tmp_path):
    for name, turned in {"mobilevit": True, "mobilevitv2": False}.items():
        theirs = built(CASES[name].theirs())
        ours = CASES[name].loaded(saved(theirs, tmp_path), num_classes=CLASSES)
        stem = theirs.base_model.conv_stem.convolution.weight
        assert torch.equal(ours.stem.conv.weight, stem.flip(1) if turned else stem)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mobilevit", hf.MobileViTForSemanticSegmentation), ("mobilevitv2", hf.MobileViTV2ForSemanticSegmentation)],
)
@pytest.mark.parametrize("output_stride", [16, 8])
def test_the_encoder_of_a_segmentation_model_gives_its_maps(name, kind, output_stride, tmp_path):
    case = CASES[name]
    config = type(case.config)(**{**case.config.to_dict(), "output_stride": output_stride})
    theirs, x = built(kind(config)), images(2, 3, 64, 128)
    ours = case.loaded(
        saved(theirs, tmp_path), features_only=True, out_indices=case.levels, output_stride=output_stride
    )
    with torch.no_grad():
        close(ours(x), case.maps(outputs(case, theirs, x)))


VISION = {**HF_VIT, "intermediate_size": 4 * DIM}
TEXT = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
TOKENS = {"bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    "kind",
    [hf.BlipModel, hf.BlipForConditionalGeneration, hf.BlipForImageTextRetrieval, hf.BlipForQuestionAnswering],
)
def test_the_image_encoder_is_taken_from_every_blip(kind, tmp_path):
    case = CASES["blip"]
    theirs = kind(hf.BlipConfig(vision_config=VISION, text_config={**TEXT, **TOKENS}))
    ours = case.loaded(saved(theirs, tmp_path), num_classes=0)
    expected = case.layout.to_native(theirs.vision_model.state_dict(), ())
    assert equal(ours.state_dict(), expected)


def test_the_output_of_blips_image_encoder_is_ours(tmp_path):
    case = CASES["blip"]
    theirs, x = built(case.theirs()), images(2, 3, *case.size)
    ours = case.loaded(saved(theirs, tmp_path), num_classes=0)
    with torch.no_grad():
        close([ours.forward_features(x)], [outputs(case, theirs, x).last_hidden_state])


@pytest.mark.parametrize("kind", [hf.ViTModel, hf.ViTForMaskedImageModeling, hf.ViTMAEForPreTraining])
def test_what_pretraining_leaves_in_a_vit_is_left_out(kind, tmp_path):
    config = hf.ViTMAEConfig if kind is hf.ViTMAEForPreTraining else hf.ViTConfig
    theirs = kind(config(**VISION))
    ours = CASES["vit"].loaded(saved(theirs, tmp_path), num_classes=0)
    weight = next(tensor for name, tensor in theirs.state_dict().items() if name.endswith("norm_after.weight"))
    assert torch.equal(ours.blocks[0].norm2.weight, weight)


@pytest.mark.parametrize("kind", [hf.Dinov2ForImageClassification, hf.Dinov2Backbone])
def test_every_dinov2_gives_its_encoder(kind, tmp_path):
    case = CASES["dinov2"]
    theirs = kind(case.config)
    ours = case.loaded(saved(theirs, tmp_path), num_classes=0)
    assert torch.equal(ours.norm.weight, theirs.base_model.layernorm.weight)


def test_maps_of_dinov2s_backbone_class_are_our_normalised_ones(tmp_path):
    case = CASES["dinov2 with registers"]
    config = hf.Dinov2WithRegistersConfig(**HF_VIT, use_swiglu_ffn=True, out_features=["stage1", "stage2"])
    theirs, x = built(hf.Dinov2WithRegistersBackbone(config)), images(2, 3, *case.size)
    ours = case.loaded(saved(theirs, tmp_path), features_only=True, norm_maps=True)
    with torch.no_grad():
        close(ours(x), theirs(x).feature_maps)


@pytest.mark.parametrize("kind", [hf.ConvNextBackbone, hf.ResNetBackbone])
def test_maps_of_a_backbone_class_are_ours_but_for_its_own_norms(kind, tmp_path):
    case = CASES["convnext" if kind is hf.ConvNextBackbone else "resnet, basic"]
    ours = case.loaded(saved(randomise(kind(case.config)), tmp_path), features_only=True, num_classes=0)
    assert len(ours(images(1, 3, 64, 64))) == len(ours.feature_info)


def test_a_deit_with_a_token_of_distillation_is_not_taken_for_a_vit(tmp_path):
    path = saved(hf.DeiTModel(hf.DeiTConfig(**VISION)), tmp_path)
    with pytest.raises(CheckpointError, match=r"unexpected embeddings.distillation_token"):
        CASES["vit"].model(checkpoint_path=path)


@pytest.mark.parametrize(
    ("name", "ours", "problem"),
    [
        ("resnet, basic", "resnet18d", r"no place for .*'conv1.0.weight'"),
        ("resnet, basic", "ecaresnet26t", "attn|'conv1.0.weight'"),
        ("resnet, basic", "seresnet18", r"'encoder.stages.0.layers.0.se.fc1.weight'"),
        ("resnet, basic", "resnext50_32x4d", "no groups, and bottlenecks of a quarter"),
        ("resnet, basic", "resnet50_gn", "has batch norms, unlike this model"),
        ("resnet, basic", "wide_resnet50_2", "no groups, and bottlenecks of a quarter"),
        ("convnext", "convnext_atto_ols", "'stem.2.weight'"),
        ("convnext", "convnext_tiny_hnf", "'norm_pre.weight'"),
        ("convnext", "convnext_large_mlp", "'head.pre_logits.fc.weight'"),
        ("efficientnet", "efficientnet_lite0", "has squeeze-and-excitation in its blocks"),
        ("efficientnet", "mobilenetv2_035", "has squeeze-and-excitation in its blocks"),
        ("efficientnet", "test_efficientnet", "'blocks.0.0.conv.weight'"),
        ("mobilenet_v2", "efficientnet_b0", "has no squeeze-and-excitation in its blocks"),
        ("vit", "vit_wee_patch16_reg1_gap_256", "vit has a class token, unlike this model"),
        ("vit", "deit3_small_patch16_224", r"'encoder.layer.0.ls1.gamma'"),
        ("vit", "vit_base_patch16_clip_224", "'norm_pre.weight'"),
        ("dinov2", "vit_tiny_patch16_224", "dinov2 has layer scale, unlike this model"),
        ("dinov2", "deit3_small_patch16_224", "convert it with num_classes=0"),
        ("blip", "vit_tiny_patch16_224", "'head.weight'"),
    ],
)
def test_what_transformers_has_no_place_for_is_not_written(name, ours, problem):
    with torch.device("meta"):
        state = featx.create_model(ours).state_dict()
    with pytest.raises(CheckpointError, match=problem):
        CASES[name].layout.from_native(state)


def vit(kind: Any, size: tuple[int, int, int], patch: int, side: int, **kwargs: Any) -> Any:
    dim, depth, heads = size
    shape = {"hidden_size": dim, "num_hidden_layers": depth, "num_attention_heads": heads}
    return kind(**shape, patch_size=patch, image_size=side, **kwargs)


BOTTLENECKS = {"26": [2, 2, 2, 2], "50": [3, 4, 6, 3], "101": [3, 4, 23, 3], "152": [3, 8, 36, 3]}
EFFICIENT = [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1)]
V1 = {"tiny": (96, 9), "small": (96, 27), "base": (128, 27), "large": (192, 27), "xlarge": (256, 27)}
V2 = {"tiny": (96, 9), "base": (128, 27), "large": (192, 27), "huge": (352, 27)}
NARROW_V2 = {"atto": (40, 6), "femto": (48, 6), "pico": (64, 6), "nano": (80, 8)}
VITS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
GIANT = (1536, 40, 24)
DINO, DINO_REG = hf.Dinov2Config, hf.Dinov2WithRegistersConfig
PUBLISHED = {
    "resnet18": hf.ResNetConfig(depths=[2, 2, 2, 2], layer_type="basic", hidden_sizes=doubled(64)),
    "resnet34": hf.ResNetConfig(depths=[3, 4, 6, 3], layer_type="basic", hidden_sizes=doubled(64)),
    **{f"resnet{name}": hf.ResNetConfig(depths=depths) for name, depths in BOTTLENECKS.items()},
    **{
        f"convnext_{name}": hf.ConvNextConfig(hidden_sizes=doubled(chs), depths=[3, 3, third, 3])
        for name, (chs, third) in V1.items()
    },
    **{
        f"convnextv2_{name}": hf.ConvNextV2Config(hidden_sizes=doubled(chs), depths=[3, 3, third, 3])
        for name, (chs, third) in V2.items()
    },
    **{
        f"convnextv2_{name}": hf.ConvNextV2Config(hidden_sizes=doubled(chs), depths=[2, 2, third, 2])
        for name, (chs, third) in NARROW_V2.items()
    },
    **{f"efficientnet_b{number}": efficientnet(*scale) for number, scale in enumerate(EFFICIENT)},
    **{f"mobilenetv2_{n:03}": hf.MobileNetV2Config(depth_multiplier=n / 100) for n in (35, 75, 100, 140)},
    "mobilevit_xxs": XXS,
    "mobilevit_xs": mobilevit([96, 120, 144], [16, 32, 48, 64, 80, 96, 384], 4.0),
    "mobilevit_s": mobilevit([144, 192, 240], [16, 32, 64, 96, 128, 160, 640], 4.0),
    **{f"mobilevitv2_{n:03}": hf.MobileViTV2Config(width_multiplier=n / 100) for n in range(50, 225, 25)},
    **{
        f"vit_{name}_patch16_224": vit(hf.ViTConfig, size, 16, 224, intermediate_size=4 * size[0])
        for name, size in VITS.items()
    },
    "vit_base_patch32_384": vit(hf.ViTConfig, VITS["base"], 32, 384, intermediate_size=3072),
    **{f"vit_{name}_patch14_dinov2": vit(DINO, VITS[name], 14, 518) for name in ("small", "base", "large")},
    **{f"vit_{name}_patch14_reg4_dinov2": vit(DINO_REG, VITS[name], 14, 518) for name in ("small", "base", "large")},
    "vit_giant_patch14_dinov2": vit(DINO, GIANT, 14, 518, use_swiglu_ffn=True),
    "vit_giant_patch14_reg4_dinov2": vit(DINO_REG, GIANT, 14, 518, use_swiglu_ffn=True),
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_fits_the_variant_of_its_name(name):
    config, classifies = PUBLISHED[name], "dinov2" not in name
    with torch.device("meta"):
        theirs = (hf.AutoModelForImageClassification if classifies else hf.AutoModel).from_config(config)
        ours = featx.create_model(name, num_classes=config.num_labels if classifies else 0)
    given = {name: tensor for name, tensor in theirs.state_dict().items() if not name.endswith("mask_token")}
    layout = recognise(given, [type(ours).__name__])
    assert layout is not None
    wanted = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert {name: tensor.shape for name, tensor in layout.to_native(given, wanted).items()} == wanted
