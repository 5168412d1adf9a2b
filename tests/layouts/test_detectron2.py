"""ResNets of detectron2, alone and in a detector. Its blocks are restated here, for both places of the stride."""

import pytest
import torch
import torch.nn.functional as F
from conftest import images, randomize, relative_difference, same_state
from torch import Tensor, nn

import featx
from featx import CheckpointError
from featx.weights.convert import inspect
from featx.weights.layout import all_layouts, find_layout

State = dict[str, Tensor]
TOLERANCE = 1e-5  # single precision, the same operations in another order


class NormedConv(nn.Conv2d):
    """A convolution with its norm as a part, which has no counter, as detectron2's frozen norm."""

    def __init__(self, in_chs: int, chs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(in_chs, chs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(chs)
        del self.norm.num_batches_tracked

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(super().forward(input))


class Block(nn.Module):
    """A bottleneck with the stride in its first or second convolution."""

    def __init__(self, in_chs: int, width: int, stride: int, stride_in_1x1: bool) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = NormedConv(in_chs, 4 * width, 1, stride) if in_chs != 4 * width else nn.Identity()
        self.conv1 = NormedConv(in_chs, width, 1, first)
        self.conv2 = NormedConv(width, width, 3, second)
        self.conv3 = NormedConv(width, 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-26: two blocks per stage."""

    def __init__(self, stride_in_1x1: bool) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"conv1": NormedConv(3, 64, 7, 2)})
        self.stem.conv1.padding = (3, 3)
        chs = 64
        for number, stride in ((2, 1), (3, 2), (4, 2), (5, 2)):
            width = 16 << number
            first = Block(chs, width, stride, stride_in_1x1)
            chs = 4 * width
            self.add_module(f"res{number}", nn.Sequential(first, Block(chs, width, 1, stride_in_1x1)))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [F.relu(self.stem.conv1(x))]
        x = F.max_pool2d(maps[0], 3, 2, 1)
        for number in range(2, 6):
            x = self.get_submodule(f"res{number}")(x)
            maps.append(x)
        return maps


def detectron2(stride_in_1x1: bool) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize(ResNet(stride_in_1x1))


def with_counters(state: State) -> State:
    counters = {name.replace("running_var", "num_batches_tracked") for name in state if name.endswith("running_var")}
    return {**state, **{name: torch.tensor(0) for name in counters}}


LAYOUTS = {"detectron2": False, "detectron2-msra": True}


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.bottom_up."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_are_those_of_detectron2(layout, prefix):
    reference = detectron2(LAYOUTS[layout])
    theirs = {f"{prefix}{name}": tensor for name, tensor in with_counters(reference.state_dict()).items()}
    if prefix:
        theirs |= {"backbone.fpn_lateral2.weight": torch.zeros(1), "roi_heads.box_head.fc1.bias": torch.zeros(1)}
        theirs |= {"pixel_mean": torch.zeros(3, 1, 1)}
    extractor = featx.create_model("resnet26", features_only=True, checkpoint_path=theirs, layout=layout).eval()
    x = images(1, 3, 64, 96)
    with torch.no_grad():
        for ours, expected in zip(extractor(x), reference(x), strict=True):
            assert relative_difference(ours, expected) <= TOLERANCE


def test_both_layouts_recognize_bottlenecks_and_loading_asks():
    theirs = with_counters(detectron2(False).state_dict())
    assert {other.system for other in all_layouts() if other.recognizes(theirs)} == {*LAYOUTS}
    with pytest.raises(CheckpointError, match=r"3x3 convolution\) and like 'detectron2-msra' \(.*first 1x1.*layout="):
        featx.create_model("resnet26", features_only=True, checkpoint_path=theirs)
    assert inspect(theirs).systems == {"ResNet": "detectron2 or detectron2-msra"}


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_blocks_that_msra_has_not_are_certain(name):
    from_native = find_layout("detectron2", ["ResNet"]).from_native
    assert from_native is not None
    native = randomize(featx.create_model(name, num_classes=7)).state_dict()
    theirs = from_native(native)
    assert [other.system for other in all_layouts() if other.recognizes(theirs)] == ["detectron2"]
    loaded = featx.create_model(name, num_classes=7, checkpoint_path=theirs)
    assert same_state(loaded.state_dict(), native)
    # the names of converted torchvision weights
    torchvision = {key.replace("linear.", "stem.fc."): tensor for key, tensor in theirs.items()}
    assert same_state(find_layout("detectron2", ["ResNet"]).to_native(torchvision, native.keys()), native)


def test_images_of_msras_weights_are_bgr_of_the_range_of_bytes():
    theirs = with_counters(detectron2(True).state_dict())
    extractor = featx.create_model("resnet26", features_only=True, checkpoint_path=theirs, layout="detectron2-msra")
    config = extractor.data_config
    assert config.channel_order == "bgr"
    pixel = torch.tensor([200.0, 100.0, 50.0])  # red, green and blue
    normalized = (pixel / 255 - torch.tensor(config.mean)) / torch.tensor(config.std)
    assert torch.allclose(normalized, pixel - torch.tensor([123.675, 116.28, 103.53]), atol=1e-3)


@pytest.mark.parametrize("name", ["resnet50d", "seresnet18"])
def test_what_detectron2_has_no_place_for_is_refused(name):
    with torch.device("meta"):
        native = featx.create_model(name).state_dict()
    from_native = find_layout("detectron2", ["ResNet"]).from_native
    assert from_native is not None
    with pytest.raises(CheckpointError, match="detectron2's ResNet has no place for"):
        from_native(native)
