"""Same weights, same numbers: every variant against timm, with random norm statistics.

Differences are relative to the largest value of the reference. Both sides run the same float operations in the same
order, so that 1e-5 leaves room only for other builds of the kernels. A training step is compared in doubles, where a
deep network's gradients keep more digits than the rounding of floats would leave: 1e-10 is far above what doubles lose
and far below what any mistake makes.
"""

import inspect
from math import isfinite
from typing import Any

import pytest
import timm
import torch
from conftest import SMALL, VARIANTS, images, randomise, relative_difference, swept
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

import featx
from featx import FeatureExtractWrapper
from featx.models.convnext import ConvNeXtConfig
from featx.models.mobilevit import MobileViTConfig
from featx.models.regnet import RegNetConfig
from featx.models.vit import ViTConfig
from featx.registry import lookup

TOLERANCE = 1e-5
TRAINING_TOLERANCE = 1e-10
SIZES = [(224, 224), (192, 256), (223, 225)]


def timm_dilates(name: str) -> bool:
    """Whether timm can dilate it, classifier and all, as we can."""
    return "output_stride" in inspect.signature(type(lookup(name).config)).parameters and "mobilenetv3" not in name


DILATED = [name for name in SMALL if timm_dilates(name)]

# Millions of parameters beyond which a pair of models takes too long here, and what makes shallow ones of them.
LARGEST = 60
SHALLOW: dict[type, dict[str, Any]] = {
    ViTConfig: {"depth": 2},
    ConvNeXtConfig: {"depths": (1, 1, 1, 1)},
    RegNetConfig: {"w0": 64, "wa": 64.0, "wm": 2.2, "depth": 8, "group_size": 16},  # narrower, too
}


class CroppedUpsample(nn.Module):
    """timm's upsampling in an HRNet, cropped to the branch it is added to, as timm itself does at no size."""

    def __init__(self, upsample: nn.Upsample) -> None:
        super().__init__()
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(x)[..., : self.height, : self.width]


def cropping(reference: nn.Module, size: tuple[int, int]) -> None:
    """Let timm's HRNet take `size`, in place: row i of a fuse layer is at a stride of 4 * 2**i."""
    for name, module in list(reference.named_modules()):
        path = name.split(".")
        if isinstance(module, nn.Upsample) and path[-1] != "upsample":
            module = CroppedUpsample(module)
            reference.get_submodule(".".join(path[:-1]))[int(path[-1])] = module
        if isinstance(module, CroppedUpsample):
            row = int(path[path.index("fuse_layers") + 1])
            module.height, module.width = (-(-side // (4 * 2**row)) for side in size)


def options(name: str) -> dict[str, bool]:
    """What lets timm take images of any size, where ours always does."""
    return {"dynamic_img_size": True, "dynamic_img_pad": True} if isinstance(lookup(name).config, ViTConfig) else {}


def pair(name: str, **kwargs) -> tuple[nn.Module, nn.Module]:
    """Our model and timm's, with the same weights, loaded strictly in both directions."""
    reference = randomise(timm.create_model(name, **kwargs, **options(name)))
    if "output_stride" in kwargs and isinstance(lookup(name).config, MobileViTConfig):
        kwargs["local_dilation"] = True  # as timm; the default is the original's
    ours = featx.create_model(name, **kwargs).eval()
    ours.load_state_dict(reference.state_dict())
    reference.load_state_dict(ours.state_dict())
    return ours, reference


class TimmMaps(nn.Module):
    """timm's own maps, and what it says of them, with the weights of `reference`."""

    def __init__(self, reference: nn.Module, name: str, **kwargs) -> None:
        super().__init__()
        self.tokens = isinstance(lookup(name).config, ViTConfig)
        if self.tokens:
            self.model = reference
            self.levels = [(row["num_chs"], row["reduction"]) for row in reference.feature_info]
            return
        self.model = timm.create_model(name, features_only=True, **kwargs).eval()
        info = self.model.feature_info
        self.levels = list(zip(info.channels(), info.reduction(), strict=True))
        # timm renames `stages.0` to `stages_0` where it flattens
        state = {key.replace(".", "_"): tensor for key, tensor in reference.state_dict().items()}
        self.model.load_state_dict({key: state[key.replace(".", "_")] for key in self.model.state_dict()})

    def forward(self, x: Tensor) -> list[Tensor]:
        if not self.tokens:
            return self.model(x)
        # as tokens: timm cannot shape those of hybrids into maps at odd sizes
        tokens = self.model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        grid = [-(-side // self.levels[0][1]) for side in x.shape[2:]]
        return [map_.transpose(1, 2).unflatten(2, grid) for map_ in tokens]


def same_levels(ours: nn.Module, theirs: TimmMaps) -> FeatureExtractWrapper:
    """Our extractor of the levels that timm has: all of them, but for one more in MobileViT."""
    levels = [(level.chs, level.reduction) for level in ours.feature_info]
    if len(levels) == len(theirs.levels):
        assert levels == theirs.levels
        return FeatureExtractWrapper(ours)
    return FeatureExtractWrapper(ours, [levels.index(level) for level in theirs.levels])


@torch.no_grad()
def largest_difference(
    name: str,
    ours: nn.Module,
    reference: nn.Module,
    sizes: list[tuple[int, int]],
    *,
    dtype: torch.dtype = torch.float32,
    **kwargs,
) -> float:
    """Over the logits and all maps at all sizes. kwargs: what the pair was built with."""
    theirs = TimmMaps(reference, name, **kwargs)
    maps = same_levels(ours, theirs)
    for model in (ours, reference, theirs):
        model.to(dtype)
    differences = []
    for size in sizes:
        x = images(1, 3, *size).to(dtype)
        cropping(reference, size)
        cropping(theirs, size)
        outputs = [ours(x), *maps(x)], [reference(x), *theirs(x)]
        differences += [relative_difference(a, b) for a, b in zip(*outputs, strict=True)]
    return max(differences)


def training_difference(ours: nn.Module, reference: nn.Module, *shape: int) -> float:
    """Over the gradients of all parameters and the norm statistics after a step in doubles, to which both change.

    A parameter's difference is relative to its own largest gradient, but for those that have none except rounding
    errors, like a bias before a batch norm: there to 1e-4 of the largest of all, so that doubles leave 1e-12 of it.
    Three images at least: of two, the norms in ResNeSt's gates make +1 and -1, whatever they are given.
    """
    cropping(reference, shape[-2:])
    for model in (ours, reference):
        torch.manual_seed(0)  # the same units drop out
        model.double().train()(images(*shape).double()).square().mean().backward()
    assert not [key for key, parameter in ours.named_parameters() if parameter.grad is None]
    theirs = {key: parameter.grad for key, parameter in reference.named_parameters()}
    largest = {key: grad.abs().max().item() for key, grad in theirs.items()}
    floor = 1e-4 * max(largest.values())
    differences = [
        (parameter.grad - theirs[key]).abs().max().item() / max(largest[key], floor)
        for key, parameter in ours.named_parameters()
    ]
    for key, buffer in ours.named_buffers():
        if buffer.is_floating_point():
            differences.append(relative_difference(buffer, reference.get_buffer(key)))
        else:
            assert torch.equal(buffer, reference.get_buffer(key)), key
    assert all(map(isfinite, differences))
    return max(differences)


@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes_of_all_weights_are_timms(name):
    with torch.device("meta"):
        ours, reference = featx.create_model(name), timm.create_model(name)
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == {
        key: tensor.shape for key, tensor in reference.state_dict().items()
    }


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_maps_equal_timms(name):
    assert largest_difference(name, *pair(name), SIZES) <= TOLERANCE


def affordable(name: str) -> dict[str, Any]:
    """What makes a variant that takes too long here a shallow one; nothing for the others."""
    with torch.device("meta"):
        millions = sum(parameter.numel() for parameter in featx.create_model(name).parameters()) / 1e6
    return {} if millions <= LARGEST else SHALLOW.get(type(lookup(name).config), {})


@pytest.mark.sweep
@pytest.mark.parametrize("name", featx.list_models())
def test_every_variant_equals_timms_in_its_maps_and_in_a_training_step(name, record_property):
    record_property("variant", name)
    shallow = affordable(name)
    if shallow:
        record_property("reduced", " ".join(f"{field}={value}" for field, value in shallow.items()))
    models = pair(name, **shallow)  # both comparisons in one test, so that they are built once
    maps = largest_difference(name, *models, SIZES[1:], **shallow)
    record_property("maps", f"{maps:.1e}")
    # the smallest images of which a map at 1/32 has more than one cell
    step = training_difference(*models, 3, 3, 64, 64)
    record_property("training step", f"{step:.1e}")
    assert maps <= TOLERANCE
    assert step <= TRAINING_TOLERANCE


@pytest.mark.sweep
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", [name for name in featx.list_models() if timm_dilates(name)])
def test_dilated_maps_of_every_variant_equal_timms(name, output_stride, record_property):
    record_property("variant", name)
    # in doubles: with random weights some deep networks amplify the rounding of floats until nothing else is left
    # (repvgg_d2se at 8: timm's floats differ from timm's doubles by more than the largest value)
    arguments = {"output_stride": output_stride, **affordable(name)}
    difference = largest_difference(name, *pair(name, **arguments), [(97, 161)], dtype=torch.float64, **arguments)
    record_property(f"stride {output_stride}", f"{difference:.1e}")
    assert difference <= TOLERANCE


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", DILATED)
def test_dilated_maps_equal_timms(name, output_stride):
    models = pair(name, output_stride=output_stride)
    assert largest_difference(name, *models, [(97, 161)], output_stride=output_stride) <= TOLERANCE


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", swept("*mobilenetv3*"))
def test_dilated_mobilenetv3_equals_timms_where_timm_dilates(name, output_stride, record_property):
    # timm's MobileNetV3 classifier cannot be dilated, its feature extractor can
    record_property("variant", name)
    ours = randomise(featx.create_model(name, output_stride=output_stride))
    theirs = TimmMaps(ours, name, output_stride=output_stride)
    x = images(1, 3, 97, 161)
    with torch.no_grad():
        outputs = same_levels(ours, theirs)(x), theirs(x)
    difference = max(relative_difference(a, b) for a, b in zip(*outputs, strict=True))
    record_property(f"stride {output_stride}", f"{difference:.1e}")
    assert difference <= TOLERANCE


@pytest.mark.parametrize("name", SMALL)
def test_doubles_agree_to_ten_digits(name):
    ours, reference = (model.double() for model in pair(name))
    with torch.no_grad():
        assert relative_difference(ours(images().double()), reference(images().double())) <= 1e-10


@pytest.mark.parametrize("name", SMALL)
def test_a_training_step_gives_the_gradients_and_statistics_of_timms(name):
    assert training_difference(*pair(name), 3, 3, 64, 96) <= TRAINING_TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_default_weights_and_preprocessing_are_timms(name):
    variant, cfg = lookup(name), get_pretrained_cfg(name)
    assert (variant.weights[0] if variant.weights else None) == (cfg.tag if cfg.hf_hub_id else None)
    assert {f"{name}.{tag}" for tag in variant.weights} == set(timm.list_pretrained(f"{name}.*"))
    stated = (*cfg.input_size[1:], cfg.mean, cfg.std, cfg.interpolation, cfg.crop_pct)
    data = variant.data
    assert (*data.size, data.mean, data.std, data.interpolation, data.crop) == stated


@pytest.mark.parametrize("name", SMALL)
def test_fresh_weights_are_drawn_from_the_distributions_of_timms(name):
    torch.manual_seed(0)
    ours, reference = featx.create_model(name), timm.create_model(name)
    theirs = dict(reference.named_parameters())
    for key, tensor in ours.named_parameters():
        if len(theirs[key].unique()) == 1:
            assert torch.equal(tensor, theirs[key]), key
            continue
        # the median of n magnitudes is known to about 1.2 / sqrt(n) of itself; unlike the deviation it does not mind
        # the rare values of 2 that timm's truncated normal draws by rounding
        accuracy = 10 / tensor.numel() ** 0.5
        magnitude = tensor.abs().median().item()
        assert magnitude == pytest.approx(theirs[key].abs().median().item(), rel=accuracy), key
        assert tensor.mean().item() == pytest.approx(theirs[key].mean().item(), abs=accuracy * magnitude), key
