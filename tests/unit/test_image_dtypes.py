"""Inputs of another dtype, or that are not images: which are accepted, and the errors of the others."""

import pytest
import torch
from conftest import IMAGES, SMALL_VARIANTS, images, randomize
from support.export_cases import small
from torch import nn

import featx
from featx import ContractError, FeatureExtractWrapper, InputError

NAME = "test_efficientnet"


def built(name=NAME, **arguments):
    return featx.create_model(name, **arguments).eval()


MODELS = pytest.mark.parametrize(
    "model",
    [
        lambda: built(),
        lambda: built(features_only=True),
        lambda: built("timm/test_resnet", features_only=True),
        lambda: featx.tap(built(), ["blocks.1"]),
        lambda: featx.optimize(built(features_only=True), runtime="eager"),
        lambda: featx.optimize(built(features_only=True), runtime="onnxruntime"),
    ],
    ids=["classifier", "extractor", "bridged", "tapped", "eager", "onnxruntime"],
)


@MODELS
@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.uint8, r"scale them with images\.float\(\) / 255"),
        (torch.int64, r"convert them with images\.to\(torch\.float32\)"),
        (torch.float64, r"convert them with images\.to\(torch\.float32\)"),
        (torch.complex64, r"images\.real\.to\(torch\.float32\)"),
    ],
)
def test_images_of_another_dtype_are_refused_with_what_to_do(model, dtype, advice):
    model, x = model(), torch.ones(IMAGES, dtype=dtype)
    with pytest.raises(InputError, match=rf"expected images of torch\.float32, got {dtype}: .*{advice}"):
        model(x)
    with torch.no_grad():
        model((x.real if x.is_complex() else x).float() / 255)


@pytest.mark.parametrize("features_only", [False, True])
def test_images_must_be_as_precise_as_the_model(features_only):
    model = built(features_only=features_only)
    with pytest.raises(InputError, match=r"got torch\.float16: convert them with images\.to\(torch\.float32\)"):
        model(images().half())
    model.bfloat16()
    with pytest.raises(InputError, match=r"got torch\.float32: convert them with images\.to\(torch\.bfloat16\)"):
        model(images())
    with pytest.raises(InputError, match=r"scale them with \(images\.float\(\) / 255\)\.to\(torch\.bfloat16\)"):
        model(torch.zeros(IMAGES, dtype=torch.uint8))
    with torch.no_grad():
        model(images().bfloat16())


def test_autocast_takes_what_it_converts():
    model = built()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            assert model(images().to(dtype)).dtype == torch.bfloat16
        with pytest.raises(InputError, match=r"got torch\.float64"):
            model(images().double())


@torch.no_grad()
def test_an_optimized_extractor_takes_images_more_precise_than_itself():
    made = featx.optimize(built(features_only=True), runtime="eager", dtype=torch.bfloat16)
    assert made(images())[0].dtype == torch.bfloat16


def test_a_users_own_model_may_convert_images_itself():
    class Scaling(type(small()._inner._inner)):
        def forward_features(self, x):
            return super().forward_features(x.float() / 255)

    extractor = FeatureExtractWrapper(randomize(Scaling()))
    x = torch.randint(255, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(extractor(x)[0], extractor(x.float())[0])


@torch.no_grad()
def test_weights_that_are_given_for_one_call_say_the_dtype():
    model = built()
    state = {name: tensor.bfloat16() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    assert torch.func.functional_call(model, state, (images().bfloat16(),)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", SMALL_VARIANTS)
def test_a_batch_of_no_image_gives_results_of_no_image(name):
    model = featx.create_model(name).eval()
    extractor = FeatureExtractWrapper(model)
    with torch.no_grad():
        none, one = ([model(x), *extractor(x)] for x in (images(0, 3, 64, 99), images(1, 3, 64, 99)))
    assert [result.shape for result in none] == [(0, *result.shape[1:]) for result in one]


class Adapter(nn.Module):
    """What low-rank adaptation puts in the place of a layer: the layer, and a product of two small ones beside it."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        if isinstance(base_layer, nn.Linear):
            self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
            self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)
        else:
            sizes = base_layer.kernel_size, base_layer.stride, base_layer.padding, base_layer.dilation
            self.lora_A = nn.Conv2d(base_layer.in_channels, 2, *sizes, bias=False)
            self.lora_B = nn.Conv2d(2, base_layer.out_channels, 1, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Tuner(nn.Module):
    """As peft's models are nested: attributes that it lacks are those of the model inside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, x):
        return self.model(x)


def with_adapters(name: str, *targets: str) -> nn.Module:
    model = featx.create_model(name, num_classes=3, **({"depth": 2} if name.startswith("vit") else {}))
    model.requires_grad_(False)
    chosen = [path for path, part in model.named_modules() if path.endswith(targets)]
    assert chosen
    for path in chosen:
        layer = model.get_submodule(path)
        if not isinstance(layer, nn.Conv2d) or layer.groups == 1:
            model.set_submodule(path, Adapter(layer))
    return randomize(model)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("vit_tiny_patch16_224", ("qkv", "fc1")),
        ("resnet18", ("conv1", "conv2")),
        ("mobilevit_xxs", ("qkv", ".conv_1x1")),
    ],
)
def test_adapted_layers_learn_and_their_model_gives_maps(name, targets):
    model = with_adapters(name, *targets)
    extractor, x = FeatureExtractWrapper(model), images(2, 3, 64, 96)
    maps = extractor(x)
    sum(map_.mean() for map_ in maps).backward()
    learns = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert learns
    assert all("lora_" in name for name in learns)
    adapters = [part for part in model.modules() if isinstance(part, Adapter)]
    with torch.no_grad():
        for part in adapters:
            part.lora_B.weight.zero_()
        for part in [path for path, part in model.named_modules() if isinstance(part, Adapter)]:
            model.set_submodule(part, model.get_submodule(part).base_layer)
        plain = FeatureExtractWrapper(model)(x)
        assert not torch.equal(plain[-1], maps[-1])
        assert all(torch.equal(*pair) for pair in zip(extractor(x), plain, strict=True))


def test_a_model_around_a_backbone_is_refused_with_the_part_to_wrap():
    wrapped = Tuner(Tuner(with_adapters("vit_tiny_patch16_224", "qkv")))
    with pytest.raises(ContractError, match=r"Tuner has no levels, but its submodule 'model\.model' has") as error:
        FeatureExtractWrapper(wrapped)
    advice = str(error.value).partition("as in ")[2]
    extractor = eval(advice, {"FeatureExtractWrapper": FeatureExtractWrapper, "model": wrapped})
    assert extractor(images())[0].shape == (2, 192, 4, 6)
