"""optimize: what it leaves unmodified, which dtypes and memory formats it selects, and its errors."""

import copy

import pytest
import torch
from conftest import COPIES, OneConv, assert_same, images, random_extractor, relative_difference, worst
from torch import nn

import featx
from featx import ArgumentError, ContractError, FeatureExtractWrapper, InputError
from featx.runtime.sample_trace import inference_copy

TOLERANCE = 1e-4  # of the largest value: folding rounds differently in every layer


@pytest.mark.parametrize("name", ["resnet18", "repvgg_a0", "timm/test_byobnet"])
def test_the_original_is_untouched_bit_for_bit(name):
    original = random_extractor(name)
    before, modules = copy.deepcopy(original.state_dict()), [*original.named_modules()]
    with torch.no_grad():
        maps = original(images())
    optimized = featx.optimize(original)
    with torch.no_grad():
        for parameter in optimized.parameters():
            parameter.zero_()
        assert_same(original(images()), maps)
    assert all(torch.equal(before[key], value) for key, value in original.state_dict().items())
    assert [*original.named_modules()] == modules
    assert all(parameter.requires_grad for parameter in original.parameters())


@pytest.mark.parametrize("name", ["resnet50d", "mobilevit_xxs", "timm/test_efficientnet"])
def test_names_of_what_remains_stay(name):
    original = random_extractor(name)
    optimized = featx.optimize(original)
    names = set(original.state_dict())
    added = {key for key in optimized.state_dict() if key not in names}
    assert all(key.endswith(".bias") and key.removesuffix("bias") + "weight" in names for key in added)
    assert set(optimized.feature_info.names()) <= {path for path, _ in original.named_modules()}


def test_branches_of_repvgg_become_one_convolution():
    optimized = featx.optimize(random_extractor("repvgg_a0"))
    assert "stages.0.0.reparam_conv.weight" in optimized.state_dict()
    assert not any("conv_1x1" in name for name in optimized.state_dict())


def test_dropout_and_identities_are_taken_out():
    original = random_extractor("test_efficientnet", drop_path_rate=0.5)
    optimized = featx.optimize(original)
    kinds = [type(module).__name__ for module in original.modules()]
    assert "DropPath" in kinds
    assert "DropPath" not in [type(module).__name__ for module in optimized.modules()]
    assert worst(optimized, original, images()) < TOLERANCE


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("name", ["resnet18", "timm/test_byobnet", "torchvision/resnet18"])
def test_it_can_be_copied_and_pickled(name, copied):
    optimized = featx.optimize(random_extractor(name))
    twin = copied(optimized)
    with torch.no_grad():
        assert_same(twin(images()), optimized(images()))
    assert twin.feature_info == optimized.feature_info


def test_the_order_and_the_choice_of_levels_stay():
    original = random_extractor("resnet18", out_indices=[3, 1])
    optimized = featx.optimize(original)
    assert optimized.feature_info.names() == ["layer3", "layer1"]
    assert worst(optimized, original, images()) < TOLERANCE


@pytest.mark.parametrize("output", ["dict", "tokens"])
def test_the_kind_of_output_stays(output):
    original = random_extractor("vit_wee_patch16_reg1_gap_256", output=output)
    optimized = featx.optimize(original)
    with torch.no_grad():
        ours, reference = (nn.utils.parameters_to_vector(flat(m(images()))) for m in (optimized, original))
    assert relative_difference(ours, reference) < TOLERANCE


def flat(returned):
    values = list(returned.values()) if isinstance(returned, dict) else [t for pair in returned for t in pair]
    return [value.contiguous() for value in values]


def test_the_contract_holds_of_it():
    optimized = featx.optimize(random_extractor("resnet18"))
    assert featx.verify(optimized, values=True).levels == optimized.feature_info


def test_it_stays_in_eval_mode():
    optimized = featx.optimize(random_extractor("resnet18"))
    assert not optimized.train().training
    assert not any(module.training for module in nn.Sequential(optimized).train()[0].modules())


def test_maps_have_the_dtype_asked_for():
    original = random_extractor("resnet18")
    optimized = featx.optimize(original, dtype=torch.bfloat16)
    with torch.no_grad():
        for ours, reference in zip(optimized(images()), original(images()), strict=True):
            assert ours.dtype == torch.bfloat16
            assert torch.cosine_similarity(ours.float().flatten(), reference.flatten(), dim=0) > 0.999


@pytest.mark.parametrize(("asked", "last"), [("channels_last", True), ("contiguous", False), ("auto", True)])
def test_maps_have_the_memory_format_asked_for(asked, last):
    optimized = featx.optimize(random_extractor("resnet18"), memory_format=asked)
    with torch.no_grad():
        maps = optimized(images())
    layout = torch.channels_last if last else torch.contiguous_format
    assert all(map_.is_contiguous(memory_format=layout) for map_ in maps)


@pytest.mark.parametrize(
    ("name", "batch", "last"),
    [("timm/resnest14d", 1, False), ("timm/resnest14d", 4, True), ("resnest14d", 1, True), ("repvgg_a0", 1, True)],
)
def test_the_memory_format_is_the_one_measured_to_be_faster(name, batch, last):
    optimized = featx.optimize(random_extractor(name), example=images(batch, 3, 64, 64))
    wide = next(p for p in optimized.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert wide.is_contiguous(memory_format=torch.channels_last) is last


def test_models_whose_modules_keep_results_are_copied_without_them():
    original = random_extractor("resnet18")
    copied = inference_copy(original)
    own = {id(tensor) for tensor in [*original.parameters(), *original.buffers()]}
    assert own.isdisjoint(id(tensor) for tensor in [*copied.parameters(), *copied.buffers()])


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ArgumentError, match=r"56 modules are in training mode .* call model\.eval\(\)"):
        featx.optimize(random_extractor("resnet18").train())
    partly = random_extractor("resnet18")
    partly.layer3.train()
    with pytest.raises(ArgumentError, match="layer3 first"):
        featx.optimize(partly)


def test_what_is_not_an_extractor_is_refused():
    with pytest.raises(ArgumentError, match=r"takes an extractor, got ResNet: make one with .*features_only=True"):
        featx.optimize(featx.create_model("resnet18").eval())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runtime": "tensorrt"}, "runtime='tensorrt': choose one of"),
        ({"memory_format": "nhwc"}, "memory_format='nhwc': choose 'auto' or one of"),
        ({"memory_format": "nhwc", "runtime": "onnxruntime"}, "memory_format='nhwc': choose 'auto' or one of"),
        ({"dtype": torch.int8}, r"dtype=torch\.int8: choose one of"),
        ({"dtype": "bf16"}, "dtype='bf16': expected a torch.dtype"),
    ],
)
def test_unknown_arguments_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        featx.optimize(random_extractor("resnet18"), **arguments)


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
        featx.optimize(random_extractor("resnet18"), example=example)


class Refuses(OneConv):
    """Supports only images that are not black."""

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
    original = random_extractor(name)
    for optimized in (featx.optimize(copy.deepcopy(original).cuda()), featx.optimize(original).cuda()):
        with torch.no_grad():
            for ours, reference in zip(optimized(images().cuda()), original(images()), strict=True):
                assert relative_difference(ours.cpu(), reference) < 1e-2  # TensorFloat-32


@pytest.mark.usefixtures("tolerant_of_torch")
def test_pytorchs_compiler_and_exporter_take_an_optimized_extractor():
    faster = featx.optimize(random_extractor("test_efficientnet"))
    x = images(2, 3, 64, 64)
    with torch.inference_mode():
        expected = faster(x)
        assert_same(torch.compile(faster, fullgraph=True, backend="eager")(x), expected)
    assert_same(torch.export.export(faster, (x,), strict=False).module()(x), expected)
