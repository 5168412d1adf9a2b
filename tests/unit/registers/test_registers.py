"""Artifacts and registers, on ViTs in which one neuron makes artifacts of the patches that show a marker.

The planted neuron is active where the first channel of a token is large, as in marked patches, and adds a large vector.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import COPIES, assert_same, images, randomize, relative_difference, same_state
from torch import Tensor, nn

import featx
from featx import ArgumentError, FeatureExtractWrapper, InputError
from featx.registers import RegisterNeuron, add_registers, artifact_tokens, register_neurons
from featx.registers.registered_vit import RegisteredViT

BLOCK, CHANNEL = 2, 17
# plain, with trained registers and the norm, gated, rotary, rotary with gates and learned positions
KINDS = [
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "eva02_tiny_patch14_224",
]
PLAIN = "vit_tiny_patch16_224"
NARROW = {"dim": 48, "heads": 3, "depth": 5}


def model_of(name: str) -> nn.Module:
    """A narrow ViT whose planted neuron makes artifacts."""
    torch.manual_seed(0)
    model = randomize(featx.create_model(name, **NARROW, num_classes=7))
    for block in model.blocks:  # what blocks add is small, so that norms stay near those of the patches
        block.attn.proj.weight.data.mul_(0.1)
        block.mlp.fc2.weight.data.mul_(0.1)
    with torch.no_grad():
        model.patch_embed.proj.weight[0] = 6 / 3 / model.patch_embed.proj.weight[0].numel()  # 6 for the marker
        for table in (model.pos_embed, model.patch_embed.proj.bias):
            if table is not None:
                table[..., 0] = 0
        mlp, norm = model.blocks[BLOCK].mlp, model.blocks[BLOCK].norm2
        norm.weight[0], norm.bias[0] = 1, 0
        for layer in mlp.children():
            if isinstance(layer, nn.Linear) and layer is not mlp.fc2:
                rows = (
                    [CHANNEL]
                    if len(layer.weight) == mlp.fc2.in_features
                    else [CHANNEL, CHANNEL + len(layer.weight) // 2]
                )
                layer.weight[rows], layer.bias[rows] = 0.0, -10.0
                layer.weight[rows, 0] = 10.0
        mlp.fc2.weight[:, CHANNEL] = 3.0 * torch.sign(torch.randn(48, generator=torch.Generator().manual_seed(0)))
    return model


def extractor_of(name: str, levels: list[int] | None = None, **output: str) -> FeatureExtractWrapper:
    return FeatureExtractWrapper(model_of(name), [4, 1] if levels is None else levels, **output)


def marked(model: nn.Module) -> tuple[Tensor, list[list[int]]]:
    """Images (2, 3, H, W) with 4x6 patches, and the (image, row, column) of the marked ones."""
    side = model.feature_info.reduction()[0]
    x, places = images(2, 3, 4 * side, 6 * side), [[0, 1, 2], [0, 3, 5], [1, 0, 0]]
    for image, row, column in places:
        x[image, :, row * side : (row + 1) * side, column * side : (column + 1) * side] = 3.0
    return x, places


def tables_of(model: nn.Module, size: torch.Size, count: int) -> list[Tensor | None]:
    """Rotary embeddings per block, with cosine 1 and sine 0 for the added tokens; None for a ViT without them."""
    if getattr(model, "rope", None) is None:
        return [None] * len(model.blocks)
    still = torch.tensor([1.0, 0.0])[:, None, None, None]
    tables = model.rope(size, torch.device("cpu"))
    return [torch.cat([one, still.expand(2, one.shape[1], count, one.shape[3])], 2) for one in tables]


def by_hooks(extractor: FeatureExtractWrapper, x: Tensor, neurons: list[tuple[int, int]], count: int) -> list[Tensor]:
    """The maps, by hooks on the inputs of fc2 and tokens of zeros behind the patches, as in the authors' program."""
    model = extractor.source
    prefix, tokens = model.num_prefix_tokens, []

    def hook(block: int):
        def move(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            (hidden,) = args
            hidden = hidden.clone()
            for channel in (channel for b, channel in neurons if b == block):
                for n in range(len(hidden)):
                    values = hidden[n, :, channel]
                    hidden[n, -count:, channel] = values[values.abs().argmax()]
                    hidden[n, prefix:-count, channel] = 0
            return (hidden,)

        return move

    handles = [block.mlp.fc2.register_forward_pre_hook(hook(i)) for i, block in enumerate(model.blocks)]
    patches = model.patch_embed(x)
    state = model._tokens(patches)
    state = torch.cat([state, torch.zeros(len(x), count, state.shape[2])], 1)
    for block, table in zip(model.blocks, tables_of(model, patches.shape[2:], count), strict=True):
        state = block(state) if table is None else block(state, table)
        tokens.append(model.norm(state) if model.norm_maps else state)
    for handle in handles:
        handle.remove()
    grid = patches.shape[2:]
    return [
        tokens[level][:, prefix:-count].transpose(1, 2).unflatten(2, grid)
        for level in extractor.feature_info.out_indices
    ]


@pytest.mark.parametrize("name", KINDS)
def test_artifacts_are_the_marked_patches_from_the_planted_block_on(name):
    extractor = extractor_of(name, [0, 1, 2, 3, 4])
    x, places = marked(extractor)
    reports = artifact_tokens(extractor, x)
    assert [report.name for report in reports] == extractor.feature_info.names()
    assert [report.count for report in reports] == [0, 0, 3, 3, 3]
    assert all(report.positions.tolist() == places for report in reports[BLOCK:])
    assert reports[BLOCK].share == 3 / 48
    assert torch.equal(reports[BLOCK].mask, reports[BLOCK].norms > reports[BLOCK].threshold)


def test_norms_are_those_of_the_tokens_before_the_last_norm():
    model = model_of("vit_small_patch14_reg4_dinov2")
    extractor, (x, _) = FeatureExtractWrapper(model, [3]), marked(model)
    assert model.norm_maps
    with torch.no_grad():
        (map_,) = FeatureExtractWrapper(model.raw(), [3])(x)
    (report,) = artifact_tokens(extractor, x, threshold=7.5)
    assert relative_difference(report.norms, map_.square().sum(1).sqrt()) < 1e-6  # another order of sums
    assert report.threshold == 7.5
    (report,) = artifact_tokens(extractor, x)
    assert report.threshold == pytest.approx(3 * report.norms.median().item())


def test_a_report_is_one_line():
    extractor = extractor_of(PLAIN, [4])
    (report,) = artifact_tokens(extractor, marked(extractor)[0], threshold=20.0)
    median, largest = report.norms.median().item(), report.norms.max().item()
    expected = f"blocks.4: 3 of 48 tokens (6.25%) have norms above 20 (median {median:.4g}, largest {largest:.4g})"
    assert repr(report) == expected


@pytest.mark.parametrize("name", KINDS)
def test_the_planted_neuron_is_found(name):
    extractor = extractor_of(name)
    found = register_neurons(extractor, marked(extractor)[0], count=4)
    assert (found[0].block, found[0].channel) == (BLOCK, CHANNEL)
    assert found[0].score > 3 * found[1].score
    assert all(neuron.block <= BLOCK for neuron in found)
    assert [neuron.score for neuron in found] == sorted((neuron.score for neuron in found), reverse=True)


def test_a_score_is_the_mean_absolute_activation_at_artifacts_per_image():
    extractor = extractor_of(PLAIN, [4])
    x, places = marked(extractor)
    seen = {}
    layer = extractor.source.blocks[1].mlp.fc2
    handle = layer.register_forward_pre_hook(lambda module, args: seen.update(hidden=args[0]))
    with torch.no_grad():
        extractor(x)
    handle.remove()
    cells = [seen["hidden"][image, 1 + 6 * row + column].abs() for image, row, column in places]
    expected = ((cells[0] + cells[1]) / 2 + cells[2]) / 2
    every = register_neurons(extractor, x, count=10_000)
    assert len(every) == (BLOCK + 1) * 192  # those of later blocks are not searched
    scores = torch.tensor([n.score for n in sorted(every, key=lambda n: n.channel) if n.block == 1])
    assert relative_difference(scores, expected) < 1e-6  # the order of sums


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_maps_are_those_of_hooks_on_the_activations(name, count):
    extractor = extractor_of(name)
    x, _ = marked(extractor)
    neurons = [(BLOCK, CHANNEL), (BLOCK, 3), (0, 5), (4, 0)]
    with torch.no_grad():
        found = add_registers(extractor, [RegisterNeuron(*neuron) for neuron in neurons], count)(x)
        expected = by_hooks(extractor, x, neurons, count)
    assert max(relative_difference(one, other) for one, other in zip(found, expected, strict=True)) < 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_registers_remove_the_artifacts(name):
    extractor = extractor_of(name)
    x, _ = marked(extractor)
    fixed = add_registers(extractor, register_neurons(extractor, x, count=1))
    before, after = (artifact_tokens(model, x) for model in (extractor, fixed))
    assert [report.count for report in before] == [3, 0]
    assert [report.count for report in after] == [0, 0]
    with torch.no_grad():
        assert all(map_.isfinite().all() for map_ in fixed(x))


@pytest.mark.parametrize("name", KINDS)
def test_the_contract_stays(name):
    extractor = extractor_of(name)
    fixed = add_registers(extractor, [RegisterNeuron(BLOCK, CHANNEL)], 2)
    assert fixed.feature_info == extractor.feature_info
    assert fixed.feature_info.out_indices == extractor.feature_info.out_indices
    assert same_state(fixed.state_dict(), extractor.state_dict())
    assert dict(fixed.named_parameters()).keys() == dict(extractor.named_parameters()).keys()
    assert fixed.get_parameter("blocks.0.mlp.fc2.weight") is extractor.get_parameter("blocks.0.mlp.fc2.weight")
    assert fixed.get_parameter("blocks.2.mlp.fc2.weight") is extractor.get_parameter("blocks.2.mlp.fc2.weight")
    assert type(fixed.source) is type(extractor.source)
    featx.verify(fixed, [(64, 96), (97, 161)])


def test_prefix_tokens_are_those_of_the_model_without_the_added_registers():
    extractor = extractor_of("vit_small_patch14_reg4_dinov2", output="tokens")
    x, _ = marked(extractor)
    fixed = add_registers(extractor, [RegisterNeuron(BLOCK, CHANNEL)])
    with torch.no_grad():
        assert [(a.shape, b.shape) for a, b in fixed(x)] == [(a.shape, b.shape) for a, b in extractor(x)]


def test_features_of_all_tokens_are_those_of_the_maps():
    """Also the classifier runs with the registers."""
    model = model_of(PLAIN)
    registered, (x, _) = RegisteredViT(model, [RegisterNeuron(BLOCK, CHANNEL)], 1), marked(model)
    with torch.no_grad():
        prefix, map_ = FeatureExtractWrapper(registered, [-1], output="tokens")(x)[0]
        tokens = model.norm(torch.cat([prefix, map_.flatten(2).transpose(1, 2)], 1))
        assert torch.equal(registered.forward_features(x), tokens)
        assert torch.equal(registered(x), model.forward_head(tokens))


def test_the_model_itself_does_not_change():
    extractor = extractor_of(PLAIN)
    x, _ = marked(extractor)
    with torch.no_grad():
        before = extractor(x)
        add_registers(extractor, register_neurons(extractor, x))(x)
        assert_same(extractor(x), before)
    assert not any(module._forward_pre_hooks for module in extractor.modules())


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("name", [PLAIN, pytest.param("vit_small_patch16_dinov3", marks=pytest.mark.sweep)])
def test_exported_and_compiled_extractors_compute_the_same(name):
    fixed = add_registers(extractor_of(name), [RegisterNeuron(BLOCK, CHANNEL)])
    x, _ = marked(fixed)
    with torch.no_grad():
        expected = fixed(x)
        exported = torch.export.export(fixed, (x,)).module()
        compiled = torch.compile(fixed, backend="eager", fullgraph=True)
        for made in (exported, compiled):
            differences = [relative_difference(one, other) for one, other in zip(made(x), expected, strict=True)]
            assert max(differences) < 1e-6  # positions: products in another order


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_computes_the_same(copied):
    fixed = add_registers(extractor_of(PLAIN), [RegisterNeuron(BLOCK, CHANNEL)])
    x, _ = marked(fixed)
    with torch.no_grad():
        assert_same(copied(fixed)(x), fixed(x))


def test_registers_and_shifts_combine():
    fixed = add_registers(extractor_of(PLAIN), [RegisterNeuron(BLOCK, CHANNEL)])
    x, _ = marked(fixed)
    fine = featx.shifted(fixed, 2)
    with torch.no_grad():
        assert [map_.shape[2:] for map_ in fine(x)] == [(8, 12), (8, 12)]
    with pytest.raises(ArgumentError, match=r"is not a native ViT.* or add registers before featx\.shifted"):
        add_registers(fine, [RegisterNeuron(BLOCK, CHANNEL)])


def test_threads_share_an_extractor_with_registers():
    fixed = add_registers(extractor_of(PLAIN), [RegisterNeuron(BLOCK, CHANNEL)])
    batches = [images(2, 3, 32 + 16 * seed, 64, seed=seed) for seed in range(6)]

    def run(batch: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return fixed(batch)

    expected = [run(batch) for batch in batches]
    with ThreadPoolExecutor(3) as pool:
        for one, other in zip(pool.map(run, batches), expected, strict=True):
            assert_same(one, other)


NEURON = RegisterNeuron(BLOCK, CHANNEL)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda e, x: artifact_tokens(e.source, x), ArgumentError, "expected an extractor, got ViT"),
        (lambda e, x: artifact_tokens(e, x, 0.0), ArgumentError, "threshold=0.0: expected a positive norm"),
        (lambda e, x: artifact_tokens(e, x[0]), InputError, r"expected images \(N, C, H, W\)"),
        (lambda e, x: register_neurons(e.source, x), ArgumentError, "expected an extractor, got ViT"),
        (lambda e, x: register_neurons(e, x, count=0), ArgumentError, "count=0: expected an int of at least 1"),
        (lambda e, x: register_neurons(e, x, threshold=-1.0), ArgumentError, "threshold=-1.0: expected a positive"),
        (lambda e, x: register_neurons(e, x[:, :1]), InputError, "expected 3 channels"),
        (
            lambda e, x: register_neurons(e, x, threshold=1e9),
            InputError,
            "blocks.4: 0 of 48 tokens .* without artifacts, their neurons cannot be found",
        ),
        (lambda e, x: add_registers(e.source, [NEURON]), ArgumentError, "expected an extractor, got ViT"),
        (lambda e, x: add_registers(e, [NEURON], 0), ArgumentError, "count=0: expected an int of at least 1"),
        (lambda e, x: add_registers(e, [(2, 17)]), ArgumentError, "expected a list of RegisterNeurons"),
        (lambda e, x: add_registers(e, []), ArgumentError, "neurons: got none: expected channels of fc2, 0 to 191"),
        (
            lambda e, x: add_registers(e, [NEURON, RegisterNeuron(5, 0), RegisterNeuron(1, 192)]),
            ArgumentError,
            "got channel 0 of block 5, channel 192 of block 1: .* blocks 0 to 4",
        ),
        (
            lambda e, x: add_registers(add_registers(e, [NEURON]), [NEURON]),
            ArgumentError,
            "has added registers already: pass all neurons",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(call, error, words):
    extractor = extractor_of(PLAIN)
    with pytest.raises(error, match=words):
        call(extractor, marked(extractor)[0])


@pytest.mark.parametrize("name", ["resnet18", "timm/test_vit"])
def test_other_models_than_native_vits_are_refused(name):
    extractor = featx.create_model(name, features_only=True).eval()
    with pytest.raises(ArgumentError, match=r"is not a native ViT, .* create_model\('vit_large_patch14_dinov2'"):
        register_neurons(extractor, images(1, 3, 64, 64))
    with pytest.raises(ArgumentError, match="is not a native ViT"):
        add_registers(extractor, [NEURON])
    assert len(artifact_tokens(extractor, images(1, 3, 64, 64))) == len(extractor.feature_info)


def test_neurons_beyond_the_last_block_of_a_cut_extractor_are_refused():
    for name in (PLAIN, "vit_small_patch16_dinov3"):
        with pytest.raises(ArgumentError, match=r"channel 17 of block 2: .* blocks 0 to 1 of"):
            add_registers(extractor_of(name, [1]), [NEURON])
