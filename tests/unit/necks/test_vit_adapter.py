"""ViT-Adapter and the adapter of DINOv3: outputs of the published programs, any size, and the contract of extractors.

tests/data/vit_adapter has random weights, images and maps of both programs.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import assert_same, images, randomize, relative_difference
from safetensors.torch import load_file
from torch import Tensor

import featx
from featx import ArgumentError, ContractError, FeatureExtractWrapper
from featx.models.vit import ViT, ViTConfig
from featx.necks import FPN, DINOv3Adapter, Pipeline, ViTAdapter
from featx.necks.vit_adapter_layers import DeformableConfig, resampled
from featx.training import freeze

DATA = Path(__file__).parents[2] / "data/vit_adapter"
TOLERANCE = 1e-5  # single precision, the same operations in another order


def vit(patch: int = 16, **fields: object) -> ViT:
    return ViT(ViTConfig(16, 4, 4, patch, 4 * patch, **fields))


def original(patch: int = 16) -> ViTAdapter:
    return ViTAdapter(vit(patch, class_token=False, global_pool="avg"), DeformableConfig(4), prior_chs=4).eval()


def dinov3(patch: int = 16) -> DINOv3Adapter:
    extractor = FeatureExtractWrapper(vit(patch, norm_maps=True), [0, 1, 2, 3])
    return DINOv3Adapter(extractor, DeformableConfig(4, ratio=0.5), prior_chs=4, drop_path_rate=0.0).eval()


BUILDS = pytest.mark.parametrize("build", [original, dinov3])


@torch.no_grad()
def drawn(adapter: ViTAdapter | DINOv3Adapter) -> ViTAdapter | DINOv3Adapter:
    """Random weights, with points of attention that lie anywhere, and injectors that change the ViT."""
    randomize(adapter)
    for name, parameter in adapter.named_parameters():
        if "sampling_offsets" in name or "gamma" in name:
            parameter.copy_(0.5 * images(*parameter.shape, seed=len(name)))
    return adapter


def part(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(name): tensor for key, tensor in tensors.items() if key.startswith(name)}


def assert_published(adapter: ViTAdapter | DINOv3Adapter, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        maps = FeatureExtractWrapper(adapter)(tensors["input"])
    assert len(maps) == 4
    assert max(relative_difference(map_, tensors[f"map{i}"]) for i, map_ in enumerate(maps)) <= TOLERANCE


def test_maps_are_those_of_the_published_vit_adapter():
    tensors = load_file(DATA / "vit_adapter.safetensors")
    adapter = original()
    adapter.load_state_dict(adapter.convert_state_dict(part("state.", tensors)))
    assert_published(adapter, tensors)


def test_maps_are_those_of_the_published_adapter_of_dinov3():
    tensors = load_file(DATA / "dinov3_adapter.safetensors")
    model = ViT(ViTConfig(16, 4, 4, image_size=64, num_classes=0))
    model.load_state_dict(part("vit.", tensors))
    extractor = FeatureExtractWrapper(model, [0, 1, 2, 3])
    adapter = DINOv3Adapter(extractor, DeformableConfig(4, ratio=0.5), prior_chs=4).eval()
    vit_state = {f"backbone.{name}": tensor for name, tensor in extractor.state_dict().items()}
    adapter.load_state_dict(part("state.", tensors) | vit_state)
    assert_published(adapter, tensors)


@BUILDS
@pytest.mark.parametrize("patch", [14, 16])
def test_levels_are_true_at_every_size(build, patch):
    proven = featx.verify(drawn(build(patch)))
    assert proven.levels.reduction() == [4, 8, 16, 32]
    assert proven.levels.channels() == [16] * 4


@BUILDS
def test_convolutional_cells_far_from_the_border_do_not_depend_on_the_size_of_the_image(build):
    adapter = drawn(build())
    x = images(1, 3, 96, 96)
    with torch.no_grad():
        whole, cropped = adapter.spm(x), adapter.spm(x[:, :, :70, :90])
    assert [tuple(map_.shape[2:]) for map_ in cropped] == [(18, 23), (9, 12), (5, 6), (3, 3)]
    torch.testing.assert_close(cropped[0][:, :, :15, :20], whole[0][:, :, :15, :20])


@pytest.mark.parametrize(("patch", "stride"), [(16, 4), (14, 8), (16, 16), (16, 32), (14, 32)])
def test_resampled_maps_keep_their_places(patch, stride):
    height, width = 97, 130
    cells = [-(-side // patch) for side in (height, width)]
    y, x = torch.meshgrid(*(patch * (torch.arange(count) + 0.5) for count in cells), indexing="ij")
    like = torch.zeros(1, 1, -(-height // stride), -(-width // stride))
    found = resampled(torch.stack([y, x])[None], patch, like, stride)[0]
    for axis, (map_, count) in enumerate(zip(found, cells, strict=True)):
        expected = stride * (torch.arange(map_.shape[axis]) + 0.5)
        expected = expected.clamp(patch / 2, patch * (count - 0.5))  # outside the outer centers, the nearest value
        torch.testing.assert_close(map_, (expected if axis else expected[:, None]).expand_as(map_))


@BUILDS
def test_gradients_reach_every_parameter(build):
    adapter = drawn(build()).train()
    sum(map_.square().mean() for map_ in FeatureExtractWrapper(adapter)(images(2, 3, 64, 80))).backward()
    assert [name for name, p in adapter.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_frozen_vit_stays_as_it_is_while_the_adapter_learns():
    adapter = dinov3().train()
    freeze(adapter.backbone)
    sum(map_.mean() for map_ in FeatureExtractWrapper(adapter)(images(2, 3, 64, 64))).backward()
    assert {name.partition(".")[0] for name, p in adapter.named_parameters() if p.grad is None} == {"backbone"}


@BUILDS
def test_copies_and_threads_give_the_same_maps(build):
    extractor = FeatureExtractWrapper(drawn(build()))
    copied = copy.deepcopy(extractor)
    batches = [images(1, 3, side, 64, seed=side) for side in (64, 80, 97, 33)]
    with torch.no_grad():
        expected = [extractor(x) for x in batches]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(torch.no_grad()(copied), batches * 4))
    for maps, reference in zip(found, expected * 4, strict=True):
        assert_same(maps, reference)


@pytest.mark.sweep
@BUILDS
def test_exports_with_open_sides(build):
    extractor = FeatureExtractWrapper(drawn(build())).eval()
    sides = {2: torch.export.Dim("h", min=64, max=512), 3: torch.export.Dim("w", min=64, max=512)}
    program = torch.export.export(
        extractor, (images(2, 3, 96, 128),), dynamic_shapes=({0: torch.export.Dim("n"), **sides},)
    )
    for shape in ((2, 3, 96, 128), (1, 3, 97, 81)):
        with torch.no_grad():
            maps, expected = program.module()(images(*shape)), extractor(images(*shape))
        assert max(map(relative_difference, maps, expected)) <= TOLERANCE


@pytest.mark.sweep
@pytest.mark.usefixtures("tolerant_of_torch")
def test_compiles_whole():
    extractor = FeatureExtractWrapper(drawn(original()))
    compiled = torch.compile(extractor, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_same(compiled(images(1, 3, 64, 96)), extractor(images(1, 3, 64, 96)))


def test_an_onnx_file_gives_the_maps(tmp_path):
    pytest.importorskip("onnxruntime")
    extractor, x = FeatureExtractWrapper(drawn(dinov3())), images(2, 3, 64, 96)
    featx.export(extractor, tmp_path / "adapter.onnx", example=x)
    with torch.no_grad():
        maps, expected = featx.load_exported(tmp_path / "adapter.onnx")(x), extractor(x)
    assert max(map(relative_difference, maps, expected)) <= TOLERANCE


def test_necks_follow_an_adapter():
    extractor = FeatureExtractWrapper(original(), [0, 1, 2, 3])
    pipeline = Pipeline(extractor, FPN(extractor.feature_info, 8))
    with torch.no_grad():
        maps = pipeline(images(1, 3, 64, 96))
    assert [tuple(map_.shape[1:]) for map_ in maps] == [(8, 16, 24), (8, 8, 12), (8, 4, 6), (8, 2, 3)]


@pytest.mark.parametrize("name", ["timm/test_vit", "vit_tiny_patch16_dinov3_qkvb"])
def test_vits_of_other_classes_and_packages_take_the_adapter_of_dinov3(name):
    if name.startswith("timm/"):
        extractor = featx.create_model(name, features_only=True, out_indices=[0, 1, 2, 3], depth=4)
    else:
        extractor = featx.create_model(name, features_only=True, out_indices=[2, 5, 8, 11])
    heads = 4 if name.startswith("timm/") else 3
    adapter = DINOv3Adapter(extractor, DeformableConfig(heads, ratio=0.5), prior_chs=4).eval()
    assert featx.verify(adapter).levels.reduction() == [4, 8, 16, 32]


def test_refusals_name_what_to_use():
    pyramid = featx.create_model("resnet18", features_only=True, out_indices=[1, 2, 3, 4])
    with pytest.raises(ContractError, match=r"four levels of one reduction[\s\S]*a pyramid already needs FPN instead"):
        DINOv3Adapter(pyramid)
    with pytest.raises(ContractError, match=r"DINOv3Adapter takes an extractor, got ViT: create_model"):
        DINOv3Adapter(vit())
    with pytest.raises(ContractError, match=r"ViTAdapter takes a native ViT.*got ResNet: use DINOv3Adapter"):
        ViTAdapter(featx.create_model("resnet18"))
    with pytest.raises(ContractError, match=r"four equal groups, and .* has 6: use DINOv3Adapter, or a depth"):
        ViTAdapter(featx.create_model("vit_tiny_patch16_224", depth=6))
    with pytest.raises(ArgumentError, match=r"heads=5: 16 channels"):
        ViTAdapter(vit(), DeformableConfig(5))
