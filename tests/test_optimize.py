"""Optimised extractors: the same maps, from fewer modules, and the original as it was."""

import copy
import pickle

import pytest
import torch
from conftest import SMALL, images, randomise, relative_difference
from pairs import in_doubles, weights_for
from shallow import alike, leave_out_repeats, narrow
from torch import nn

import featx
from featx import ArgumentError, ContractError, FeatureExtractWrapper, InputError
from featx.empty import without_values
from featx.necks import FPN, Pipeline
from featx.runtime.watch import copy_of

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


def extractor(name, **arguments):
    torch.manual_seed(0)
    return randomise(featx.create_model(name, features_only=True, **arguments))


def of_transformers(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **TRANSFORMERS[kind])
    return FeatureExtractWrapper(randomise(transformers.AutoModel.from_config(config)))


def norms(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def worst(optimized, original, x):
    pairs = zip(optimized(x), original(x), strict=True)
    return max(relative_difference(ours, reference) for ours, reference in pairs)


@pytest.mark.parametrize("name", SMALL)
def test_maps_of_native_models_are_those_of_the_original(name):
    original = extractor(name)
    optimized = featx.optimize(original)
    assert optimized.feature_info == original.feature_info
    for x in (images(2, 3, 64, 96), images(3, 3, 97, 65, seed=1)):
        assert worst(optimized, original, x) < TOLERANCE
    assert_folded(name, optimized)


def shallow(name):
    """In doubles, where nothing is left of what folding rounds; of blocks alike only the first."""
    with without_values():
        model = featx.create_model(name, **narrow(name))
    leave_out_repeats(model)
    modules = dict(model.named_modules())
    model.load_state_dict(in_doubles(weights_for(model)), assign=True)
    return FeatureExtractWrapper(model.eval(), out_names=[n for n in model.feature_info.names() if n in modules])


@pytest.fixture(scope="module")
def done():
    """Extractors that were compared, on the meta device."""
    return []


@pytest.mark.sweep
@pytest.mark.parametrize("name", featx.list_models())
def test_maps_of_every_variant_are_those_of_the_original(name, done):
    original = shallow(name)
    shapes = copy.deepcopy(original).to("meta")
    if any(alike(shapes, other) for other in done):
        return
    done.append(shapes)
    optimized = featx.optimize(original)
    assert optimized.feature_info == original.feature_info
    assert worst(optimized, original, images(2, 3, 65, 97).double()) < IN_DOUBLES
    assert_folded(name, optimized)


def assert_folded(name, optimized):
    assert name.startswith(("convnext", "vit")) or not norms(optimized)


@pytest.mark.parametrize("name", BRIDGED)
def test_maps_of_bridged_models_are_those_of_the_original(name):
    original = extractor(name)
    optimized = featx.optimize(original)
    assert len(norms(optimized)) < max(1, len(norms(original)))
    size = original._inner.fixed_size or original.data_config.size
    assert worst(optimized, original, images(2, 3, *size)) < TOLERANCE
    assert optimized.feature_info == original.feature_info


@pytest.mark.sweep
@pytest.mark.parametrize("name", LARGER)
def test_maps_of_bridged_models_are_those_of_the_original_in_double_precision(name):
    original = extractor(name).double()  # in single precision, some of these differ from themselves by 1e-4
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
    original = extractor(name)
    assert norms(original)
    assert norms(featx.optimize(original)) == []


class Tapped(nn.Module):
    """A convolution whose output is a map, and read again by what comes after."""

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
    original = FeatureExtractWrapper(randomise(Tapped()), out_indices)
    optimized = featx.optimize(original)
    assert norms(optimized) == (["norm"] if out_indices == [0, 1] else [])
    assert worst(optimized, original, images()) < TOLERANCE


def test_a_tap_between_convolution_and_norm_stays_what_it_was():
    model = randomise(featx.create_model("timm/test_resnet"))
    original = featx.tap(model, ["conv1.0", "layer1.0.conv1", "layer2.0.bn1", "layer4"])
    optimized = featx.optimize(original)
    assert {"conv1.1", "layer1.0.bn1"} <= set(norms(optimized))
    assert "layer2.0.bn1" not in norms(optimized)
    assert worst(optimized, original, images()) < TOLERANCE


class Branches(nn.Module):
    """Pairs of convolution and norm that cannot be folded, and one that can."""

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
    original = FeatureExtractWrapper(randomise(Branches(kind)))
    optimized = featx.optimize(original)
    assert len([name for name in norms(optimized) if name == "norm" or kind == "output read twice"]) == left
    assert worst(optimized, original, images()) < TOLERANCE


@pytest.mark.parametrize("name", ["resnet18", "repvgg_a0", "timm/test_byobnet"])
def test_the_original_is_untouched_bit_for_bit(name):
    original = extractor(name)
    before, modules = copy.deepcopy(original.state_dict()), [*original.named_modules()]
    with torch.no_grad():
        maps = original(images())
    optimized = featx.optimize(original)
    with torch.no_grad():
        for parameter in optimized.parameters():
            parameter.zero_()
        assert all(torch.equal(a, b) for a, b in zip(original(images()), maps, strict=True))
    assert all(torch.equal(before[key], value) for key, value in original.state_dict().items())
    assert [*original.named_modules()] == modules
    assert all(parameter.requires_grad for parameter in original.parameters())


@pytest.mark.parametrize("name", ["resnet50d", "mobilevit_xxs", "timm/test_efficientnet"])
def test_names_of_what_remains_stay(name):
    original = extractor(name)
    optimized = featx.optimize(original)
    names = set(original.state_dict())
    added = {key for key in optimized.state_dict() if key not in names}
    assert all(key.endswith(".bias") and key.removesuffix("bias") + "weight" in names for key in added)
    assert set(optimized.feature_info.names()) <= {path for path, _ in original.named_modules()}


def test_branches_of_repvgg_become_one_convolution():
    optimized = featx.optimize(extractor("repvgg_a0"))
    assert "stages.0.0.reparam_conv.weight" in optimized.state_dict()
    assert not any("conv_1x1" in name for name in optimized.state_dict())


def test_dropout_and_identities_are_taken_out():
    original = extractor("test_efficientnet", drop_path_rate=0.5)
    optimized = featx.optimize(original)
    kinds = [type(module).__name__ for module in original.modules()]
    assert "DropPath" in kinds
    assert "DropPath" not in [type(module).__name__ for module in optimized.modules()]
    assert worst(optimized, original, images()) < TOLERANCE


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", ["resnet18", "timm/test_byobnet", "torchvision/resnet18"])
def test_it_can_be_copied_and_pickled(name, copied):
    optimized = featx.optimize(extractor(name))
    twin = copied(optimized)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(twin(images()), optimized(images()), strict=True))
    assert twin.feature_info == optimized.feature_info


def test_the_order_and_the_choice_of_levels_stay():
    original = extractor("resnet18", out_indices=[3, 1])
    optimized = featx.optimize(original)
    assert optimized.feature_info.names() == ["layer3", "layer1"]
    assert worst(optimized, original, images()) < TOLERANCE


@pytest.mark.parametrize("output", ["dict", "tokens"])
def test_the_kind_of_output_stays(output):
    original = extractor("vit_wee_patch16_reg1_gap_256", output=output)
    optimized = featx.optimize(original)
    with torch.no_grad():
        ours, reference = (nn.utils.parameters_to_vector(flat(m(images()))) for m in (optimized, original))
    assert relative_difference(ours, reference) < TOLERANCE


def flat(returned):
    values = list(returned.values()) if isinstance(returned, dict) else [t for pair in returned for t in pair]
    return [value.contiguous() for value in values]


def test_a_pipeline_is_optimised_with_its_necks():
    source = featx.create_model("resnet18", features_only=True, out_indices=[2, 3, 4])
    original = randomise(Pipeline(source, FPN(source.feature_info, 8)))
    optimized = featx.optimize(original)
    assert optimized.feature_info == original.feature_info
    assert optimized.size_divisor == original.size_divisor
    assert optimized.data_config == original.data_config
    assert norms(optimized) == []
    assert worst(optimized, original, images()) < TOLERANCE


def test_the_contract_holds_of_it():
    optimized = featx.optimize(extractor("resnet18"))
    assert featx.verify(optimized, values=True).levels == optimized.feature_info


def test_it_stays_in_eval_mode():
    optimized = featx.optimize(extractor("resnet18"))
    assert not optimized.train().training
    assert not any(module.training for module in nn.Sequential(optimized).train()[0].modules())


def test_maps_have_the_dtype_asked_for():
    original = extractor("resnet18")
    optimized = featx.optimize(original, dtype=torch.bfloat16)
    with torch.no_grad():
        for ours, reference in zip(optimized(images()), original(images()), strict=True):
            assert ours.dtype == torch.bfloat16
            assert torch.cosine_similarity(ours.float().flatten(), reference.flatten(), dim=0) > 0.999


@pytest.mark.parametrize(("asked", "last"), [("channels_last", True), ("contiguous", False), ("auto", True)])
def test_maps_have_the_memory_format_asked_for(asked, last):
    optimized = featx.optimize(extractor("resnet18"), memory_format=asked)
    with torch.no_grad():
        maps = optimized(images())
    layout = torch.channels_last if last else torch.contiguous_format
    assert all(map_.is_contiguous(memory_format=layout) for map_ in maps)


@pytest.mark.parametrize(
    ("name", "batch", "last"),
    [("repvgg_a0", 1, False), ("repvgg_a0", 16, True), ("resnest14d", 1, False), ("resnet18", 1, True)],
)
def test_the_memory_format_is_the_one_measured_to_be_faster(name, batch, last):
    optimized = featx.optimize(extractor(name), example=images(batch, 3, 64, 64))
    wide = next(p for p in optimized.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert wide.is_contiguous(memory_format=torch.channels_last) is last


def test_models_whose_modules_keep_results_are_copied_without_them():
    original = extractor("resnet18")
    copied = copy_of(original)
    own = {id(tensor) for tensor in [*original.parameters(), *original.buffers()]}
    assert own.isdisjoint(id(tensor) for tensor in [*copied.parameters(), *copied.buffers()])


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ArgumentError, match=r"56 modules are in training mode .* call model\.eval\(\)"):
        featx.optimize(extractor("resnet18").train())
    partly = extractor("resnet18")
    partly.layer3.train()
    with pytest.raises(ArgumentError, match="layer3 first"):
        featx.optimize(partly)


def test_what_is_no_extractor_is_refused():
    with pytest.raises(ArgumentError, match=r"takes an extractor, got ResNet: make one with .*features_only=True"):
        featx.optimize(featx.create_model("resnet18").eval())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runtime": "tensorrt"}, "runtime='tensorrt': choose one of"),
        ({"memory_format": "nhwc"}, "memory_format='nhwc': choose 'auto' or one of"),
        ({"dtype": torch.int8}, r"dtype=torch\.int8: choose one of"),
        ({"dtype": "bf16"}, "dtype='bf16': choose one of"),
    ],
)
def test_unknown_arguments_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        featx.optimize(extractor("resnet18"), **arguments)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(3, 64, 64), r"expected images \(N, C, H, W\), got shape \(3, 64, 64\)"),
        (torch.zeros(1, 4, 64, 64), "expected 3 channels on axis 1"),
        ([1], "expected a tensor"),
    ],
)
def test_examples_that_are_no_images_for_the_model_are_refused(example, message):
    with pytest.raises(InputError, match=message):
        featx.optimize(extractor("resnet18"), example=example)


class Refuses(nn.Module):
    """Takes only images that are not black."""

    feature_info = ({"chs": 4, "reduction": 1, "name": "conv"},)
    is_rewritten = True

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward_features(self, x):
        if not x.any():
            raise ValueError("black")
        return [self.conv(x)]


def test_a_model_that_does_not_run_is_refused_and_an_example_helps():
    original = FeatureExtractWrapper(Refuses().eval())
    with pytest.raises(ContractError, match=r"Refuses does not run on images \(1, 3, 224, 224\) \(black\): pass exa"):
        featx.optimize(original)
    assert worst(featx.optimize(original, example=images()), original, images()) < TOLERANCE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["resnet18", "timm/test_byobnet"])
def test_it_works_on_a_gpu_whether_moved_before_or_after(name):
    original = extractor(name)
    for optimized in (featx.optimize(copy.deepcopy(original).cuda()), featx.optimize(original).cuda()):
        with torch.no_grad():
            for ours, reference in zip(optimized(images().cuda()), original(images()), strict=True):
                assert relative_difference(ours.cpu(), reference) < 1e-2  # TensorFloat-32
