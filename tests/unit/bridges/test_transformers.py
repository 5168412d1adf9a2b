"""Maps of tiny transformers models of every type: values, order, names, sizes and pruning."""

import pickle

import pytest
import torch
from conftest import images
from support.transformers_types import (
    BACKBONES,
    ENCODERS,
    EVERY,
    assert_same,
    extracted,
    model_of,
    pyramid_of,
    transformers,
)

import featx
from featx import FeatureExtractWrapper
from featx.bridges import transformers as bridge
from featx.errors import InputError, OutIndicesError

# One of each way of having maps; the others are swept.
FEW = ["convnext", "swin", "dinov2", "mobilevit", "levit", "vit", "sam_vision_model", "sam2_vision_model"]

TYPES = [kind if kind in FEW else pytest.param(kind, marks=pytest.mark.bridges) for kind in EVERY]

# Types that take only the size they were configured for.
ONE_SIZE = (
    "aimv2_vision_model",
    "hiera",
    "levit",
    "pvt",
    "sam_vision_model",
    "sam_hq_vision_model",
    "sam3_vision_model",
    "sam3_vit_model",
    "vitpose_backbone",
)


def images_for(kind, times=1):
    size = EVERY[kind][1]
    size = (size, size) if isinstance(size, int) else size
    return images(2, 3, size[0] * times, size[1] * times)


def own_tensors(kind, x):
    """The package's own output: feature maps of a backbone, or hidden states of an encoder."""
    model = model_of(kind)
    with torch.no_grad():
        if kind == "hiera":
            return in_windows(model, x)
        if kind in BACKBONES:
            return list(model(pixel_values=x).feature_maps)
        further = {}
        if kind == "vit_mae":
            model.config.mask_ratio = 0.0
            further = {"noise": torch.arange(16.0).expand(len(x), -1)}
        return list(model(pixel_values=x, output_hidden_states=True, **further).hidden_states)


def in_windows(backbone, x):
    """The maps of HieraModel, which orders tokens as the encoder expects, with the norms of HieraBackbone."""
    model = transformers.HieraModel(backbone.config, add_pooling_layer=False).eval()
    assert not model.load_state_dict(backbone.state_dict(), strict=False).missing_keys
    states = model(x, output_hidden_states=True).reshaped_hidden_states
    norms = backbone.hidden_states_norms.values()
    return [norm(state).permute(0, 3, 1, 2) for norm, state in zip(norms, states, strict=True)]


def own_maps(kind, x):
    """The package's output as maps (N, C, h, w), one per level."""
    levels, tensors = pyramid_of(kind).feature_info, own_tensors(kind, x)
    maps = [to_map(tensor, levels, x) for tensor in tensors]
    if kind in BACKBONES:
        return maps
    if len(set(levels.reduction())) == 1:
        return maps[-len(levels) :]
    deepest = {x.shape[3] // map_.shape[3]: map_ for map_ in maps}  # a later one replaces an earlier one
    return [deepest[level.reduction] for level in levels]


def to_map(tensor, levels, x):
    if tensor.ndim == 4:
        return tensor.permute(0, 3, 1, 2) if tensor.shape[1] == tensor.shape[2] != tensor.shape[3] else tensor
    height, width = next(
        (x.shape[2] // r, x.shape[3] // r)
        for r in sorted(levels.reduction())
        if 0 <= tensor.shape[1] - (x.shape[2] // r) * (x.shape[3] // r) <= 8
    )
    return tensor[:, -height * width :].transpose(1, 2).reshape(len(x), -1, height, width)


def test_every_type_has_a_small_configuration_here():
    assert bridge.names() == sorted(EVERY)


@pytest.mark.parametrize("kind", TYPES)
def test_maps_are_what_the_package_returns(kind):
    x = images_for(kind)
    maps = extracted(pyramid_of(kind), x)
    assert_same(maps, own_maps(kind, x))
    for map_, level in zip(maps, pyramid_of(kind).feature_info, strict=True):
        cells = [-(-side // level.reduction) for side in x.shape[2:]]
        assert map_.shape == (2, level.chs, *cells)
        assert map_.is_contiguous()


@pytest.mark.parametrize("kind", TYPES)
def test_a_level_alone_is_that_level_among_all_and_needs_less(kind):
    pyramid, x = pyramid_of(kind), images_for(kind)
    every, names = extracted(pyramid, x), set(model_of(kind).state_dict())
    held = []
    for level in sorted({0, len(every) // 2, len(every) - 1}):
        extractor = FeatureExtractWrapper(pyramid, [level])
        assert_same(extracted(pyramid, x, [level]), [every[level]])
        assert set(extractor.state_dict()) <= names
        assert extractor.excess == ()
        held.append(sum(parameter.numel() for parameter in extractor.parameters()))
    assert held == sorted(set(held))


@pytest.mark.parametrize("kind", TYPES)
def test_every_parameter_of_a_level_gets_a_gradient(kind):
    for level in {0, len(pyramid_of(kind).feature_info) - 1}:
        extractor = FeatureExtractWrapper(pyramid_of(kind), [level])
        maps = extractor(images_for(kind).requires_grad_())
        maps[0].square().mean().backward()
        assert [
            name
            for name, parameter in extractor.named_parameters()
            if parameter.grad is None and parameter.requires_grad
        ] == []
        extractor.zero_grad()


@pytest.mark.parametrize("kind", TYPES)
def test_maps_come_in_the_order_asked(kind):
    pyramid, x = pyramid_of(kind), images_for(kind)
    every, deepest = extracted(pyramid, x), len(pyramid.feature_info) - 1
    assert_same(extracted(pyramid, x, (-1, 0)), [every[deepest], every[0]])
    assert FeatureExtractWrapper(pyramid, (-1, 0)).feature_info.names() == [
        pyramid.feature_info[deepest].name,
        pyramid.feature_info[0].name,
    ]
    with pytest.raises(OutIndicesError, match="there is no level"):
        FeatureExtractWrapper(pyramid, [deepest + 1])


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind in FEW])
def test_names_of_hidden_states_are_modules_that_return_them(kind):
    pyramid, x, seen = pyramid_of(kind), images_for(kind), {}
    model = model_of(kind)
    named = [name for name in pyramid.feature_info.names() if not name.startswith("hidden_states.")]
    assert named
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: seen.__setitem__(name, output[0] if isinstance(output, tuple) else output)
        )
        for name in named
    ]
    own_tensors(kind, x)
    for handle in handles:
        handle.remove()
    maps = dict(zip(pyramid.feature_info.names(), extracted(pyramid, x), strict=True))
    for name in named:
        assert torch.equal(maps[name], to_map(seen[name], pyramid.feature_info, x))


@pytest.mark.parametrize("kind", TYPES)
def test_other_sizes_give_maps_of_that_size(kind):
    pyramid, x = pyramid_of(kind), images_for(kind, times=2)
    assert (pyramid.fixed_size is not None) == (kind in ONE_SIZE)
    if kind in ONE_SIZE:
        with pytest.raises(InputError, match=r"as it was built takes no images of .* resize them to"):
            extracted(pyramid, x)
        return
    for map_, level in zip(extracted(pyramid, x), pyramid.feature_info, strict=True):
        assert map_.shape[1:] == (level.chs, *(-(-side // level.reduction) for side in x.shape[2:]))


@pytest.mark.parametrize("kind", ["convnext", "swin", "mobilevit"])
def test_awkward_sizes_give_the_packages_maps(kind):
    x = images(1, 3, 67, 93)
    assert_same(extracted(pyramid_of(kind), x), own_tensors(kind, x))


@pytest.mark.parametrize("kind", [*TYPES, pytest.param("mobilevitv2", marks=[])])
def test_the_contract_is_verified_at_every_size(kind):
    verification = featx.verify(pyramid_of(kind), [images_for(kind).shape[2:], (96, 128), (100, 132)])
    assert len(verification.levels) == len(pyramid_of(kind).feature_info)


def test_prefix_tokens_come_beside_the_map():
    (tokens, map_), *_ = extracted(pyramid_of("vit"), images_for("vit"), [-1], output="tokens")
    states = own_tensors("vit", images_for("vit"))
    assert torch.equal(tokens, states[-1][:, :1])
    assert map_.shape == (2, 16, 4, 4)
    (tokens, _), *_ = extracted(pyramid_of("dinov2"), images_for("dinov2"), [-1], output="tokens")
    assert tokens.shape == (2, 1, 16)
    (tokens, _), *_ = extracted(pyramid_of("convnext"), images_for("convnext"), [-1], output="tokens")
    assert tokens.shape == (2, 0, 24)


@pytest.mark.parametrize("kind", ["convnext", "vit"])
@pytest.mark.usefixtures("tolerant_of_torch")
def test_extractors_compile_whole_export_and_pickle(kind):
    torch._dynamo.reset()
    extractor, x = FeatureExtractWrapper(pyramid_of(kind), [-1, 0]), images_for(kind)
    with torch.no_grad():
        maps = extractor(x)
        assert_same(torch.compile(extractor, fullgraph=True, backend="eager")(x), maps)
        exported = torch.export.export(extractor, (x,), strict=False)
        assert_same(exported.module()(x), maps)
        assert_same(pickle.loads(pickle.dumps(extractor))(x), maps)
    assert exported.state_dict.keys() <= model_of(kind).state_dict().keys()
