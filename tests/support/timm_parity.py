"""Our models and timm's with the same weights, as shallow as they can be."""

import inspect
from dataclasses import dataclass
from math import inf, isfinite

import timm
import torch
from conftest import draw, images, relative_difference
from support.truncation import alike, leave_out_repeats, make_shallow, narrow
from torch import Tensor, nn

import featx
from featx import FeatureExtractWrapper
from featx.meta_init import init_empty_weights
from featx.models.mobilevit import MobileViTConfig
from featx.models.vit import ViTConfig
from featx.models.vit_rotary import RotaryViTConfig
from featx.registry import lookup


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


def is_vit(name: str) -> bool:
    return isinstance(lookup(name).config, ViTConfig)


def timm_dilates(name: str) -> bool:
    """Whether timm can dilate its feature extractor; of MobileNetV3 it cannot dilate the classifier."""
    return "output_stride" in inspect.signature(type(lookup(name).config)).parameters


def of_featx(name: str, **kwargs) -> nn.Module:
    if "output_stride" in kwargs and isinstance(lookup(name).config, MobileViTConfig):
        kwargs["local_dilation"] = True  # as timm; the default is the original's
    if is_vit(name):
        kwargs["norm_maps"] = False  # as timm; the default is that of the weights' authors
    return featx.create_model(name, **kwargs)


def of_timm(name: str, **kwargs) -> nn.Module:
    """timm's classifier; its ViTs take images of any size when asked to, as ours always do."""
    options = {"dynamic_img_size": True, "dynamic_img_pad": True} if is_vit(name) else {}
    theirs = {"dim": "embed_dim", "heads": "num_heads", "pool_heads": "attn_pool_num_heads", "norm_maps": ""}
    if isinstance(lookup(name).config, RotaryViTConfig):
        theirs["fc_norm"] = "use_fc_norm"
    kwargs = {theirs.get(key, key): value for key, value in kwargs.items() if theirs.get(key, key)}
    return timm.create_model(name, **kwargs, **options)


class TimmMaps(nn.Module):
    """timm's own maps, and what it says of them: its feature extractor, or what a ViT's own method returns."""

    def __init__(self, name: str, **kwargs) -> None:
        super().__init__()
        self.tokens = is_vit(name)
        self.model = of_timm(name, **kwargs) if self.tokens else timm.create_model(name, features_only=True, **kwargs)
        info = self.model.feature_info
        self.levels = [(row["num_chs"], row["reduction"]) for row in (info if self.tokens else info.get_dicts())]

    def forward(self, x: Tensor) -> list[Tensor]:
        if not self.tokens:
            return self.model(x)
        # as tokens: timm cannot shape those of hybrids into maps at odd sizes
        tokens = self.model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        grid = [-(-side // self.levels[0][1]) for side in x.shape[2:]]
        return [map_.transpose(1, 2).unflatten(2, grid) for map_ in tokens]


def adopt(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load weights, shared with whoever has them, and copies of norm statistics, which training changes; strictly.

    timm renames `stages.0` to `stages_0` where it flattens.
    """
    flat = {key.replace(".", "_"): tensor for key, tensor in state.items()}
    own = {key: flat[key.replace(".", "_")] for key in model.state_dict()}
    own |= {key: own[key].clone() for key, _ in model.named_buffers() if key in own}
    model.load_state_dict(own, assign=True)
    for module in model.modules():
        if hasattr(module, "init_non_persistent_buffers"):  # frequencies of timm's rotations, which are no weights
            module._buffers = {key: torch.empty_like(b, device="cpu") for key, b in module._buffers.items()}
            module.init_non_persistent_buffers()


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@dataclass
class Pair:
    """Our model, timm's feature extractor, and timm's classifier if that is compared, too (a ViT is both in one).

    names: of the levels that timm has, too.
    """

    ours: nn.Module
    maps: TimmMaps
    classifier: nn.Module | None
    names: list[str]

    def models(self) -> list[nn.Module]:
        return list({id(model): model for model in (self.ours, self.maps.model, self.classifier) if model}.values())

    def leave_out_repeats(self) -> list[str]:
        """Blocks like the one before them, and the levels behind them; where they were in ours."""
        left_out = make_shallow(self.ours)
        others = [leave_out_repeats(model) for model in self.models()[1:]]
        assert {len(other) for other in others} <= {len(left_out)}
        self.names = [name for name in self.names if name in self.ours.feature_info.names()]
        return left_out

    def alike(self, other: "Pair") -> bool:
        """Whether both compute the same, here and at timm."""
        models = self.models(), other.models()
        return self.names == other.names and len(models[0]) == len(models[1]) and all(map(alike, *models))

    def take(self, state: dict[str, Tensor]) -> None:
        for model in self.models():
            adopt(model, state)

    @torch.no_grad()
    def difference(self, *size: int) -> float:
        """The largest over the maps, and the logits, of an image of `size`."""
        x = images(1, 3, *size).to(next(self.ours.parameters()))
        for model in self.models():
            cropping(model.eval(), size)
        outputs = FeatureExtractWrapper(self.ours, out_names=self.names)(x), self.maps(x)
        if self.classifier is not None:
            outputs = [*outputs[0], self.ours(x)], [*outputs[1], self.classifier(x)]
        return max(relative_difference(a, b) for a, b in zip(*outputs, strict=True))

    def training_difference(self, *shape: int) -> float:
        """Over the gradients of all parameters and the norm statistics after a step, to which both change.

        A parameter's difference is relative to its own largest gradient, but for those that have none except rounding
        errors, like a bias before a batch norm: there to 1e-4 of the largest of all, so that doubles leave 1e-12 of it.
        Three images at least: of two, the norms in ResNeSt's gates make +1 and -1, whatever they are given.
        """
        ours, reference = self.ours, self.classifier
        cropping(reference, shape[-2:])
        for model in (ours, reference):
            torch.manual_seed(0)  # the same units drop out
            model.train()(images(*shape).to(next(model.parameters()))).square().mean().backward()
        assert not [key for key, parameter in ours.named_parameters() if parameter.grad is None]
        largest = {key: parameter.grad.norm(inf).item() for key, parameter in reference.named_parameters()}
        floor = 1e-4 * max(largest.values())
        assert all(map(isfinite, largest.values()))
        differences = [
            (ours.get_parameter(key).grad - parameter.grad).norm(inf).item() / max(largest[key], floor)
            for key, parameter in reference.named_parameters()
            if not torch.equal(ours.get_parameter(key).grad, parameter.grad)
        ]
        for key, buffer in ours.named_buffers():
            if buffer.is_floating_point():
                differences.append(relative_difference(buffer, reference.get_buffer(key)))
            else:
                assert torch.equal(buffer, reference.get_buffer(key)), key
        assert all(map(isfinite, differences))
        return max(differences, default=0.0)


def pair(name: str, *, logits: bool = True, **kwargs) -> Pair:
    """Our model and timm's without values, which agree in names and shapes of all weights, and in levels.

    Of those that are too wide, which agree as well, narrow ones.
    """
    models = built(name, logits, **kwargs)
    arguments = narrow(name)
    return built(name, logits, **kwargs, **arguments) if arguments else models


def built(name: str, logits: bool, **kwargs) -> Pair:
    with init_empty_weights():
        ours, maps = of_featx(name, **kwargs), TimmMaps(name, **kwargs)
        classifier = (of_timm(name, **kwargs) if not maps.tokens else maps.model) if logits else None
    assert classifier is None or shapes(ours) == shapes(classifier)
    return Pair(ours, maps, classifier, same_levels(ours, maps))


def same_levels(ours: nn.Module, theirs: TimmMaps) -> list[str]:
    """The names of the levels that timm has, too: all of them, but for one more in MobileViT."""
    levels = [(level.chs, level.reduction) for level in ours.feature_info]
    if len(levels) == len(theirs.levels):
        assert levels == theirs.levels
        return ours.feature_info.names()
    return [ours.feature_info[levels.index(level)].name for level in theirs.levels]


def weights_for(model: nn.Module) -> dict[str, Tensor]:
    """Random values for all of the state of `model`, which has none; they keep what they multiply about as large."""
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not draw(name, tensor, generator):
            inputs = tensor[0].numel() if len(tensor) > 1 else 3  # one row: positions, which are added to tokens
            tensor.uniform_(-((3 / inputs) ** 0.5), (3 / inputs) ** 0.5, generator=generator)
    return state


def in_doubles(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
