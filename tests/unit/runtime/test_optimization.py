"""Optimized extractors: the same maps, from fewer modules."""

import pytest
import torch
from conftest import SMALL_VARIANTS, images, random_extractor, randomize, worst
from support.timm_parity import in_doubles, weights_for
from support.truncation import leave_out_repeats, narrow
from torch import nn

import featx
from featx import FeatureExtractWrapper
from featx.meta_init import init_empty_weights
from featx.necks import FPN, Pipeline

TOLERANCE = 1e-4  # of the largest value: folding rounds differently in every layer
IN_DOUBLES = 1e-10
BRIDGED = ["timm/test_resnet", "timm/test_byobnet", "timm/test_efficientnet", "timm/test_vit", "torchvision/resnet18"]
LARGER = [
    *("timm/densenet121", "timm/repvgg_a0", "timm/mobileone_s0", "timm/levit_128s", "timm/hrnet_w18_small"),
    *("timm/mobilenetv3_small_050", "timm/rexnet_100", "timm/resnest14d", "timm/mobilevit_xxs", "timm/repvit_m0_9"),
    *("timm/fastvit_t8", "timm/inception_v3", "timm/tresnet_m", "timm/nfnet_f0", "timm/resnetv2_50", "timm/dla34"),
    *("timm/ese_vovnet19b_slim_dw", "timm/ghostnet_050", "timm/efficientformerv2_s0", "timm/tiny_vit_5m_224"),
    *(
        "torchvision/mobilenet_v3_small",
        "torchvision/densenet121",
        "torchvision/googlenet",
        "torchvision/regnet_y_400mf",
    ),
    *("torchvision/shufflenet_v2_x0_5", "torchvision/efficientnet_b0", "torchvision/vgg11_bn", "torchvision/swin_t"),
]
TRANSFORMERS = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "convnext": {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]},
}


def of_transformers(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **TRANSFORMERS[kind])
    return FeatureExtractWrapper(randomize(transformers.AutoModel.from_config(config)))


def norms(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("name", SMALL_VARIANTS)
def test_maps_of_native_models_are_those_of_the_original(name):
    original = random_extractor(name)
    optimized = featx.optimize(original)
    assert optimized.feature_info == original.feature_info
    for x in (images(2, 3, 64, 96), images(3, 3, 97, 65, seed=1)):
        assert worst(optimized, original, x) < TOLERANCE
    assert_folded(name, optimized)


def shallow(model):
    """An extractor in float64, in which folding rounds too little to matter, with one block of each kind."""
    leave_out_repeats(model)
    modules = dict(model.named_modules())
    model.load_state_dict(in_doubles(weights_for(model)), assign=True)
    return FeatureExtractWrapper(model.eval(), out_names=[n for n in model.feature_info.names() if n in modules])


@pytest.mark.sweep
@pytest.mark.parametrize("name", featx.list_models())
def test_maps_of_every_variant_are_those_of_the_original(name, code_paths):
    with init_empty_weights():
        model = featx.create_model(name, **narrow(name))
    if code_paths.have("optimized maps", model):
        return
    original = shallow(model)
    optimized = featx.optimize(original)
    assert optimized.feature_info == original.feature_info
    assert worst(optimized, original, images(2, 3, 65, 97).double()) < IN_DOUBLES
    assert_folded(name, optimized)


def assert_folded(name, optimized):
    assert name.startswith(("convnext", "vit")) or not norms(optimized)


@pytest.mark.parametrize("name", BRIDGED)
def test_maps_of_bridged_models_are_those_of_the_original(name):
    original = random_extractor(name)
    optimized = featx.optimize(original)
    assert len(norms(optimized)) < max(1, len(norms(original)))
    size = original._inner.fixed_size or original.data_config.size
    assert worst(optimized, original, images(2, 3, *size)) < TOLERANCE
    assert optimized.feature_info == original.feature_info


@pytest.mark.sweep
@pytest.mark.parametrize("name", LARGER)
def test_maps_of_bridged_models_are_those_of_the_original_in_double_precision(name):
    original = random_extractor(name).double()  # in single precision, some of these differ from themselves by 1e-4
    optimized = featx.optimize(original)
    size = original._inner.fixed_size or original.data_config.size
    assert worst(optimized, original, images(2, 3, *size).double()) < 1e-9


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_maps_of_transformers_models_are_those_of_the_original(kind):
    original = of_transformers(kind)
    optimized = featx.optimize(original)
    assert norms(optimized) == []
    for x in (images(2, 3, 64, 64), images(1, 3, 96, 128)):
        assert worst(optimized, original, x) < TOLERANCE


@pytest.mark.parametrize("name", ["resnet18", "timm/test_byobnet", "timm/test_efficientnet", "torchvision/resnet18"])
def test_every_norm_of_a_convolutional_model_is_folded(name):
    original = random_extractor(name)
    assert norms(original)
    assert norms(featx.optimize(original)) == []


def test_a_pipeline_is_optimized_with_its_necks():
    source = featx.create_model("resnet18", features_only=True, out_indices=[2, 3, 4])
    original = randomize(Pipeline(source, FPN(source.feature_info, 8)))
    optimized = featx.optimize(original)
    assert optimized.feature_info == original.feature_info
    assert optimized.size_divisor == original.size_divisor
    assert optimized.data_config == original.data_config
    assert norms(optimized) == []
    assert worst(optimized, original, images()) < TOLERANCE


class Tapped(nn.Module):
    """A convolution whose output is a map, which later layers also read."""

    feature_info = ({"chs": 4, "reduction": 2, "name": "conv"}, {"chs": 4, "reduction": 2, "name": "act"})

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


@pytest.mark.parametrize("out_indices", [[0, 1], [0], [1]])
def test_a_map_between_convolution_and_norm_stays_what_it_was(out_indices):
    original = FeatureExtractWrapper(randomize(Tapped()), out_indices)
    optimized = featx.optimize(original)
    assert norms(optimized) == (["norm"] if out_indices == [0, 1] else [])
    assert worst(optimized, original, images()) < TOLERANCE


def test_a_tap_between_convolution_and_norm_stays_what_it_was():
    model = randomize(featx.create_model("timm/test_resnet"))
    original = featx.tap(model, ["conv1.0", "layer1.0.conv1", "layer2.0.bn1", "layer4"])
    optimized = featx.optimize(original)
    assert {"conv1.1", "layer1.0.bn1"} <= set(norms(optimized))
    assert "layer2.0.bn1" not in norms(optimized)
    assert worst(optimized, original, images()) < TOLERANCE


class Branches(nn.Module):
    """Pairs of a convolution and a norm that cannot be folded, and one that can."""

    feature_info = ({"chs": 4, "reduction": 1, "name": "out"},)
    is_rewritten = True

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)
        self.out = nn.Identity()
        if kind == "statistics of the batch":
            self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        if kind == "weights that are computed":
            nn.utils.parametrizations.weight_norm(self.conv)

    def forward_features(self, x):
        y = self.conv(x)
        z = self.norm(y)
        if self.kind == "output read twice":
            z = z + self.other(y)
        if self.kind == "output viewed":
            z = z + y.flatten(2).mean(2)[:, :, None, None]
        if self.kind == "convolution run twice":
            z = z + self.conv(2 * x)
        if self.kind == "norm run twice":
            z = self.norm(z)
        if self.kind == "weights read elsewhere":
            z = z + self.conv.weight.mean()
        return [self.out(z)]


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("plain", 0),
        ("output read twice", 2),
        ("output viewed", 1),
        ("convolution run twice", 1),
        ("norm run twice", 1),
        ("weights read elsewhere", 1),
        ("statistics of the batch", 1),
        ("weights that are computed", 1),
    ],
)
def test_what_else_needs_a_convolutions_output_keeps_it_from_being_folded(kind, left):
    original = FeatureExtractWrapper(randomize(Branches(kind)))
    optimized = featx.optimize(original)
    assert len([name for name in norms(optimized) if name == "norm" or kind == "output read twice"]) == left
    assert worst(optimized, original, images()) < TOLERANCE
