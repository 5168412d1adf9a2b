"""The proof of spatial alignment finds models whose cells are shifted against their pixels, and no others."""

import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from conftest import SMALL
from support.timm_parity import weights_for
from support.truncation import make_shallow, narrow
from torch import Tensor, nn

import featx
from featx import ContractError, FeatureExtractWrapper
from featx.meta_init import init_empty_weights
from featx.place_proof import cell_centers, misplaced, patches, proof_sizes

SIZES = [(64, 64), (64, 96), (96, 64)]
FAST = {"mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "mobilevit_xxs"}
EVERY = [name if name in FAST else pytest.param(name, marks=pytest.mark.sweep) for name in featx.list_models()]


def in_windows(x: Tensor) -> Tensor:
    """The two columns of each window of two change places."""
    return x.unflatten(3, (-1, 2)).flip(4).flatten(3)


def half_rolled(x: Tensor) -> Tensor:
    return x.roll((x.shape[2] // 2, x.shape[3] // 2), (2, 3))


def by_columns(x: Tensor) -> Tensor:
    """Tokens that were put down column by column, read row by row."""
    return x.transpose(2, 3).flatten(2).unflatten(2, x.shape[2:])


def swapped_if_tall(x: Tensor) -> Tensor:
    """Right as long as images are as wide as they are tall."""
    return by_columns(x) if x.shape[2] > x.shape[3] else x


def one_late(x: Tensor) -> Tensor:
    """As if one prefix token too few had been left out."""
    tokens = x.flatten(2)
    return torch.cat([tokens[..., :1], tokens[..., :-1]], 2).unflatten(2, x.shape[2:])


def upside_down(x: Tensor) -> Tensor:
    return x.flip(2)


SCRAMBLES = [in_windows, half_rolled, by_columns, swapped_if_tall, one_late, upside_down]


class Scramble(nn.Module):
    """Moves the cells of a map (N, C, h, w), or of 6x4 tokens (N, 1 + 24, C) after a class token."""

    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return self.move(x)
        if x.shape[1] != 25:  # as the levels are measured
            return x
        cells = self.move(x[:, 1:].transpose(1, 2).unflatten(2, (6, 4)))
        return torch.cat([x[:, :1], cells.flatten(2).transpose(1, 2)], 1)


class Net(nn.Module):
    """A patch embedding and a block of tokens that mixes all of them, whose cells are then moved."""

    is_rewritten = True

    def __init__(self, move: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.feature_info = [{"chs": 16, "reduction": 4, "name": "stem"}, {"chs": 32, "reduction": 16, "name": "block"}]
        self.stem, self.down = nn.Conv2d(3, 16, 7, 4, 3), nn.Conv2d(16, 32, 4, 4)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.scramble = Scramble(move or nn.Identity())

    def forward_features(self, x: Tensor) -> list[Tensor]:
        stem = self.stem(x)
        cells = self.down(stem.relu())
        tokens = self.block(cells.flatten(2).transpose(1, 2))
        return [stem, self.scramble(tokens.transpose(1, 2).unflatten(2, cells.shape[2:]))]


class Plain(nn.Sequential):
    """What `tap` takes maps from."""

    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(16, 32, 3)]
        layers[-1].padding = (1, 1)
        super().__init__(*layers, Scramble(move))


@pytest.mark.parametrize("move", SCRAMBLES)
def test_a_model_that_moves_its_cells_keeps_every_shape_and_is_found(move):
    model = Net(move)
    assert featx.verify(model, [(64, 96)]).places == ()
    with pytest.raises(ContractError, match=r"cells do not lie as the pixels do at 96x64 in block: pixels of cell \("):
        featx.verify(model, [(64, 96)], values=True)


@pytest.mark.parametrize("move", SCRAMBLES)
def test_a_tapped_module_that_moves_its_cells_is_found(move):
    extractor = featx.tap(Plain(move).eval(), ["1", "5"])
    with pytest.raises(ContractError, match=r"cells do not lie as the pixels do at \d+x\d+ in 5: "):
        featx.verify(extractor, [(64, 96)], values=True)


@pytest.mark.parametrize("move", SCRAMBLES)
def test_a_convolutional_model_of_another_package_that_moves_its_cells_is_found(move):
    model = torchvision.models.shufflenet_v2_x0_5()
    model.stage3.append(Scramble(move))
    (found,) = misplaced(FeatureExtractWrapper(model, [2, 3]), [(96, 64)])
    assert found.startswith("cells do not lie as the pixels do at 96x64 in stage3: ")


@pytest.mark.parametrize("move", SCRAMBLES)
def test_tokens_of_another_package_that_move_are_found(move):
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", dynamic_img_size=True)
    model.blocks[-1] = nn.Sequential(model.blocks[-1], Scramble(move))
    (found,) = misplaced(FeatureExtractWrapper(model), [(96, 64)])
    assert found.startswith("cells do not lie as the pixels do at 96x64 in blocks.5: ")


def test_without_a_scramble_all_of_these_pass():
    assert featx.verify(Net(), [(64, 96)], values=True).places == tuple(SIZES)
    extractor = featx.tap(Plain(nn.Identity()).eval(), ["1", "5"])
    assert featx.verify(extractor, [(64, 96)], values=True).places == tuple(SIZES)
    model = torchvision.models.shufflenet_v2_x0_5()
    assert misplaced(FeatureExtractWrapper(model, [2, 3]), SIZES) == []


@pytest.mark.parametrize("name", EVERY)
def test_cells_of_every_variant_lie_as_the_pixels_do(name, code_paths):
    with init_empty_weights():
        model = featx.create_model(name, **narrow(name))
    if code_paths.have("cells lie as the pixels do", model):
        return
    if name not in SMALL:
        make_shallow(model)
    model.load_state_dict(weights_for(model), assign=True)
    extractor = FeatureExtractWrapper(model)
    sizes = proof_sizes(extractor)
    assert len(sizes) == 3
    assert misplaced(extractor, sizes) == []


def test_trained_weights_do_not_matter_and_nothing_is_left_behind():
    extractor = FeatureExtractWrapper(Net()).train()
    for parameter in extractor.parameters():
        parameter.data.zero_()  # no change of an image is to be seen
    before = {name: tensor.clone() for name, tensor in extractor.state_dict().items()}
    random = torch.get_rng_state()
    assert misplaced(extractor, SIZES) == misplaced(extractor, SIZES) == []
    assert torch.equal(torch.get_rng_state(), random)
    assert extractor.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in extractor.state_dict().items())


def test_values_draw_nothing_from_the_generator_of_the_caller():
    model, random = Net(), torch.get_rng_state()
    featx.verify(model, [(64, 96)], values=True)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_of_one_size_is_proven_at_that():
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32)
    assert featx.verify(model, values=True).places == ((32, 32),)


def test_maps_of_convolutions_without_padding_may_start_inside_the_image():
    model = featx.tap(
        nn.Sequential(nn.Conv2d(3, 8, 7, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.MaxPool2d(3, 2)), ["0", "3"]
    )
    assert featx.verify(model, [(96, 64)], values=True).places == tuple(SIZES)


class Tiny(nn.Module):
    """Takes images up to 32 pixels, on which its map has one cell."""

    is_rewritten = True
    feature_info = ({"chs": 4, "reduction": 32, "name": "conv"},)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 32, 32)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        if max(x.shape[2:]) > 32:
            raise featx.InputError("too large")
        return [self.conv(x)]


def test_places_that_cannot_be_compared_are_an_error():
    with pytest.raises(ContractError, match="no size at which every map has two cells along a side"):
        featx.verify(Tiny(), [(32, 32)], values=True)


def test_patches_are_the_corners_and_some_of_the_rest():
    assert sorted(patches((64, 96), 32)) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    found = patches((64, 96), 4)
    assert len({*found}) == len(found) == 8
    assert {(0, 0), (0, 23), (15, 0), (15, 23)} < {*found}


class Convolutions(nn.Sequential):
    """Convolutions in order, each after padding (left, right, top, bottom) with zeros."""

    def __init__(self, *kernels: tuple[int, int, tuple[int, int, int, int]]) -> None:
        super().__init__()
        for kernel, stride, padding in kernels:
            self.append(nn.ZeroPad2d(padding))
            self.append(nn.Conv2d(3, 3, kernel, stride))
        reduction = math.prod(stride for _, stride, _ in kernels)
        self.feature_info = [{"chs": 3, "reduction": reduction, "name": str(len(self) - 1)}]


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        ([(4, 4, (0, 0, 0, 0))], (2.0, 2.0)),  # patches
        ([(3, 2, (1, 1, 1, 1))], (0.5, 0.5)),  # the middle tap is on the first pixel
        ([(3, 2, (0, 1, 1, 0))], (0.5, 1.5)),  # padded on the right alone: on the second one
        ([(3, 2, (1, 1, 1, 1)), (3, 2, (1, 1, 1, 1))], (0.5, 0.5)),
        ([(3, 2, (0, 1, 0, 1)), (3, 2, (0, 1, 0, 1))], (3.5, 3.5)),
    ],
)
def test_cells_look_at_the_middle_taps_of_the_kernels(kernels, expected):
    assert cell_centers(FeatureExtractWrapper(Convolutions(*kernels))) == [expected]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vit_tiny_patch16_224", [8, 8]), ("resnet18", [0.5, 0.5]), ("tf_efficientnet_lite0", [1.5, 3.5])],
)
def test_cells_of_families_look_where_their_paddings_say(name, expected):
    found = cell_centers(featx.create_model(name, features_only=True, out_indices=[0, 1]))
    # half a pixel: the taps of an even kernel and the maximum of a pool are drawn
    assert all(abs(place - true) <= 0.5 for places, true in zip(found, expected, strict=True) for place in places)
