"""Extractors on shifted images: equal to a convolution of smaller stride, and true to the contract."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from conftest import COPIES, images, random_extractor, randomize, relative_difference, same_state
from torch import Tensor, nn

import featx
from featx import ArgumentError, ContractError, FeatureExtractWrapper


class Strided(nn.Module):
    """One convolution with a stride. Weights are small integers, so that sums are exact in any order."""

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, kernel, stride, padding)
        self.feature_info = [{"chs": 4, "reduction": stride, "name": "conv"}]
        for tensor in self.conv.parameters():
            tensor.data = torch.randint(-3, 4, tensor.shape, generator=torch.Generator().manual_seed(0)).float()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def whole_numbers(*shape: int) -> Tensor:
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(1)).float()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "shifts"),
    [(3, 2, 1, 2), (3, 3, 0, 3), (5, 4, 2, 4), (4, 4, 0, 4), (7, 6, 3, 6), (9, 4, 4, 4)],
)
@pytest.mark.parametrize("size", [(36, 48), (37, 45)])
def test_as_many_shifts_as_the_stride_equal_a_convolution_of_stride_1(kernel, stride, padding, shifts, size):
    """Padded on both sides alike, whatever the padding of the strided convolution."""
    net, x = Strided(kernel, stride, padding), whole_numbers(2, 3, *size)
    (fine,) = featx.shifted(FeatureExtractWrapper(net), shifts)(x)
    expected = F.conv2d(x, net.conv.weight, net.conv.bias, padding=(kernel - 1) // 2)
    inner = slice(kernel, min(size) - kernel)  # borders are repeated, not padded with zeros
    assert fine.shape == (2, 4, *size)
    assert torch.equal(fine[:, :, inner, inner], expected[:, :, inner, inner])


@pytest.mark.parametrize(("stride", "shifts"), [(6, 2), (6, 3), (8, 4), (14, 2)])
def test_fewer_shifts_equal_a_convolution_of_the_divided_stride(stride, shifts):
    net, x = Strided(stride, stride, 0), whole_numbers(1, 3, 8 * stride, 6 * stride)
    (fine,) = featx.shifted(FeatureExtractWrapper(net), shifts)(x)
    step = stride // shifts
    before = (stride - step) // 2
    padded = F.pad(x, (before, stride, before, stride), mode="replicate")
    expected = F.conv2d(padded, net.conv.weight, net.conv.bias, stride=step)
    height, width = 8 * shifts, 6 * shifts
    assert torch.equal(fine, expected[:, :, :height, :width])  # at the borders, too


def test_each_run_is_the_extractor_on_a_shifted_image():
    extractor = random_extractor("vit_tiny_patch16_224", out_indices=[1], depth=2)
    x = images(1, 3, 64, 96)
    with torch.no_grad():
        (fine,) = featx.shifted(extractor, 2)(x)
        for down in (0, 1):
            for across in (0, 1):
                moved = F.pad(x, (4, 12, 4, 12), mode="replicate")[:, :, 8 * down :, 8 * across :][:, :, :64, :96]
                assert torch.equal(fine[:, :, down::2, across::2], extractor(moved)[0])


FAMILIES = [
    "vit_tiny_patch16_224",
    pytest.param("vit_tiny_patch16_dinov3_qkvb", marks=pytest.mark.sweep),
    "resnet18",
    "convnext_atto",
    pytest.param("mobilevitv2_050", marks=pytest.mark.sweep),
    pytest.param("mobilenetv3_small_050", marks=pytest.mark.sweep),
    "timm/test_vit",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_contract_holds_with_divided_reductions(name):
    extractor = featx.create_model(name, features_only=True, out_indices=[-1, 1])
    fine = featx.shifted(extractor, 2)
    assert fine.feature_info.reduction() == [reduction // 2 for reduction in extractor.feature_info.reduction()]
    assert fine.feature_info.names() == extractor.feature_info.names()
    assert fine.feature_info.out_indices == extractor.feature_info.out_indices
    proof = featx.verify(fine, [(64, 96), (97, 161)], values=True)
    assert len(proof.places) == 3
    assert same_state(fine.state_dict(), extractor.state_dict())
    assert type(fine.source) is type(extractor.source)


def test_levels_of_several_reductions_are_shifted_each():
    model, x = randomize(featx.create_model("resnet18")), images(1, 3, 64, 64)
    with torch.no_grad():
        maps = featx.shifted(FeatureExtractWrapper(model, [2, 0]), 2)(x)
        for level, map_ in zip((2, 0), maps, strict=True):
            (alone,) = featx.shifted(FeatureExtractWrapper(model, [level]), 2)(x)
            assert torch.equal(map_, alone)


def test_prefix_tokens_are_the_mean_of_all_runs():
    extractor = random_extractor("vit_tiny_patch16_224", out_indices=[1], output="tokens", depth=2)
    x, prefixes = images(1, 3, 64, 96), []
    with torch.no_grad():
        ((prefix, map_),) = featx.shifted(extractor, 2)(x)
        for down in (0, 1):
            for across in (0, 1):
                moved = F.pad(x, (4, 12, 4, 12), mode="replicate")[:, :, 8 * down :, 8 * across :][:, :, :64, :96]
                prefixes.append(extractor(moved)[0][0])
    assert map_.shape == (1, 192, 8, 12)
    assert relative_difference(prefix, torch.stack(prefixes).mean(0)) == 0


def test_a_model_of_one_size_can_be_shifted():
    extractor = featx.create_model("torchvision/vit_b_32", features_only=True, out_indices=[0]).eval()
    fine = featx.shifted(extractor, 2)
    assert fine.fixed_size == extractor.fixed_size == (224, 224)
    with torch.no_grad():
        assert fine(images(1, 3, 224, 224))[0].shape == (1, 768, 14, 14)


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", pytest.param("resnet18", marks=pytest.mark.sweep)])
def test_exported_and_compiled_extractors_compute_the_same(name):
    depth = {"depth": 2} if name.startswith("vit") else {}
    fine, x = featx.shifted(random_extractor(name, out_indices=[1], **depth), 2).eval(), images(2, 3, 65, 99)
    with torch.no_grad():
        expected = fine(x)[0]
        exported = torch.export.export(fine, (x,)).module()
        compiled = torch.compile(fine, backend="eager", fullgraph=True)
        for made in (exported, compiled):
            assert relative_difference(made(x)[0], expected) < 1e-6  # positions: products in another order


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_computes_the_same(copied):
    fine, x = featx.shifted(random_extractor("resnet18", out_indices=[1]), 2).eval(), images(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(copied(fine)(x)[0], fine(x)[0])


def test_weights_load_as_into_the_extractor(tmp_path):
    """Also those of a whole model, whose other tensors are skipped."""
    model = randomize(featx.create_model("resnet18"))
    featx.save(model, tmp_path)
    fine = featx.shifted(featx.create_model("resnet18", features_only=True, out_indices=[1]), 2)
    featx.load_weights(fine, tmp_path)
    assert same_state(fine.state_dict(), FeatureExtractWrapper(model, [1]).state_dict())


def test_channels_last_images_give_channels_last_maps():
    fine = featx.shifted(random_extractor("resnet18", out_indices=[1]), 2).eval()
    with torch.no_grad():
        (map_,) = fine(images(2, 3, 64, 64).to(memory_format=torch.channels_last))
    assert map_.is_contiguous(memory_format=torch.channels_last)


def test_threads_share_a_shifted_extractor():
    fine = featx.shifted(random_extractor("resnet18", out_indices=[1]), 2).eval()
    batches = [images(1, 3, 32 + 16 * seed, 64, seed=seed) for seed in range(6)]
    with torch.no_grad():
        expected = [fine(batch)[0] for batch in batches]

    def run(batch: Tensor) -> Tensor:
        with torch.no_grad():
            return fine(batch)[0]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, batches))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


class Unpadded(Strided):
    """Loses the cells at its borders."""

    def __init__(self) -> None:
        super().__init__(7, 4, 0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda e: featx.shifted(e.source, 2), ArgumentError, "expected an extractor, got ResNet"),
        (lambda e: featx.shifted(e, 1), ArgumentError, "shifts=1: expected the number of shifts .* 2 or more"),
        (lambda e: featx.shifted(e, 3), ArgumentError, r"shifts=3 does not divide the reduction of layer1 \(1/4\)"),
        (
            lambda e: featx.shifted(FeatureExtractWrapper(Unpadded()), 2)(images(1, 3, 32, 32)),
            ContractError,
            "do not divide the image evenly",
        ),
    ],
)
def test_what_cannot_be_shifted_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(random_extractor("resnet18", out_indices=[1]))


def test_an_extractor_of_one_size_that_is_no_whole_number_of_cells_is_refused():
    extractor = copy.copy(random_extractor("resnet18", out_indices=[1]))
    extractor._inner.fixed_size = (30, 32)
    with pytest.raises(ArgumentError, match=r"accepts images of \(30, 32\) alone"):
        featx.shifted(extractor, 2)
