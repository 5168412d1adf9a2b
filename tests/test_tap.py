"""Maps from any modules of any model, and the levels that are proposed for it."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from conftest import images, randomise
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import featx
from featx import ArgumentError, ContractError, InputError
from featx.discover import discover
from featx.tap import Tap, tap
from featx.wrappers.shapes import sides


def conv(chs: int, out: int, stride: int = 1, last: nn.Module | None = None) -> nn.Sequential:
    last = nn.ReLU(inplace=True) if last is None else last
    return nn.Sequential(nn.Conv2d(chs, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), last)


class Branches(nn.Module):
    """No chain: a skip across stages, branches that meet, in-place changes of what was returned, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, 2)
        self.left, self.right = conv(8, 8), conv(8, 8)
        self.down = conv(16, 16, 2, nn.Hardtanh())
        self.deep = conv(16, 24, 2, nn.Identity())
        self.unused = nn.Linear(4, 4)
        self.token = nn.Parameter(torch.ones(1, 24, 1, 1))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        joined = torch.cat([self.left(x), self.right(x)], 1)
        middle = self.down(joined)
        middle += F.avg_pool2d(joined, 2)
        deep = self.deep(middle)
        deep = deep.mul_(self.token)
        return {"logits": self.head(deep.mean((2, 3))), "middle": middle}


class Tokens(nn.Module):
    """A transformer with prefix tokens whose blocks return tuples and whose stages are driven by a loop."""

    def __init__(self, prefix: int = 2, size: int | None = None) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.size, self.prefix = size, nn.Parameter(torch.randn(1, prefix, 16))
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.LayerNorm(16)

    def forward(self, pixels: Tensor) -> Tensor:
        if self.size is not None and tuple(pixels.shape[2:]) != (self.size, self.size):
            raise ValueError(f"only {self.size}")
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)[0]
        return self.norm(x)[:, 0]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, None, Tensor]:
        update = self.mlp(self.norm(x))
        return x + update, None, update


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


def outputs(model: nn.Module, names: list[str], x: Tensor) -> list:
    """What the modules of the intact model return, copied before the model changes it."""
    seen = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: copy.deepcopy(out)})
        )
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return [seen[name] for name in names]


def run(extractor: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return extractor(x)


def assert_same(ours: list[Tensor], reference: list[Tensor]) -> None:
    assert len(ours) == len(reference)
    for a, b in zip(ours, reference, strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def branches() -> nn.Module:
    return randomise(Branches())


@pytest.mark.parametrize("size", [(64, 96), (40, 56)])
@pytest.mark.parametrize("names", [["deep", "stem"], ["down"], ["right", "down", "left"], ["deep.1"]])
def test_maps_are_what_the_modules_return_in_the_order_of_names(branches, names, size):
    x = images(2, 3, *size)
    assert_same(run(tap(branches, names), x), outputs(branches, names, x))


def test_feature_info_is_measured_and_has_the_order_of_names(branches):
    levels = tap(branches, ["deep", "stem"]).feature_info
    assert list(levels) == [featx.FeatureInfo(24, 8, "deep"), featx.FeatureInfo(8, 2, "stem")]


def test_the_model_stays_as_it_is(branches):
    before = {name: (type(module), dict(vars(module))) for name, module in branches.named_modules()}
    tap(branches, ["stem"])
    for name, module in branches.named_modules():
        assert (type(module), dict(vars(module))) == before[name]
        assert not module._forward_hooks


def test_parameters_are_shared_under_the_names_of_the_model(branches):
    own = dict(branches.named_parameters())
    for name, parameter in tap(branches, ["down"]).named_parameters():
        assert parameter is own[name]


@pytest.mark.parametrize(
    ("names", "held"),
    [
        (["stem"], {"stem"}),
        (["right"], {"stem", "right"}),
        (["down"], {"stem", "left", "right", "down"}),
        (["deep"], {"stem", "left", "right", "down", "deep"}),
    ],
)
def test_only_what_the_maps_depend_on_is_held_and_run(branches, names, held):
    extractor = tap(branches, names)
    assert {name.split(".")[0] for name in extractor.state_dict()} == held
    assert extractor.excess == ()
    called = []
    for path, module in extractor.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda *_, path=path: called.append(path))
    run(extractor, images())
    assert {path.split(".")[0] for path in called} == held


@pytest.mark.parametrize("names", [["deep", "stem"], ["right"], ["down"]])
def test_every_parameter_gets_the_gradient_it_has_in_the_model(branches, names):
    branches.train()
    x = images()
    kept = {}
    handles = [
        branches.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: kept.update({name: out.clone()})
        )
        for name in names
    ]
    twin = copy.deepcopy(branches)
    for handle in handles:
        handle.remove()
    twin(x)
    sum(kept[name].square().mean() for name in names).backward()
    expected = {name: parameter.grad for name, parameter in twin.named_parameters() if parameter.grad is not None}
    extractor = tap(branches, names).train()
    sum(map_.square().mean() for map_ in extractor(x)).backward()
    gradients = {name: parameter.grad for name, parameter in extractor.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        # gradients of maps are added up in another order
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_is_independent_and_has_the_same_maps(branches, copied):
    extractor = tap(branches, ["deep", "down"])
    expected = run(extractor, images())
    twin = copied(extractor)
    with torch.no_grad():
        for parameter in extractor.parameters():
            parameter.zero_()
    assert_same(run(twin, images()), expected)
    assert list(twin.state_dict()) == list(extractor.state_dict())


def test_nothing_of_a_forward_stays_referenced(branches):
    extractor = tap(branches, ["down"])
    maps = extractor(images())
    alive = weakref.ref(maps[0])
    del maps
    gc.collect()
    assert alive() is None


def test_what_checkpointing_computes_again_is_not_kept(branches):
    extractor = tap(branches, ["down"]).train()
    (map_,) = checkpoint(extractor, images(), use_reentrant=False)
    map_.mean().backward()
    assert extractor._inner._holder.taken is None


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("names", [["deep", "stem"], ["down"]])
def test_compiles_whole_and_exports_with_the_names_of_the_model(branches, names):
    torch._dynamo.reset()
    extractor = tap(branches, names)
    expected = run(extractor, images())
    assert_same(run(torch.compile(extractor, fullgraph=True, backend="eager"), images()), expected)
    exported = torch.export.export(extractor, (images(),))
    assert_same(run(exported.module(), images()), expected)
    assert exported.state_dict.keys() <= branches.state_dict().keys()


def tokens_of(model: nn.Module, x: Tensor, key: int, prefix: int) -> tuple[Tensor, Tensor]:
    (output,) = outputs(model, ["layers.1"], x)
    grid = [side // 8 for side in x.shape[2:]]
    return output[key][:, :prefix], output[key][:, prefix:].transpose(1, 2).unflatten(2, grid)


@pytest.mark.parametrize("prefix", [0, 1, 5, 12])
@pytest.mark.parametrize("size", [(64, 96), (40, 56)])
def test_tokens_become_grids_and_the_number_of_prefix_tokens_is_found(prefix, size):
    model, x = randomise(Tokens(prefix)), images(2, 3, *size)
    extractor = tap(model, [Tap("layers.1", key=2)], output="tokens")
    ((ahead, map_),) = run(extractor, x)
    expected = tokens_of(model, x, 2, prefix)
    assert torch.equal(ahead, expected[0])
    assert torch.equal(map_, expected[1])
    assert extractor.feature_info[0] == featx.FeatureInfo(16, 8, "layers.1")
    assert {name.split(".")[0] for name in extractor.state_dict()} == {"prefix", "patch", "layers"}


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_few_prefix_tokens_are_found_where_one_size_is_all_a_model_takes(prefix):
    model, x = randomise(Tokens(prefix, size=64)), images(2, 3, 64, 64)
    (map_,) = run(tap(model, [Tap("layers.1", 0)], example=x), x)
    assert torch.equal(map_, tokens_of(model, x, 0, prefix)[1])


def test_many_prefix_tokens_can_be_stated_where_one_size_is_all_a_model_takes():
    model, x = randomise(Tokens(20, size=64)), images(2, 3, 64, 64)
    with pytest.raises(ContractError, match="no map"):
        tap(model, [Tap("layers.1", 0)], example=x)
    (map_,) = run(tap(model, [Tap("layers.1", 0, prefix=20)], example=x), x)
    assert torch.equal(map_, tokens_of(model, x, 0, 20)[1])


def test_channels_last_maps_come_out_with_channels_first_and_entries_of_dictionaries_by_key():
    model, x = randomise(Last()), images()
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
        ([Tap("patch", layout="NHWC")], ContractError, "no map .* with layout='NHWC'"),
        ([Tap("norm", prefix=3)], ContractError, "with prefix=3"),
        (["norm", "norm"], ArgumentError, "tapped twice"),
    ],
)
def test_what_is_no_map_is_refused_with_what_it_is(names, error, words):
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
    with pytest.raises(ContractError, match="which is no map"):
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

    with pytest.raises(ContractError, match=r"state layout=, it may be any of \['NCHW', 'NHWC'\]"):
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
    with pytest.raises(ContractError, match="does not run on meta tensors"):
        tap(model, ["conv"])


def test_a_model_that_needs_values_runs_on_the_example():
    class Needy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = conv(3, 4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 2 if x.mean().item() > 5 else x
            return self.head(self.conv(x).mean((2, 3)))

    model, x = randomise(Needy()), images(2, 3, 32, 48)
    with pytest.raises(ContractError, match="pass example="):
        tap(model, ["conv"])
    before = copy.deepcopy(model.state_dict())
    extractor = tap(model.train(), ["conv"], x)
    assert_same(list(model.state_dict().values()), list(before.values()))
    assert "head.weight" not in extractor.state_dict()
    assert_same(run(extractor.eval(), x), outputs(model.eval(), ["conv"], x))


def test_an_example_that_is_no_batch_of_images_is_refused():
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


def test_what_cannot_be_left_out_is_named_in_excess():
    class Insists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv(3, 8, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.stem(x).mean((2, 3)), self.head.weight, self.head.bias)

    model, x = randomise(Insists()), images()
    extractor = tap(model, ["stem"])
    assert extractor.excess in ((), ("head.weight", "head.bias"))
    assert set(extractor.excess) == {name for name in extractor.state_dict() if name.startswith("head")}
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


def test_levels_are_proposed_and_can_be_tapped(branches):
    proposal = discover(branches, (64, 96))
    assert [(level.name, level.chs, level.reduction) for level in proposal] == [
        ("right", 8, 2),
        ("down", 16, 4),
        ("deep", 24, 8),
    ]
    assert proposal.map_sizes == ((32, 48), (16, 24), (8, 12))
    assert str(proposal).splitlines()[1].split() == ["right", "8", "1/2", "32x48"]
    assert tap(branches, proposal).feature_info.names() == proposal.names()
    assert str(proposal).startswith("  module")


def test_blocks_are_proposed_where_there_is_one_reduction():
    proposal = discover(Tokens(1))
    assert proposal.names() == ["layers.0", "layers.1", "layers.2"]
    x = images(1, 3, 64, 64)
    assert [map_.shape for map_ in run(tap(Tokens(1), proposal), x)] == [(1, 16, 8, 8)] * 3


def test_levels_can_be_sought_within_a_module(branches):
    whole = nn.ModuleDict({"net": branches})
    whole.forward = branches.forward
    assert discover(branches, within="deep").names() == ["deep.2"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"within": "body"}, ArgumentError, "within='body': Branches has no such module"),
        ({"input_size": (8, 8), "example": torch.empty(1, 3, 8, 8)}, ArgumentError, "pass one of them"),
        ({"within": "head"}, ContractError, "no module that returns a map"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(branches, arguments, error, words):
    with pytest.raises(error, match=words):
        discover(branches, **arguments)


@pytest.mark.parametrize("sizes", [[(64, 96), (736, 1440), (135, 129)]])
@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 5, 3, 2, 1),
        nn.Conv2d(3, 5, 4, 4),
        nn.Conv2d(3, 5, 3),
        nn.Upsample(scale_factor=2),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(2),
    ],
    ids=lambda module: type(module).__name__,
)
def test_the_shape_a_module_returns_follows_from_the_one_it_is_given(module, sizes):
    given = [(2, 3, *size) for size in sizes]
    module = module.to("meta")
    found = sides(given, [tuple(module(torch.empty(shape, device="meta")).shape) for shape in given])
    if isinstance(module, nn.Flatten):  # a product of sides is not sought
        assert found is None
        return
    for shape in [(1, 3, 32, 48), (5, 3, 63, 81), (2, 3, 64, 97)]:
        assert [side.of(shape) for side in found] == [*module(torch.empty(shape, device="meta")).shape]
