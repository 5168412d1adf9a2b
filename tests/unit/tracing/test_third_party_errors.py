"""The origin of errors: those of third-party code become refusals, and those of featx's own code surface."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torchvision
from conftest import images, randomize
from support.tap_models import outputs, run
from torch import Tensor, nn

import featx
import featx.bridges.timm  # so that monkeypatch finds its files
import featx.bridges.transformers
from featx import ContractError, FeatureExtractWrapper, InputError
from featx.tracing.meta_kernels import RULES
from featx.tracing.placeholders import Placeholder
from featx.tracing.third_party_errors import HOSTS, ThirdPartyError, passed_on, third_party

aten = torch.ops.aten


def broken(*_: Any, **__: Any) -> Any:
    raise NameError("name 'undefined' is not defined")


def tap() -> None:
    featx.tap(torchvision.models.squeezenet1_1(), ["features.3", "features.6"])


def timm_level() -> None:
    featx.create_model("timm/test_resnet", features_only=True, out_indices=[1])


def timm_size() -> None:
    timm_of_one_size()(torch.randn(1, 3, 96, 128))


def timm_of_one_size() -> FeatureExtractWrapper:
    arch = {"depth": 2, "embed_dim": 24, "dynamic_img_size": False}
    return featx.create_model("timm/deit_tiny_patch16_224", features_only=True, **arch)


def timm_rule() -> None:
    featx.create_model("timm/test_resnet", features_only=True)._inner.size_rule(64, 4)


def transformers_model() -> FeatureExtractWrapper:
    import transformers

    sizes = {"hidden_size": 8, "intermediate_size": 16, "image_size": 32, "patch_size": 8}
    config = transformers.ViTConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    return FeatureExtractWrapper(transformers.ViTModel(config).eval(), [0])


def captured() -> None:
    model = featx.create_model("test_efficientnet", features_only=True, out_indices=[1]).eval()
    featx.optimize(model, runtime="onnxruntime", example=torch.rand(2, 3, 64, 64))


def verify() -> None:
    featx.verify(featx.create_model("test_efficientnet"), [(64, 64)])


# Functions that run inside third-party code or in a trial run of it, each with a public call that reaches it.
OWN: list[tuple[str, Callable[[], object]]] = [
    ("featx.tracing.module_trace._Recorder.__torch_dispatch__", tap),
    ("featx.tracing.module_trace._Recorder.enter", tap),
    ("featx.tracing.module_trace._Recorder.leave", tap),
    ("featx.tracing.module_trace.ModuleCall.end", tap),
    ("featx.tracing.module_trace.run_with_meta_rule", tap),
    ("featx.tracing.module_trace.operands", tap),
    ("featx.tracing.copies._tensors", tap),
    ("featx.tracing.survey.trace_modules", tap),
    ("featx.tracing.dependencies._propagate", tap),
    ("featx.tracing.pruning.insert_placeholders", tap),
    ("featx.wrappers.hooked.insert_placeholders", tap),
    ("featx.wrappers.hooked.layout_or_problem", tap),
    ("featx.tracing.placeholders.Placeholder.forward", tap),
    ("featx.tracing.placeholders._zeros", tap),
    ("featx.tracing.execution_order.MetaKernels.__torch_dispatch__", verify),
    ("featx.wrappers.chain.require_map", verify),
    ("featx.bridges.timm_levels.intermediates", timm_level),
    ("featx.bridges.timm_levels.trace_modules", timm_level),
    ("featx.bridges.timm_levels.producers", timm_level),
    ("featx.tracing.pruning.dependencies", timm_level),
    ("featx.bridges.bridged_pyramid.shapes_if_accepted", timm_size),
    ("featx.bridges.timm_map_reader.intermediates", timm_size),
    ("featx.bridges.bridged_pyramid.roundings", timm_rule),
    ("featx.bridges.bridged_pyramid.images_for", timm_rule),
    ("featx.tracing.map_layout.MapLayout.map", transformers_model),
    ("featx.bridges.transformers_levels.shapes_of", transformers_model),
    ("featx.bridges.transformers_map_reader.TransformersMapReader.tensors", transformers_model),
    ("featx.tracing.pruning.computations", transformers_model),
    ("featx.tracing.pruning.Placeholder.forward", transformers_model),
    ("featx.runtime.sample_trace.trace_modules", captured),
    ("featx.tracing.module_trace._Recorder.__torch_dispatch__", captured),
    ("featx.tracing.forward_trace._Operations.__torch_dispatch__", captured),
    ("featx.tracing.forward_trace._Operations.add", captured),
    ("featx.tracing.forward_trace._Functions.__torch_function__", captured),
    ("featx.tracing.forward_trace._Functions._size", captured),
    ("featx.tracing.forward_trace.as_composite", captured),
    ("featx.tracing.program._merge", captured),
    ("featx.tracing.program._generalize", captured),
    ("featx.runtime.onnx.translation._by_schema", captured),
    ("featx.runtime.onnx.translation._Translator._add", captured),
]


@pytest.mark.parametrize(("helper", "call"), OWN, ids=[helper.removeprefix("featx.") for helper, _ in OWN])
def test_an_error_in_featx_surfaces(helper, call, monkeypatch):
    monkeypatch.setattr(helper, broken)
    with pytest.raises(NameError, match="'undefined'"):
        call()


@pytest.mark.parametrize("call", [tap, timm_level])
def test_an_error_in_a_rule_of_shapes_surfaces(call, monkeypatch):
    for operation in (aten.relu.default, aten.native_batch_norm.default, aten.add.Tensor):
        monkeypatch.setitem(RULES, operation, broken)
    monkeypatch.setitem(RULES, aten.convolution.default, broken)
    with pytest.raises(NameError, match="'undefined'"):
        call()


class Raising(nn.Module):
    """One convolution, and an error for images whose height is not `accepted`, or for all images if that is None."""

    feature_info = ({"chs": 4, "reduction": 1, "name": "conv"},)

    def __init__(self, error: Exception, accepted: int | None = None) -> None:
        super().__init__()
        self.conv, self.error, self.accepted = nn.Conv2d(3, 4, 1), error, accepted

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != self.accepted:
            raise self.error
        return self.conv(x)


ERRORS = [
    *(NameError("name 'undefined' is not defined"), TypeError("takes 1 positional argument"), KeyError("size")),
    *(StopIteration("no parameters"), IndexError("out of range"), ZeroDivisionError("division by zero")),
    *(AssertionError("no square"), RuntimeError("shapes differ"), AttributeError("no such layer")),
]


@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
def test_an_error_in_a_model_is_refused_with_its_message(error):
    with pytest.raises(ContractError, match=f"Raising does not run on meta tensors.*{error}.*pass example="):
        featx.tap(Raising(error), ["conv"])
    with pytest.raises(ContractError, match=f"Raising does not run on meta tensors.*{error}"):
        FeatureExtractWrapper(Raising(error))
    (map_,) = run(featx.tap(Raising(error, accepted=224), ["conv"]), torch.randn(1, 3, 224, 224))
    assert map_.shape == (1, 4, 224, 224)


class Pyramidal(featx.Pyramid):
    """A user's own Pyramid."""

    in_chans = 3

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.conv, self.error = nn.Conv2d(3, 4, 1), error
        self.feature_info = featx.features.as_levels([{"chs": 4, "reduction": 1, "name": "conv"}], "Pyramidal")

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        raise self.error

    def unused(self, levels: Sequence[int]) -> list[str]:
        return []


@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
def test_an_error_in_a_users_pyramid_is_refused_with_its_message(error):
    with pytest.raises(ContractError, match=f"does not run on meta tensors.*{error}"):
        featx.verify(Pyramidal(error))
    with pytest.raises(ContractError, match=f"Pyramidal does not run on images .*{error}.*pass example="):
        featx.optimize(FeatureExtractWrapper(Pyramidal(error)).eval())


def test_a_model_of_pytorchs_layers_alone_is_refused_too():
    class Wide(nn.Sequential):
        feature_info = ({"chs": 4, "reduction": 1, "name": "0"},)

    with pytest.raises(ContractError, match="Wide does not run on meta tensors"):
        featx.tap(Wide(nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1)), ["0"])


class Deep(nn.Module):
    """Calls featx's code, which calls an operation that fails."""

    def forward(self, x: Tensor) -> Tensor:
        return passed_on(aten.mm.default, x, x)


def test_an_operation_that_fails_for_a_model_is_the_models_error():
    with pytest.raises(ThirdPartyError) as caught:
        third_party(Deep(), torch.zeros(2, 3))
    assert isinstance(caught.value.original, RuntimeError)
    assert f"{caught.value}" == f"{caught.value.original}"


@pytest.mark.parametrize(
    "error", [InputError("too small"), ContractError("no map"), OSError("disk"), KeyboardInterrupt()]
)
def test_errors_of_featx_and_of_the_machine_are_not_translated(error):
    def raising() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        third_party(raising)
    assert caught.value is error


def test_hosts_are_modules_of_featx():
    for name in HOSTS:
        __import__(name)


def test_a_placeholder_refuses_a_call_without_a_tensor():
    with pytest.raises(ContractError, match="called without a tensor"):
        Placeholder(nn.Linear(3, 3), ())(3)


def hooked(extractor: FeatureExtractWrapper) -> FeatureExtractWrapper:
    def hook(*_: Any) -> None:
        raise TypeError("my hook expects other arguments")

    next(
        module for module in extractor.modules() if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
    ).register_forward_hook(hook)
    return extractor


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: featx.create_model("timm/test_resnet", features_only=True), (64, 96)),
        (lambda: featx.create_model("timm/test_vit", features_only=True), (160, 192)),
        (transformers_model, (32, 48)),
        (lambda: featx.create_model("test_efficientnet", features_only=True), (64, 96)),
    ],
    ids=["timm", "timm transformer", "transformers", "native"],
)
def test_an_error_in_a_users_hook_surfaces(make, size):
    with pytest.raises(TypeError, match="my hook expects other arguments"):
        hooked(make())(torch.randn(1, 3, *size))


# placeholders


class Sines(nn.Module):
    """Positions that are computed from a size, without an input tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, height: int, width: int) -> Tensor:
        return torch.arange(height * width).view(1, 1, height, width) * self.scale


class Positioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.sines, self.head = nn.Conv2d(3, 4, 2, 2), Sines(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x + self.sines(*x.shape[2:]))


def test_a_module_that_gets_no_tensor_is_kept():
    model, x = randomize(Positioned()), images(2, 3, 64, 96)
    extractor = featx.tap(model, ["conv"])
    assert all(map(torch.equal, run(extractor, x), outputs(model, ["conv"], x)))
    assert set(extractor.excess) <= {"sines.scale"}


class Entries(dict):
    """A container that is not registered with PyTorch."""


class Containing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.rest = Pair(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.pair(x)["map"])


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, 2)

    def forward(self, x: Tensor) -> Entries:
        return Entries(map=self.conv(x))


def test_entries_of_containers_of_other_classes_can_be_tapped():
    model, x = randomize(Containing()), images(2, 3, 64, 96)
    (map_,) = run(featx.tap(model, [featx.Tap("pair", key="map")]), x)
    assert torch.equal(map_, model.pair(x)["map"])
