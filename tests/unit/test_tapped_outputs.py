"""Tapped modules that return tokens, dictionaries or other layouts, and refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same, images, randomize
from support.tap_models import Reads, Tokens, conv, outputs, run
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import featx
from featx import ArgumentError, ContractError, InputError
from featx.tapped_levels import Tap, tap


class Last(nn.Module):
    """NHWC inside, a dictionary of both resolutions from one module."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.stage = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 12)
        self.both = Both()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.both(self.stage(self.patch(x).permute(0, 2, 3, 1)))


class Both(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"fine": x, "coarse": F.max_pool2d(x.permute(0, 3, 1, 2), 2), "label": x.flatten(1).argmax(1)}


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.rest = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.rest(self.act(self.conv(x))))


def tokens_of(model: nn.Module, x: Tensor, key: int, prefix: int) -> tuple[Tensor, Tensor]:
    (output,) = outputs(model, ["layers.1"], x)
    grid = [side // 8 for side in x.shape[2:]]
    return output[key][:, :prefix], output[key][:, prefix:].transpose(1, 2).unflatten(2, grid)


@pytest.mark.parametrize("prefix", [0, 1, 5, 12])
@pytest.mark.parametrize("size", [(64, 96), (40, 56)])
def test_tokens_become_grids_and_the_number_of_prefix_tokens_is_found(prefix, size):
    model, x = randomize(Tokens(prefix)), images(2, 3, *size)
    extractor = tap(model, [Tap("layers.1", key=2)], output="tokens")
    ((ahead, map_),) = run(extractor, x)
    expected = tokens_of(model, x, 2, prefix)
    assert torch.equal(ahead, expected[0])
    assert torch.equal(map_, expected[1])
    assert extractor.feature_info[0] == featx.FeatureInfo(16, 8, "layers.1")
    assert {name.split(".")[0] for name in extractor.state_dict()} == {"prefix", "patch", "layers"}


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_few_prefix_tokens_are_found_where_one_size_is_all_a_model_takes(prefix):
    model, x = randomize(Tokens(prefix, size=64)), images(2, 3, 64, 64)
    (map_,) = run(tap(model, [Tap("layers.1", 0)], example=x), x)
    assert torch.equal(map_, tokens_of(model, x, 0, prefix)[1])


def test_many_prefix_tokens_can_be_stated_where_one_size_is_all_a_model_takes():
    model, x = randomize(Tokens(20, size=64)), images(2, 3, 64, 64)
    with pytest.raises(ContractError, match="not a map"):
        tap(model, [Tap("layers.1", 0)], example=x)
    (map_,) = run(tap(model, [Tap("layers.1", 0, prefix=20)], example=x), x)
    assert torch.equal(map_, tokens_of(model, x, 0, 20)[1])


def test_channels_last_maps_come_out_with_channels_first_and_entries_of_dictionaries_by_key():
    model, x = randomize(Last()), images()
    fine, coarse = run(tap(model, [Tap("both", "fine"), Tap("both", "coarse")]), x)
    stage, both = outputs(model, ["stage", "both"], x)
    assert_same([fine, coarse], [both["fine"].permute(0, 3, 1, 2), both["coarse"]])
    assert_same(run(tap(model, ["stage"]), x), [stage.permute(0, 3, 1, 2)])


def test_two_maps_of_one_module_are_named_by_their_keys():
    extractor = tap(Last(), [Tap("both", "fine"), Tap("both", "coarse")])
    assert extractor.feature_info.names() == ["both['fine']", "both['coarse']"]
    assert extractor.feature_info.reduction() == [4, 8]


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (["layers.9"], ArgumentError, r"no module 'layers.9'; the closest are \['layers"),
        ("norm", ArgumentError, r"expected a list of paths, such as \['norm'\]"),
        ([], ArgumentError, "at least one path"),
        (["layers"], ContractError, "'layers' is never called"),
        (
            ["layers.0"],
            ContractError,
            r"a tuple of a tensor .*, None, a tensor .*Tap\('layers.0', key=0\); it has \[0, 2\]",
        ),
        ([Tap("layers.0", 1)], ContractError, "it has"),
        ([Tap("layers.0", 7)], ContractError, "it has"),
        ([Tap("norm", "x")], ContractError, "returned a tensor"),
        ([Tap("patch", layout="NHWC")], ContractError, "not a map .* with layout='NHWC'"),
        ([Tap("norm", prefix=3)], ContractError, "with prefix=3"),
        (["norm", "norm"], ArgumentError, "tapped twice"),
    ],
)
def test_an_output_that_is_not_a_map_is_refused_with_a_description(names, error, words):
    with pytest.raises(error, match=words):
        tap(Tokens(), names)


def test_a_module_that_is_called_twice_is_refused():
    with pytest.raises(ContractError, match="'act' is called 2 times"):
        tap(Twice(), ["act"])


@pytest.mark.parametrize("arguments", [{"layout": "NCL"}, {"prefix": -1}, {"prefix": 1, "layout": "NCHW"}])
def test_a_tap_that_cannot_be_is_refused(arguments):
    with pytest.raises(ArgumentError, match="of 'a'"):
        Tap("a", **arguments)


def test_a_pooled_or_fixed_map_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(7), nn.Flatten())
    with pytest.raises(ContractError, match="which is not a map"):
        tap(model, ["1"])


def test_a_layout_that_may_be_either_must_be_stated():
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if tuple(x.shape[2:]) != (32, 32):
                raise ValueError("32 only")
            return self.conv(x)

    with pytest.raises(ContractError, match=r"pass layout= to Tap, because it may be any of \['NCHW', 'NHWC'\]"):
        tap(Square(), ["conv"], images(2, 3, 32, 32))
    extractor = tap(Square(), [Tap("conv", layout="NCHW")], images(2, 3, 32, 32))
    assert extractor.feature_info.channels() == [8]


def test_images_can_be_passed_under_a_name_and_of_any_channels():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(5, 4, 3, 2, 1)

        def forward(self, text: None = None, *, pixels: Tensor) -> Tensor:
            return self.conv(pixels)

    x = images(1, 5, 20, 24)
    model = Named()
    (map_,) = run(tap(model, ["conv"], argument="pixels"), x)
    assert torch.equal(map_, model.conv(x))
    with pytest.raises(ContractError, match=r"does not run on meta tensors .*pass argument=, the name of the one that"):
        tap(model, ["conv"])


def test_a_model_that_needs_values_runs_on_the_example():
    class Needy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = conv(3, 4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 2 if x.mean().item() > 5 else x
            return self.head(self.conv(x).mean((2, 3)))

    model, x = randomize(Needy()), images(2, 3, 32, 48)
    with pytest.raises(ContractError, match="pass example="):
        tap(model, ["conv"])
    before = copy.deepcopy(model.state_dict())
    extractor = tap(model.train(), ["conv"], x)
    assert_same(list(model.state_dict().values()), list(before.values()))
    assert "head.weight" not in extractor.state_dict()
    assert_same(run(extractor.eval(), x), outputs(model.eval(), ["conv"], x))


def test_an_example_that_is_not_a_batch_of_images_is_refused():
    with pytest.raises(InputError, match="example: expected images"):
        tap(Tokens(), ["norm"], images(3, 64, 64))


def test_a_module_that_is_not_called_for_some_images_is_named():
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.large = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.large(x) if x.shape[2] > 20 else x

    extractor = tap(Choosy(), ["large"])
    with pytest.raises(ContractError, match=r"did not call \['large'\] for images of 32x32"):
        extractor(images(1, 3, 32, 32))


def test_parameters_that_are_read_without_need_are_left_out():
    model, x = randomize(Reads()), images()
    extractor = tap(model, ["stem"])
    assert extractor.excess == ()
    assert {name for name, _ in extractor.named_parameters()} == {
        name for name, _ in model.named_parameters() if name.startswith("stem")
    }
    assert_same(run(extractor, x), outputs(model, ["stem"], x))


@pytest.mark.usefixtures("one_process", "tolerant_of_torch")
def test_what_is_left_out_does_not_keep_a_model_from_ddp():
    parallel = DistributedDataParallel(tap(randomize(Reads()), ["stem"]).train())
    for _ in range(2):  # a second step fails if the first left a parameter without a gradient
        parallel(images())[0].mean().backward()


def test_what_cannot_be_left_out_is_named_in_excess():
    class Insists(Reads):
        def forward(self, x: Tensor) -> Tensor:
            parameters = dict(self.head.named_parameters())
            return F.linear(self.stem(x).mean((2, 3)), parameters["weight"], parameters["bias"])

    model, x = randomize(Insists()), images()
    extractor = tap(model, ["stem"])
    assert extractor.excess == ("head.weight", "head.bias")
    assert set(extractor.excess) == {name for name in extractor.state_dict() if name.startswith("head")}
    assert_same(run(extractor, x), outputs(model, ["stem"], x))


class Checks(nn.Module):
    """Takes only a convolution as its head for large images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8, 2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 500 and not isinstance(self.head, nn.Conv2d):
            raise TypeError("expected a convolution")
        return self.head(self.stem(x))


class Sized(nn.Module):
    """Cells of a patch, and how many these are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.conv(x)
        return x.flatten(2), x.shape[2], x.shape[3]


class Shaped(nn.Module):
    """Reshapes tokens to the shape that a module returns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.patch, self.head = conv(3, 8, 2), Sized(), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens, height, width = self.patch(x)
        return self.stem(x).mean((2, 3), keepdim=True) + self.head(tokens.unflatten(2, (height, width)))


@pytest.mark.parametrize("kind", [Checks, Shaped])
def test_what_is_left_out_is_missed_at_no_size(kind):
    model = randomize(kind())
    extractor = tap(model, ["stem"])
    assert extractor.excess == ()
    assert all(name.startswith("stem") for name, _ in extractor.named_parameters())
    for x in (images(1, 3, 224, 224), images(1, 3, 64, 96), images(1, 3, 512, 96)):
        assert_same(run(extractor, x), outputs(model, ["stem"], x))


def test_dropout_in_place_after_a_tap_does_not_reach_it_in_training_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5, inplace=True), nn.Conv2d(4, 4, 3)).train()
    first, _ = tap(model, ["0", "2"])(images())
    assert torch.equal(first, model[0](images()))


def test_random_numbers_of_the_caller_are_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5))
    state = torch.get_rng_state()
    tap(model, ["0"])
    assert torch.equal(torch.get_rng_state(), state)
