"""The fingerprint of an extractor changes with everything that changes its maps, and with nothing else."""

import multiprocessing
from dataclasses import replace
from functools import wraps

import pytest
import torch
import torch.nn.functional as F
from conftest import images, random_extractor, randomize
from torch import nn

import featx
from featx import DataConfig, FeatureExtractWrapper
from featx.runtime.fingerprint import fingerprint
from featx.tracing.forward_trace import record

ACTIVATION = [F.relu]  # what a module of its own would be known by, and a function is not


class Net(nn.Module):
    """A network whose weights do not depend on what it computes."""

    is_rewritten = True
    in_chans = 3

    def __init__(self, **how) -> None:
        super().__init__()
        self.feature_info = [{"chs": 4, "reduction": 4, "name": "conv"}, {"chs": 4, "reduction": 8, "name": "last"}]
        self.conv, self.last = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.register_buffer("table", torch.ones(1), persistent=False)
        randomize(self)
        self.how = {"padding": "zeros", "divisor": 4, "shift": torch.zeros(1), "scale": 1.0, **how}

    def forward_features(self, x):
        height, width = x.shape[2:]
        divisor = self.how["divisor"]
        x = F.pad(x, (0, -width % divisor, 0, -height % divisor))
        x = ACTIVATION[0](self.conv(x) * self.table * self.how["scale"]) + self.how["shift"]
        x = F.max_pool2d(x, 2)
        return [x, self.last(x)]


def net(**how) -> Net:
    torch.manual_seed(0)
    return Net(**how).eval()


def of(model: nn.Module, example=None, **arguments) -> str | None:
    return fingerprint(FeatureExtractWrapper(model, **arguments), example)


def test_models_that_are_alike_have_the_same():
    assert of(net()) == of(net())
    one, other = (fingerprint(random_extractor("mobilevit_xxs"), None) for _ in range(2))
    assert one == other


def heavier(model):
    model.conv.weight.data[0, 0, 0, 0] += 1e-3


def strided(model):
    model.last.stride = (1, 1)


def padded(model):
    model.conv.padding_mode = "reflect"


def buffered(model):
    model.table.mul_(2)


def described(model):
    model.data_config = DataConfig(size=(224, 224), mean=(0.0, 0.0, 0.0))


def renamed(model):
    model.feature_info[0]["name"] = "conv.0"


def hooked(model):
    model.conv.register_forward_hook(lambda _module, _given, output: output + 1)


def patched(model):
    forward = model.forward_features
    model.forward_features = lambda x: [map_ * 2 for map_ in forward(x)]


@pytest.mark.parametrize("change", [heavier, strided, padded, buffered, described, renamed, hooked])
def test_what_changes_maps_or_what_is_reported_of_them_changes_it(change):
    model = net()
    before = of(model)
    change(model)
    assert of(model) not in (None, before)


def test_a_forward_that_reads_tensors_of_another_module_has_none():
    model = net()
    patched(model)
    assert of(model) is None


@pytest.mark.parametrize("how", [{"scale": 1.5}, {"shift": torch.ones(1)}, {"divisor": 32}])
def test_what_no_module_holds_changes_it(how):
    assert of(net(**how)) != of(net())  # 224 pixels are a multiple of 32: an odd size tells


def test_a_function_that_is_another_one_changes_it(monkeypatch):
    before = of(net())
    monkeypatch.setitem(globals(), "ACTIVATION", [F.silu])
    assert of(net()) != before


def test_a_released_class_is_identified_by_its_attributes_alone(monkeypatch):
    monkeypatch.setattr("featx.runtime.fingerprint.record", None)
    model = featx.create_model("resnet18", features_only=True).eval()
    known = fingerprint(model, None)
    assert known is not None
    model.layer1[0].conv1.dilation = (2, 2)
    assert fingerprint(model, None) not in (known, None)


def a_forward(model):
    model.layer1[0].forward = model.layer1[0].conv1.forward


def a_function(model):
    model.layer1[0].act1 = Activation(lambda x: x)


def tensors(model):
    model.layer1[0]._shifts = [torch.ones(1)]


def a_hook(model):
    model.layer1[0].register_forward_hook(lambda *_: None)


class Activation(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


@pytest.mark.parametrize("change", [a_forward, a_function, tensors, a_hook])
def test_what_no_release_identifies_is_recorded(change, monkeypatch):
    recorded = []
    monkeypatch.setattr("featx.runtime.fingerprint.record", lambda *given: recorded.append(given) or record(*given))
    model = featx.create_model("resnet18", features_only=True).eval()
    change(model)
    assert fingerprint(model, None) is not None
    assert len(recorded) == 2


class Callable:
    """A callable object in the place of a method."""

    def __call__(self, x):
        return x


def replaced(self, x):
    return self.conv1(x)


@pytest.mark.parametrize(
    "method",
    [replaced, torch.no_grad()(replaced), staticmethod(lambda x: x), Callable()],
    ids=["function", "wrapped by torch", "static", "no function"],
)
def test_a_method_that_was_replaced_is_recorded(method, monkeypatch):
    model = featx.create_model("resnet18", features_only=True).eval()
    known, block = fingerprint(model, None), type(model.layer1[0])
    monkeypatch.setattr(block, "forward", method)
    assert fingerprint(model, None) not in (known, None)
    monkeypatch.setattr(block, "forward", wraps(block.forward)(lambda self, x: self.conv1(x)))
    assert fingerprint(model, None) not in (known, None)


def test_the_levels_and_the_kind_of_output_change_it():
    ways = [{}, {"out_indices": [1, 0]}, {"out_indices": [1]}, {"output": "dict"}, {"output": "tokens"}]
    assert len({of(net(), **way) for way in ways}) == len(ways)


def test_the_size_of_the_images_changes_it_and_their_number_does_not():
    assert of(net(), images(1, 3, 64, 64)) == of(net(), images(5, 3, 64, 64, seed=1))
    assert of(net(), images(1, 3, 64, 64)) != of(net(), images(1, 3, 64, 96))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_options_of_published_families_change_it(name):
    plain = random_extractor(name)
    other = random_extractor(name, output_stride=16) if name == "resnet18" else random_extractor(name, in_chans=1)
    assert fingerprint(plain, None) != fingerprint(other, None)


def test_other_preprocessing_changes_it():
    one, other = random_extractor("mobilenetv3_small_050"), random_extractor("mobilenetv3_small_050")
    other.source.data_config = replace(other.source.data_config, channel_order="bgr")
    assert fingerprint(one, None) != fingerprint(other, None)


def test_the_code_of_this_package_and_the_versions_of_others_change_it(monkeypatch):
    before = of(net())
    with monkeypatch.context() as patch:
        patch.setattr("featx.runtime.fingerprint._own_code", lambda: "changed")
        assert of(net()) != before
    monkeypatch.setattr("featx.runtime.fingerprint.version", lambda package: "0.0")
    assert of(net()) != before


def test_a_class_without_source_is_not_identified():
    made: dict = {"__name__": "made"}
    exec("from torch import nn\nclass Made(nn.Conv2d): pass", made)
    model = net()
    model.last = made["Made"](4, 4, 3, 2, 1)
    assert of(model.eval()) is None


def test_an_edited_class_has_another(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number in (1, 2):
        (tmp_path / f"edited{number}.py").write_text(
            f"from torch import nn\nclass Conv(nn.Conv2d):\n    def unused(self): return {number}\n"
        )
        module = __import__(f"edited{number}")
        monkeypatch.setattr(module.Conv, "__module__", "edited")
        model = net()
        model.last.__class__ = module.Conv
        monkeypatch.setattr("inspect.getfile", lambda kind, number=number: _file(tmp_path, kind, number))
        found.append(of(model))
    assert None not in found
    assert found[0] != found[1]


def _file(folder, kind, number):
    return str(folder / f"edited{number}.py") if kind.__module__ == "edited" else __file__


def test_tensors_without_values_are_not_identified():
    model = net()
    model.how["shift"] = torch.zeros(1, device="meta")
    assert of(model) is None


def test_another_process_finds_the_same():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_of_net) == _of_net()


def _of_net() -> str | None:
    return of(net())
