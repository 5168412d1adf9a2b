"""Explanations against their formulas, written out, and against BLIP's own attention and gradients."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import SMALL_VARIANTS, images, randomize, relative_difference
from safetensors.torch import load_file
from support.attention_models import same_weights_every_time as same_weights_every_time
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer

import featx
from featx import ArgumentError, ContractError, InputError, capture_attention
from featx.explain import attention_gradcam, attention_rollout, class_attention, gradcam, patches_of
from featx.features import FeatureInfo, Levels
from featx.level_module import level_module

GOLDEN = Path(__file__).parents[1] / "data" / "blip_vit_64"


def weights(*shape: int, seed: int = 0) -> Tensor:
    return images(*shape, seed=seed).double().softmax(-1)


@pytest.mark.parametrize("query", [0, 3, None])
def test_rollout_multiplies_the_blocks(query):
    maps = {f"blocks.{i}": weights(2, 3, 8, 8, seed=i) for i in range(4)}
    rolled = torch.eye(8, dtype=torch.float64).expand(2, 8, 8)
    for n in range(2):
        rows = torch.eye(8, dtype=torch.float64)
        for map_ in maps.values():
            mean = sum(map_[n, head] for head in range(3)) / 3
            step = 0.5 * mean + 0.5 * torch.eye(8, dtype=torch.float64)
            rows = (step / step.sum(-1, keepdim=True)) @ rows  # the paper's normalization
        rolled = torch.cat([rolled[:n], rows[None], rolled[n + 1 :]])
    row = rolled[:, 2:].mean(1) if query is None else rolled[:, query]
    got = attention_rollout(maps, (2, 3), query)
    assert got.shape == (2, 2, 3)
    assert relative_difference(got, row[:, 2:].reshape(2, 2, 3)) <= 1e-12  # fp64
    assert bool((got >= 0).all())
    assert bool((got.sum((1, 2)) <= 1 + 1e-12).all())
    assert torch.equal(attention_rollout(iter(maps.values()), (2, 3), query), got)


def test_class_attention_is_the_mean_of_the_heads():
    map_ = weights(2, 3, 8, 8)
    expected = ((map_[:, 0] + map_[:, 1] + map_[:, 2]) / 3)[:, 0, 2:].reshape(2, 2, 3)
    assert relative_difference(class_attention(map_, (2, 3)), expected) <= 1e-12
    per_head = patches_of(map_, (2, 3))
    assert torch.equal(per_head, map_[:, :, 0, 2:].reshape(2, 3, 2, 3))


def golden_run(size: tuple[int, int] | None = None):
    model = featx.create_model(
        "vit_tiny_patch16_224",
        dim=96,
        depth=4,
        heads=3,
        image_size=64,
        num_classes=0,
        antialias=False,
        checkpoint_path=GOLDEN / "blip_vit_64.pth",
    ).eval()
    expected = load_file(GOLDEN / "io_64x64.safetensors")
    x = expected["input"] if size is None else images(2, 3, *size)
    with capture_attention(model, [2], gradients=True) as seen:
        model.forward_features(x).sum().backward()
    return seen, expected


def test_attention_and_gradients_are_those_of_blip():
    seen, expected = golden_run()
    assert (seen.maps["blocks.2"] - expected["attention_map"]).abs().max() <= 1e-6
    assert relative_difference(seen.maps["blocks.2"], expected["attention_map"]) <= 1e-5
    assert relative_difference(seen.gradients["blocks.2"], expected["attn_gradients"]) <= 1e-5


def test_gradcam_on_attention_is_that_of_blip():
    seen, expected = golden_run()
    cam = expected["attention_map"] * expected["attn_gradients"].clamp(0)
    cam = sum(cam[:, head, 0, 1:] for head in range(3)) / 3
    got = attention_gradcam(seen.maps["blocks.2"], seen.gradients["blocks.2"], (4, 4))
    assert got.shape == (2, 4, 4)
    assert relative_difference(got, cam.reshape(2, 4, 4)) <= 1e-5


def test_gradcam_on_attention_takes_grids_of_any_aspect():
    seen, _ = golden_run((48, 96))
    got = attention_gradcam(seen.maps["blocks.2"], seen.gradients["blocks.2"], (3, 6))
    assert got.shape == (2, 3, 6)
    assert bool((got >= 0).all())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("target", ["one", "each", "function"])
def test_gradcam_weighs_channels_by_their_mean_gradient(target, frozen):
    model, x = randomize(featx.create_model("resnet18")).double(), images(2, 3, 64, 96).double()
    kept: list[Tensor] = []
    handle = model.layer3.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = model(x)
    handle.remove()
    targets = {
        "one": (8, lambda out: out[:, 8].sum()),
        "each": (torch.tensor([3, 900]), lambda out: out[0, 3] + out[1, 900]),
        "function": (lambda out: out.square().mean(1), lambda out: out.square().mean(1).sum()),
    }
    asked, scalar = targets[target]
    (gradient,) = torch.autograd.grad(scalar(logits), kept[0])
    expected = torch.zeros(2, 4, 6, dtype=torch.float64)
    for channel in range(256):
        expected += gradient[:, channel].mean((1, 2))[:, None, None] * kept[0][:, channel].detach()
    model.requires_grad_(not frozen)
    with torch.no_grad():
        got = gradcam(model, x, "layer3", asked)
    assert got.shape == (2, 4, 6)
    assert not got.requires_grad
    assert relative_difference(got, expected.clamp(0)) <= 1e-10  # fp64
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.layer3._forward_hooks


def swin() -> nn.Module:
    sizes = {"patch_size": [4, 4], "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": [4, 4]}
    return SwinTransformer(**sizes, num_classes=9)


def torchvision_vit() -> nn.Module:
    return VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=24, num_classes=9)


@pytest.mark.parametrize("name", SMALL_VARIANTS)
def test_gradcam_takes_every_level_of_a_variant(name):
    model = randomize(featx.create_model(name))
    assert_every_level_is_taken(
        model, images(2, 3, *(featx.FeatureExtractWrapper(model)._inner.fixed_size or (64, 96)))
    )


@pytest.mark.parametrize(
    ("name", "choice", "size"),
    [
        (swin, {}, (96, 128)),
        (torchvision_vit, {}, (64, 64)),
        ("torchvision/alexnet", {}, (95, 127)),
        ("timm/test_resnet", {}, (64, 96)),
        ("timm/test_vit", {}, (160, 160)),
        ("timm/swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "strict_img_size": False}, (96, 128)),
        pytest.param("timm/mvitv2_tiny", {}, (224, 224), marks=pytest.mark.bridges),
        pytest.param(
            "transformers/vit", {"num_classes": 3, "num_hidden_layers": 2}, (224, 224), marks=pytest.mark.bridges
        ),
        pytest.param("transformers/swin", {"num_classes": 3}, (224, 224), marks=pytest.mark.bridges),
    ],
)
def test_gradcam_takes_every_level_of_a_model_of_another_package(name, choice, size):
    model = featx.create_model(name, **choice) if isinstance(name, str) else name()
    assert_every_level_is_taken(randomize(model), images(2, 3, *size))


def assert_every_level_is_taken(model: nn.Module, x: Tensor) -> None:
    """For every level the cells of its map; in the output of the module, whatever its axes, they are the map's."""
    raw = model.raw() if getattr(model, "maps_are_normed", False) else model  # modules give maps before the last norm
    extractor = featx.FeatureExtractWrapper(raw)
    with torch.no_grad():
        maps = extractor(x)
    for level, map_ in zip(extractor.feature_info, maps, strict=True):
        found, kept = level_module(model, level.name), list[Tensor]()
        handle = model.get_submodule(found.path).register_forward_hook(
            lambda _, __, output, kept=kept, found=found: kept.append(found.value(output).clone())
        )
        with torch.no_grad():
            model(x)
        handle.remove()
        got = gradcam(model, x, level.name, lambda out: getattr(out, "logits", out).square().sum(1))
        layout = found.layout(model, kept[0], x)
        assert relative_difference(layout.split(kept[0].detach(), x.shape[2:], level.name)[1], map_) <= 1e-5
        assert got.shape == (len(x), *map_.shape[2:])


@pytest.mark.parametrize(
    ("make", "level", "to_map"),
    [
        (swin, "features.3", lambda out: out.permute(0, 3, 1, 2)),
        (
            lambda: featx.create_model("vit_tiny_patch16_224", depth=2),
            "blocks.0",
            lambda out: out[:, 1:].transpose(1, 2).unflatten(2, (4, 6)),
        ),
    ],
)
def test_gradcam_of_other_axes_is_that_of_the_definition(make, level, to_map):
    model, x = randomize(make()).double(), images(2, 3, 64, 96).double()
    kept: list[Tensor] = []
    handle = model.get_submodule(level).register_forward_hook(lambda _, __, output: kept.append(output))
    logits = model(x)
    handle.remove()
    gradient, map_ = (to_map(one) for one in (*torch.autograd.grad(logits[:, 7].sum(), kept), kept[0].detach()))
    expected = sum(
        gradient[:, channel].mean((1, 2))[:, None, None] * map_[:, channel] for channel in range(map_.shape[1])
    ).clamp(0)
    assert relative_difference(gradcam(model, x, level, 7), expected) <= 1e-10  # fp64


def test_gradcam_tells_axes_apart_where_channels_are_as_many_as_cells():
    resnet, channels_last = randomize(featx.create_model("timm/test_resnet")), randomize(swin())
    for made, side in ((resnet, 2 * 32), (channels_last, 4 * 8)):
        level = featx.FeatureExtractWrapper(made).feature_info[0]
        x = images(1, 3, side, side)
        kept: list[Tensor] = []
        made.get_submodule(level.name).register_forward_hook(lambda _, __, out, kept=kept: kept.append(out))
        with torch.no_grad():
            made(x)
        assert len({*kept[0].shape[1:]}) == 1
        layout = level_module(made, level.name).layout(made, kept[0], x).layout
        assert layout == ("NHWC" if made is channels_last else "NCHW")


def test_gradcam_leaves_the_model_alone_while_other_threads_call_it():
    model, x = randomize(featx.create_model("resnet18")), images(2, 3, 64, 64)
    with torch.no_grad():
        expected, explained = model(x), gradcam(model, x, "layer4", 1)
    seen: list[int] = []
    model.layer4.register_forward_hook(lambda module, _, __: seen.append(len(module._forward_hooks)))

    def predict(_: int) -> bool:
        with torch.no_grad():
            return torch.equal(model(x), expected)

    with ThreadPoolExecutor(4) as pool:
        predicted = [pool.submit(predict, number) for number in range(8)]
        explanations = [pool.submit(gradcam, model, x, "layer4", 1) for _ in range(4)]
        assert all(future.result() for future in predicted)
        assert all(torch.equal(future.result(), explained) for future in explanations)
    assert len(model.layer4._forward_hooks) == 1


def test_a_level_that_no_module_returns_is_refused(monkeypatch):
    model = featx.create_model("resnet18")
    model.feature_info = Levels([*model.feature_info, FeatureInfo(8, 64, "hidden_states.3")])
    monkeypatch.setattr("featx.level_module.pyramid_of", lambda model: model)
    with pytest.raises(ArgumentError, match=r"'hidden_states.3': no module returns this map as it is.*such as one of"):
        gradcam(model, images(1, 3, 64, 64), "hidden_states.3", 0)


class Branching(nn.Module):
    """One module that returns the maps of two levels."""

    feature_info = ({"chs": 4, "reduction": 2, "name": "both"},)

    def __init__(self) -> None:
        super().__init__()
        self.both, self.head = Both(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.both(x)
        return self.head(fine.mean((2, 3)) + coarse.square().mean((2, 3)))


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(3, 4, 4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fine(x), self.coarse(x)


@pytest.mark.parametrize(("key", "inner"), [(0, "both.fine"), (1, "both.coarse")])
def test_gradcam_takes_one_of_several_maps_of_a_module(key, inner):
    model, x = randomize(Branching()), images(2, 3, 16, 24)
    assert torch.equal(gradcam(model, x, f"both[{key}]", 2), gradcam(model, x, inner, 2))


def test_gradcam_under_inference_mode():
    model = randomize(featx.create_model("resnet18"))
    with torch.inference_mode():
        x = images(1, 3, 64, 64)
        got = gradcam(model, x, "layer4", 1)
    assert torch.equal(got, gradcam(model, images(1, 3, 64, 64), "layer4", 1))


def test_gradcam_takes_models_of_other_packages():
    x = images(1, 3, 64, 64)
    ours, theirs = featx.create_model("resnet18").eval(), randomize(featx.create_model("timm/resnet18"))
    ours.load_state_dict(theirs.state_dict())
    expected = gradcam(ours, x, "layer3", lambda logits: logits.square().sum(1))
    assert relative_difference(gradcam(theirs, x, "layer3", lambda logits: logits.square().sum(1)), expected) <= 1e-4
    classifier = featx.create_model("transformers/resnet", num_classes=3).eval()
    assert gradcam(classifier, x, "resnet.encoder.stages.2", 1).shape == (1, 4, 4)


def resnet() -> nn.Module:
    return featx.create_model("resnet18", num_classes=10).eval()


@pytest.mark.parametrize(
    ("level", "target", "kind", "problem"),
    [
        ("layer9", 0, ArgumentError, "the model has no such module"),
        ("layer4", 10, ArgumentError, "the model has classes 0 to 9"),
        ("layer4", -1, ArgumentError, "the model has classes 0 to 9"),
        ("layer4", torch.tensor([1.0]), ArgumentError, "expected one number, or one per image as int64"),
        ("layer4", torch.tensor([1, 2, 3]), ArgumentError, "expected one number, or one per image as int64"),
        ("layer4", lambda out: out, ArgumentError, "one value or one per image"),
        ("fc", 0, ContractError, r"fc returns \(1, 10\), not a map"),
        ("layer4", lambda out: torch.zeros(()), ContractError, "does not depend on the output of layer4"),
    ],
)
def test_gradcam_refuses_what_it_cannot_explain(level, target, kind, problem):
    with pytest.raises(kind, match=problem):
        gradcam(resnet(), images(1, 3, 64, 64), level, target)


def test_gradcam_without_logits_asks_for_a_function():
    extractor = featx.create_model("resnet18", features_only=True).eval()
    with pytest.raises(ArgumentError, match=r"the model returns no logits \(N, classes\); pass a function"):
        gradcam(extractor, images(1, 3, 64, 64), "layer3", 0)
    assert gradcam(extractor, images(1, 3, 64, 64), "layer3", lambda maps: maps[-1].mean((1, 2, 3))).shape == (1, 4, 4)


def test_gradcam_of_a_module_that_runs_twice_is_refused():
    shared = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(shared, shared, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ContractError, match="0 ran 2 times in one forward"):
        gradcam(model, images(1, 3, 8, 8), "0", 0)


@pytest.mark.parametrize(
    ("call", "kind", "problem"),
    [
        (lambda: attention_rollout([], (2, 2)), InputError, "of one shape from all blocks, got"),
        (lambda: attention_rollout([weights(1, 2, 5, 5), weights(1, 2, 9, 9)], (2, 2)), InputError, "of one shape"),
        (lambda: attention_rollout([weights(1, 2, 1, 5)], (2, 2)), InputError, "of one shape"),
        (lambda: class_attention(weights(1, 5, 5), (2, 2)), InputError, "expected a map"),
        (lambda: class_attention(weights(1, 2, 5, 5), (3, 2)), InputError, "has no 3x2 patches as keys"),
        (lambda: class_attention(weights(1, 2, 1, 5), (2, 2), None), InputError, "has no 2x2 patches as queries"),
        (lambda: class_attention(weights(1, 2, 5, 5), (2, 2), 5), ArgumentError, "query=5: there are 5 tokens"),
        (
            lambda: attention_gradcam(weights(1, 2, 5, 5), weights(2, 2, 5, 5), (2, 2)),
            InputError,
            "are not of one block and run",
        ),
        (lambda: attention_gradcam(weights(1, 5, 5), weights(1, 5, 5), (2, 2)), InputError, "expected a map"),
    ],
)
def test_maps_that_do_not_fit_are_refused(call, kind, problem):
    with pytest.raises(kind, match=problem):
        call()
