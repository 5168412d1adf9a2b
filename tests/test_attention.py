"""capture_attention: its maps are those of the definition, its gradients autograd's, and the model notices nothing."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, images, randomise, relative_difference
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import featx
from featx import ArgumentError, ContractError, InputError
from featx.attention import capture_attention
from featx.attention.watch import Watch

WITHOUT = [name for name in SMALL if not name.startswith(("vit", "mobilevit"))]
WITH = [name for name in SMALL if name not in WITHOUT]


@pytest.fixture(autouse=True)
def same_weights_every_time():
    torch.manual_seed(0)


def tiny_vit(**arch):
    return randomise(featx.create_model("vit_tiny_patch16_224", **{"dim": 48, "depth": 3, "image_size": 64, **arch}))


class StepByStep(TorchFunctionMode):
    """Attention as the paper writes it, its weights kept with their graph: what autograd says of them."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        weights.requires_grad_()
        self.maps.append(weights)
        return weights @ v


def inputs_of(model: nn.Module, path: str, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


def by_hand(attention: nn.Module, x: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(dim)) of a plain module, element by element of its projection's rows."""
    heads, dim = attention.heads, x.shape[-1]
    q, k, _ = (x @ attention.qkv.weight.T + attention.qkv.bias).split(dim, dim=-1)
    size = dim // heads
    rows = []
    for head in range(heads):
        chosen = slice(head * size, (head + 1) * size)
        scores = torch.einsum("bqc,bkc->bqk", q[..., chosen], k[..., chosen]) / size**0.5
        raised = scores.exp()
        rows.append(raised / raised.sum(-1, keepdim=True))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("arch", [{}, {"registers": 4}, {"class_token": False, "global_pool": "avg"}])
def test_maps_are_those_of_the_definition(arch):
    model, x = tiny_vit(**arch).double(), images(2, 3, 64, 80).double()
    with torch.no_grad(), capture_attention(model) as seen:
        model(x)
    assert list(seen.maps) == ["blocks.0", "blocks.1", "blocks.2"]
    for name, map_ in seen.maps.items():
        expected = by_hand(model.get_submodule(f"{name}.attn"), inputs_of(model, f"{name}.attn", x))
        assert map_.shape == (2, 3, *2 * [20 + model.num_prefix_tokens])
        assert relative_difference(map_, expected) <= 1e-12  # fp64


def test_maps_of_mobilevit_stand_per_pixel_of_a_patch():
    model, x = randomise(featx.create_model("mobilevit_xxs")).double(), images(2, 3, 128, 96).double()
    block = "stages.3.1.transformer.0"
    with torch.no_grad(), capture_attention(model, [block]) as seen:
        model(x)
    expected = by_hand(model.get_submodule(f"{block}.attn"), inputs_of(model, f"{block}.attn", x))
    assert seen.maps[block].shape == (2 * 4, 4, 12, 12)
    assert relative_difference(seen.maps[block], expected) <= 1e-12  # fp64


def test_maps_of_mobilevit_come_as_a_grid_of_pixels():
    model, x = randomise(featx.create_model("mobilevit_xxs")), images(2, 3, 128, 96)
    block = "stages.3.1.transformer.0"
    with torch.no_grad(), capture_attention(model, [block]) as seen:
        model(x)
    grid = seen.grid(block, (4, 3))  # the map has 8x6 pixels, in patches of 2x2
    assert grid.shape == (2, 4, 8 * 6, 4, 3)
    for row, column in ((0, 0), (3, 4), (7, 1)):
        position, cell = row % 2 * 2 + column % 2, row // 2 * 3 + column // 2
        for n in range(2):
            assert torch.equal(grid[n, :, row * 6 + column].flatten(1), seen.maps[block][n * 4 + position, :, cell])


def test_scores_of_mobilevitv2_are_one_per_patch_and_pixel():
    model, x = randomise(featx.create_model("mobilevitv2_050")).double(), images(2, 3, 128, 96).double()
    block = "stages.3.1.transformer.1"
    with torch.no_grad(), capture_attention(model) as seen:
        model(x)
    attention = model.get_submodule(f"{block}.attn")
    query = F.conv2d(inputs_of(model, f"{block}.attn", x), attention.qkv_proj.weight[:1], attention.qkv_proj.bias[:1])
    raised = query.exp()
    assert len(seen.maps) == 9
    assert seen.maps[block].shape == (2, 1, 4, 12)
    assert relative_difference(seen.maps[block], raised / raised.sum(-1, keepdim=True)) <= 1e-12  # fp64
    assert seen.grid(block, (4, 3)).shape == (2, 1, 4, 4, 3)


def test_a_grid_leaves_prefix_tokens_out_of_the_keys():
    model = tiny_vit(registers=4)
    with torch.no_grad(), capture_attention(model, [0]) as seen:
        model(images(2, 3, 64, 80))
    grid = seen.grid("blocks.0", (4, 5))
    assert grid.shape == (2, 3, 25, 4, 5)
    assert torch.equal(grid.flatten(-2), seen.maps["blocks.0"][..., 5:])
    with pytest.raises(InputError, match="has 25 keys, which are no grid of 6x5"):
        seen.grid("blocks.0", (6, 5))


@pytest.mark.parametrize("name", WITH)
@pytest.mark.parametrize("gradients", [False, True])
def test_the_numbers_of_the_forward_stay_the_same_bit_for_bit(name, gradients):
    model, x = randomise(featx.create_model(name)), images(1, 3, 64, 96)
    expected = model(x)
    with capture_attention(model, gradients=gradients) as seen:
        assert torch.equal(model(x), expected)
    assert all(relative_difference(map_.sum(-1), torch.ones(map_.shape[:-1])) <= 1e-5 for map_ in seen.maps.values())
    assert torch.equal(model(x), expected)


def test_parameters_get_the_same_gradients_bit_for_bit():
    model, x, found = tiny_vit(), images(2, 3, 64, 64), []
    for gradients in (None, False, True):
        model.zero_grad()
        if gradients is None:
            model(x).square().sum().backward()
        else:
            with capture_attention(model, gradients=gradients):
                model(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found, strict=True))


@pytest.mark.parametrize("out_indices", [None, [0, 1]])
def test_extractors_are_captured_under_the_same_names(out_indices):
    model, x = tiny_vit(), images(1, 3, 64, 64)
    extractor = featx.FeatureExtractWrapper(model, out_indices)
    with torch.no_grad():
        with capture_attention(model) as whole:
            model(x)
        maps = extractor(x)
        with capture_attention(extractor) as seen:
            captured = extractor(x)
    assert list(seen.maps) == [f"blocks.{i}" for i in out_indices or range(3)]
    assert all(torch.equal(map_, whole.maps[name]) for name, map_ in seen.maps.items())
    assert all(torch.equal(a, b) for a, b in zip(maps, captured, strict=True))


@pytest.mark.parametrize(
    ("blocks", "names"),
    [
        ([-1, 0], ["blocks.0", "blocks.2"]),
        (["blocks.1"], ["blocks.1"]),
        (["blocks.1.attn", -3], ["blocks.0", "blocks.1"]),
        (None, ["blocks.0", "blocks.1", "blocks.2"]),
    ],
)
def test_blocks_are_chosen_by_number_and_name(blocks, names):
    model = tiny_vit()
    with torch.no_grad(), capture_attention(model, blocks) as seen:
        model(images(1, 3, 64, 64))
    assert sorted(seen.maps) == names


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [
        ([3], r"there is no block 3\. Those with attention are:\n  0: blocks\.0\n"),
        (["blocks.9"], "there is no block 'blocks.9'"),
        ([0, "blocks.0"], "asks for a block twice"),
        ([True], "True is neither a number nor a name"),
        ([0.5], "0.5 is neither a number nor a name"),
        (-1, "expected None for all, or numbers and names in a list"),
        ("blocks.0", "expected None for all, or numbers and names in a list"),
        ([], "expected None for all, or numbers and names in a list"),
    ],
)
def test_blocks_that_do_not_exist_are_named(blocks, problem):
    with pytest.raises(ArgumentError, match=problem), capture_attention(tiny_vit(), blocks):
        pass


@pytest.mark.parametrize("name", WITHOUT)
def test_a_model_without_attention_says_what_it_has(name):
    with pytest.raises(ContractError, match=r"has no attention among tokens .*: it") as error:
        capture_attention(featx.create_model(name)).__enter__()
    assert ("Conv2d" in str(error.value)) != ("Attention have no map" in str(error.value))


def test_channel_attention_is_not_taken_for_attention_among_tokens():
    with pytest.raises(ContractError, match=r"its .*EfficientChannelAttention have no map that could be proven"):
        capture_attention(featx.create_model("ecaresnet26t")).__enter__()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilevit_xxs", "mobilevitv2_050"])
def test_gradients_are_those_of_autograd(name, frozen):
    arch = {"dim": 48, "depth": 3, "image_size": 64} if name.startswith("vit") else {}
    model, x = randomise(featx.create_model(name, **arch)).double(), images(2, 3, 64, 80).double()
    model.requires_grad_(not frozen)
    with capture_attention(model, gradients=True) as seen:
        model(x)[:, 3].square().sum().backward()
    if name.startswith("mobilevitv2"):
        expected = separable_gradients(model, x)
    else:
        with StepByStep() as reference:
            loss = model(x)[:, 3].square().sum()
        expected = torch.autograd.grad(loss, reference.maps)
    assert len(seen.gradients) == len(expected) > 0
    for got, wanted in zip(seen.gradients.values(), expected, strict=True):
        assert relative_difference(got, wanted) <= 1e-10  # fp64
    assert frozen == all(parameter.grad is None for parameter in model.parameters())


def separable_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    kept: list[Tensor] = []

    def keep(_, inputs):
        kept.append(inputs[0].requires_grad_())

    handles = [m.attn_drop.register_forward_pre_hook(keep) for m in model.modules() if hasattr(m, "attn_drop")]
    loss = model(x)[:, 3].square().sum()
    for handle in handles:
        handle.remove()
    return list(torch.autograd.grad(loss, kept))


def test_gradients_come_also_after_the_block():
    model, x = tiny_vit(), images(1, 3, 64, 64)
    with capture_attention(model, [1], gradients=True) as seen:
        loss = model(x).square().sum()
    assert seen.gradients == {}
    loss.backward()
    assert seen.gradients["blocks.1"].shape == seen.maps["blocks.1"].shape


def test_a_new_forward_leaves_no_stale_gradient():
    model, x = tiny_vit(), images(1, 3, 64, 64)
    with capture_attention(model, [1], gradients=True) as seen:
        first = model(x).square().sum()
        first.backward(retain_graph=True)
        second = model(2 * x).square().sum()
        assert seen.gradients == {}
        first.backward()  # of a map that is no longer kept
        assert seen.gradients == {}
        second.backward()
        assert list(seen.gradients) == ["blocks.1"]


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_without_autograd_are_refused(off):
    model, x = tiny_vit(), images(1, 3, 64, 64)
    with capture_attention(model, gradients=True), off(), pytest.raises(ArgumentError, match="runs without autograd"):
        model(x)
    with off(), capture_attention(model) as seen:
        model(x)
    assert len(seen.maps) == 3


def test_gradients_of_weights_that_a_kernel_drops_are_refused():
    model = tiny_vit(attn_drop_rate=0.1).train()
    with capture_attention(model, gradients=True), pytest.raises(ArgumentError, match=r"drops weights \(rate 0\.1\)"):
        model(images(1, 3, 64, 64))


def test_maps_are_before_dropout():
    model, x = tiny_vit(attn_drop_rate=0.5), images(1, 3, 64, 64)
    with torch.no_grad(), capture_attention(model, [0]) as expected:
        model(x)
    with torch.no_grad(), capture_attention(model.train(), [0]) as seen:
        model(x)
    assert torch.equal(seen.maps["blocks.0"], expected.maps["blocks.0"])


class Checkpointed(nn.Module):
    """A model whose blocks are run once more in the backward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.runs = model, 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.model._tokens(self.model.patch_embed(x))
        for block in self.model.blocks:
            x = checkpoint(self.run, block, x, use_reentrant=False)
        return self.model.forward_head(self.model.norm(x))

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        self.runs += 1
        return block(x)


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_blocks_are_captured_once(frozen):
    model, x = tiny_vit().requires_grad_(not frozen), images(1, 3, 64, 64)
    with capture_attention(model, gradients=True) as expected:
        model(x).square().sum().backward()
    wrapped = Checkpointed(model)
    with capture_attention(wrapped, gradients=True) as seen:
        output = wrapped(x)
        maps = dict(seen.maps)
        output.square().sum().backward()
    assert wrapped.runs == 6
    assert all(seen.maps[name] is map_ for name, map_ in maps.items())
    for name, gradient in expected.gradients.items():
        assert torch.equal(seen.gradients[f"model.{name}"], gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_of_low_precision_are_exact_for_the_queries_and_keys_it_has(dtype):
    model, x = tiny_vit().to(dtype), images(1, 3, 64, 64).to(dtype)
    expected = model(x)
    with capture_attention(model, [0], gradients=True) as seen:
        output = model(x)
        output.float().sum().backward()
    attention = model.blocks[0].attn
    qkv = attention.qkv(inputs_of(model, "blocks.0.attn", x)).double()
    q, k, _ = qkv.unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
    assert torch.equal(output, expected)
    assert seen.maps["blocks.0"].dtype == seen.gradients["blocks.0"].dtype == torch.float32
    assert relative_difference(seen.maps["blocks.0"].double(), (q @ k.mT / 4).softmax(-1)) <= 1e-6  # fp32


def test_autocast_is_captured_as_it_computes():
    model, x = tiny_vit(), images(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with capture_attention(model, [-1]) as seen:
            assert torch.equal(model(x), expected)
    with torch.no_grad(), capture_attention(model, [-1]) as precise:
        model(x)
    assert seen.maps["blocks.2"].dtype == torch.float32
    assert relative_difference(seen.maps["blocks.2"], precise.maps["blocks.2"]) <= 0.2  # of random weights, in bf16
    assert not torch.equal(seen.maps["blocks.2"], precise.maps["blocks.2"])


def test_what_autocast_rounds_on_its_way_into_the_kernel_is_rounded_in_the_map():
    q, k, v = (images(2, 3, 5, 8, seed=n) for n in range(3))
    model = nn.Sequential(Own())
    with torch.autocast("cpu", torch.bfloat16), capture_attention(model, ["0"]) as seen:
        assert model((q, k, v)).dtype == torch.bfloat16
    expected = (q.bfloat16().double() @ k.bfloat16().double().mT / 8**0.5).softmax(-1)
    assert relative_difference(seen.maps["0"].double(), expected) <= 1e-6  # fp32


class Own(nn.Module):
    """A user's module that calls the kernel, with whatever it is told."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.options = options

    def forward(self, qkv):
        return F.scaled_dot_product_attention(*qkv, **self.options)


BOOL = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("options", "scores_of"),
    [
        ({}, lambda s: s / 8**0.5),
        ({"scale": 0.7}, lambda s: s * 0.7),
        ({"is_causal": True}, lambda s: (s / 8**0.5).masked_fill(torch.ones(4, 5).triu(1).bool(), -torch.inf)),
        ({"attn_mask": BOOL}, lambda s: (s / 8**0.5).masked_fill(~BOOL, -torch.inf)),
        ({"attn_mask": images(2, 1, 4, 5).double()}, lambda s: s / 8**0.5 + images(2, 1, 4, 5).double()),
    ],
)
def test_masks_and_scales_enter_the_map(options, scores_of):
    model = Own(**options)
    q, k, v = (images(2, 3, n, 8, seed=n).double().requires_grad_() for n in (4, 5, 5))
    weights = scores_of(q @ k.mT).softmax(-1).nan_to_num(0.0)  # a query without keys has none
    weights.retain_grad()
    (weights @ v).pow(3).sum().backward()
    wrapped = nn.Sequential(model)
    with capture_attention(wrapped, ["0"], gradients=True) as seen:
        output = wrapped((q, k, v))
        output.pow(3).sum().backward()
    assert relative_difference(output, weights @ v) <= 1e-12
    assert relative_difference(seen.maps["0"], weights) <= 1e-12
    assert relative_difference(seen.gradients["0"], weights.grad) <= 1e-10


def test_keys_shared_by_groups_of_heads_are_repeated():
    q, k, v = (images(2, heads, 5, 8, seed=heads).double().requires_grad_() for heads in (6, 2, 2))
    repeated = [x.repeat_interleave(3, 1) for x in (k, v)]
    weights = (q @ repeated[0].mT / 8**0.5).softmax(-1)
    weights.retain_grad()
    (weights @ repeated[1]).pow(3).sum().backward()
    model = nn.Sequential(Own(enable_gqa=True))
    with capture_attention(model, ["0"], gradients=True) as seen:
        model((q, k, v)).pow(3).sum().backward()
    assert relative_difference(seen.maps["0"], weights) <= 1e-12
    assert relative_difference(seen.gradients["0"], weights.grad) <= 1e-10


def mixed(weights, v):
    return weights.mean(1, keepdim=True) @ v


def written_into(weights, v):
    weights *= 2
    return weights @ v


def twice(weights, v):
    return weights @ v + weights.softmax(-1) @ v


def not_used(weights, v):
    return v


def of_three_axes(weights, v):
    return weights[:, 0].softmax(-1) @ v[:, 0]


class Steps(nn.Module):
    """A user's module that goes from scores to what it puts out by the function it is given."""

    def __init__(self, use) -> None:
        super().__init__()
        self.use = use

    def forward(self, scores, v):
        return self.use(scores.softmax(-1), v)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("use", [mixed, written_into, twice, not_used, of_three_axes])
def test_weights_that_cannot_be_proven_are_refused(use, mode):
    model = nn.ModuleDict({"own": Steps(use)})
    refused = pytest.raises(ContractError, match="expected to see one tensor")
    with mode(), capture_attention(model, ["own"]) as seen, refused:
        model["own"](images(2, 3, 5, 5), images(2, 3, 5, 4))
    assert seen.maps == {}


def test_weights_of_a_module_that_computes_step_by_step_are_followed():
    model = nn.ModuleDict({"own": Steps(lambda weights, v: F.dropout(weights, 0.5, True).contiguous() @ v)})
    scores, v = images(2, 3, 5, 5).requires_grad_(), images(2, 3, 5, 4)
    with capture_attention(model, ["own"], gradients=True) as seen:
        torch.manual_seed(0)
        model["own"](scores, v).sum().backward()
    torch.manual_seed(0)
    weights = scores.detach().softmax(-1).requires_grad_()
    (F.dropout(weights, 0.5, True) @ v).sum().backward()
    assert torch.equal(seen.maps["own"], weights)
    assert torch.equal(seen.gradients["own"], weights.grad)


def hooks_of(model):
    return [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def test_nothing_is_installed_outside_the_block():
    model = tiny_vit()
    with capture_attention(model, [-1]):
        assert len(hooks_of(model)) == 2
    assert hooks_of(model) == []
    with pytest.raises(KeyboardInterrupt), capture_attention(model):
        raise KeyboardInterrupt
    assert hooks_of(model) == []


def test_an_interrupted_forward_leaves_nothing_watching():
    def interrupt(*_):
        raise KeyboardInterrupt

    model = tiny_vit()
    handle = model.blocks[1].attn.proj.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), capture_attention(model):
        model(images(1, 3, 64, 64))
    handle.remove()
    assert not any(isinstance(mode, Watch) for mode in torch.overrides._get_current_function_mode_stack())
    assert hooks_of(model) == []


def test_an_error_of_the_model_comes_out_as_it_is():
    model = tiny_vit()
    model.blocks[1].attn.proj = nn.Linear(7, 7)
    with capture_attention(model), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(images(1, 3, 64, 64))
    assert not torch.overrides._get_current_function_mode_stack()


class Token:
    """Something that can be seen to be gone."""


def tensors_alive() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("gradients", [False, True])
def test_a_hundred_captured_forwards_leave_nothing_behind(gradients):
    model, x, graphs, counts = tiny_vit(), images(1, 3, 32, 32), [], []
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gc.collect()
    gc.disable()  # what only the collector frees is a cycle, which is a leak for as long
    try:
        with capture_attention(model, gradients=gradients) as seen:
            for number in range(100):
                output = model(x)
                token = Token()  # lives as long as the graph does
                output.grad_fn.register_hook(lambda *_, token=token: None)
                graphs.append(weakref.ref(token))
                del token
                if gradients:
                    output.sum().backward()
                del output
                if number in (1, 50, 99):
                    counts.append(tensors_alive())
            kept = [weakref.ref(map_) for map_ in (*seen.maps.values(), *seen.gradients.values())]
        assert all(graph() is None for graph in graphs)
        assert len(set(counts)) == 1
        assert len(kept) == (6 if gradients else 3)
        assert all(map_() is not None for map_ in kept)
        del seen
        assert all(map_() is None for map_ in kept)
    finally:
        gc.enable()


def test_what_was_seen_holds_neither_model_nor_graph():
    model = tiny_vit()
    alive = weakref.ref(model)
    with capture_attention(model, gradients=True) as seen:
        output = model(images(1, 3, 64, 64))
    assert not any(map_.requires_grad for map_ in seen.maps.values())
    del model, output
    assert alive() is None
    assert len(seen.maps) == 3


def test_a_compiled_model_is_refused_with_the_one_to_pass():
    model = tiny_vit()
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ContractError, match=r"before torch\.compile, its _orig_mod"), capture_attention(compiled):
        pass
    model.compile(backend="eager")
    with pytest.raises(ContractError, match="a compiled model"), capture_attention(model):
        pass
