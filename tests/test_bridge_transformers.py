"""Models of transformers as sources of maps: values, order, names and truncation, on tiny models of every type."""

import json
import pickle
from functools import cache

import pytest
import torch
from conftest import images, randomise

import featx
from featx import FeatureExtractWrapper
from featx.errors import (
    ArgumentError,
    ContractError,
    InputError,
    OutIndicesError,
    UnknownModelError,
    WeightsNotFoundError,
)

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

from featx.bridges import transformers as bridge  # noqa: E402

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
CLIP = {**VIT, "intermediate_size": 32}
CONVS = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
SWIN = {
    "embed_dim": 8,
    "depths": [1, 1, 2],
    "num_heads": [1, 2, 2],
    "image_size": 32,
    "patch_size": 2,
    "window_size": 4,
}
SEG = {"hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]}
SAM = {**VIT, "window_size": 2, "global_attn_indexes": [1], "output_channels": 8, "mlp_dim": 32, "num_pos_feats": 4}

# A small configuration of every type, and the size of its images.
BACKBONES = {
    "beit": ({**VIT, "intermediate_size": 32}, 32),
    "bit": ({"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_groups": 4}, 64),
    "convnext": (CONVS, 64),
    "convnextv2": (CONVS, 64),
    "dinov2": (VIT, 32),
    "dinov2_with_registers": (VIT, 32),
    "dinov3_convnext": (CONVS, 64),
    "dinov3_vit": ({**CLIP, "num_register_tokens": 2}, 32),
    "focalnet": ({"embed_dim": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "focal_levels": [1, 1],
                  "focal_windows": [3, 3], "image_size": 32}, 32),
    "hgnet_v2": ({}, 64),
    "hiera": ({"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "image_size": [64, 64]}, 64),
    "lw_detr_vit": ({"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
                     "patch_size": 8, "num_windows": 4, "pretrain_image_size": 64}, 64),
    "maskformer-swin": (SWIN, 32),
    "pixio": (VIT, 32),
    "pp_lcnet": ({}, 64),
    "pp_lcnet_v3": ({}, 64),
    "pvt_v2": ({"hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2],
                "image_size": 64}, 64),
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}, 64),
    "rf_detr_dinov2": ({**VIT, "num_windows": 1}, 32),
    "rt_detr_resnet": ({"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}, 64),
    "sapiens2": ({**CLIP, "num_key_value_attention_heads": 2}, 32),
    "swin": (SWIN, 32),
    "swinv2": (SWIN, 32),
    "textnet": ({"image_size": [64, 64]}, 64),
    "tipsv2_vision_model": (VIT, 32),
    "uvdoc_backbone": ({}, 64),
    "vitdet": ({**VIT, "window_size": 0, "pretrain_image_size": 32}, 32),
    "vitpose_backbone": ({**VIT, "image_size": [32, 24]}, (32, 24)),
}  # fmt: skip
ENCODERS = {
    "aimv2_vision_model": (CLIP, 32),
    "blip_vision_model": (CLIP, 32),
    "chinese_clip_vision_model": (CLIP, 32),
    "clip_vision_model": (CLIP, 32),
    "cvt": ({"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}, 64),
    "data2vec-vision": (CLIP, 32),
    "deit": (CLIP, 32),
    "donut-swin": (SWIN, 32),
    "dpt": ({**CLIP, "backbone_out_indices": [0, 1, 1, 1]}, 32),
    "efficientnet": ({"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}, 64),
    "glpn": (SEG, 64),
    "ijepa": (CLIP, 32),
    "internvl_vision": ({**CLIP, "image_size": [32, 32], "patch_size": [8, 8]}, 32),
    "levit": ({"hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
               "key_dim": [8, 8, 8], "image_size": 64}, 64),
    "metaclip_2_vision_model": (CLIP, 32),
    "mlcd_vision_model": (CLIP, 32),
    "mobilenet_v1": ({"depth_multiplier": 0.25}, 64),
    "mobilenet_v2": ({"depth_multiplier": 0.25}, 64),
    "mobilevit": ({"hidden_sizes": [16, 16, 24], "neck_hidden_sizes": [8, 8, 16, 16, 16, 24, 32],
                   "image_size": 64}, 64),
    "mobilevitv2": ({"width_multiplier": 0.25, "image_size": 64}, 64),
    "poolformer": ({"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}, 64),
    "pvt": ({**SEG, "image_size": 64}, 64),
    "regnet": ({"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "groups_width": 8}, 64),
    "sam2_hiera_det_model": ({"hidden_size": 12, "num_attention_heads": 1, "blocks_per_stage": [1, 1, 2, 1],
                              "embed_dim_per_stage": [12, 24, 48, 96], "num_attention_heads_per_stage": [1, 2, 4, 8],
                              "window_size_per_stage": [8, 4, 4, 4], "image_size": [128, 128],
                              "global_attention_blocks": [3]}, 128),
    "sam_hq_vision_model": (SAM, 32),
    "sam_vision_model": (SAM, 32),
    "segformer": (SEG, 64),
    "siglip_vision_model": (CLIP, 32),
    "swiftformer": ({"embed_dims": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}, 64),
    "vit": (CLIP, 32),
    "vit_mae": (CLIP, 32),
    "vit_msn": (CLIP, 32),
}  # fmt: skip
EVERY = {**BACKBONES, **ENCODERS}

# One of each way of having maps; the others are swept.
FEW = ["convnext", "swin", "dinov2", "mobilevit", "levit", "vit", "sam_vision_model"]
TYPES = [kind if kind in FEW else pytest.param(kind, marks=pytest.mark.bridges) for kind in EVERY]


@cache
def model_of(kind):
    return randomise(bridge.build(kind, **EVERY[kind][0]))


@cache
def pyramid_of(kind):
    return bridge.pyramid(model_of(kind))


def images_for(kind, times=1):
    size = EVERY[kind][1]
    size = (size, size) if isinstance(size, int) else size
    return images(2, 3, size[0] * times, size[1] * times)


def extracted(source, x, *args, **kwargs):
    with torch.no_grad():
        return FeatureExtractWrapper(source, *args, **kwargs)(x)


def own_tensors(kind, x):
    """What the package itself returns: the feature maps of a backbone, the hidden states of an encoder."""
    model = model_of(kind)
    with torch.no_grad():
        if kind in BACKBONES:
            return list(model(pixel_values=x).feature_maps)
        further = {}
        if kind == "vit_mae":
            model.config.mask_ratio = 0.0
            further = {"noise": torch.arange(16.0).expand(len(x), -1)}
        return list(model(pixel_values=x, output_hidden_states=True, **further).hidden_states)


def own_maps(kind, x):
    """The same as maps (N, C, h, w), one for each level."""
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


def assert_same(ours, reference):
    assert [map_.shape for map_ in ours] == [map_.shape for map_ in reference]
    for a, b in zip(ours, reference, strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()


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
    for level in {0, len(every) // 2, len(every) - 1}:
        extractor = FeatureExtractWrapper(pyramid, [level])
        assert_same(extracted(pyramid, x, [level]), [every[level]])
        assert set(extractor.state_dict()) <= names
        assert extractor.excess == ()
        held.append(sum(parameter.numel() for parameter in extractor.parameters()))
    assert held == sorted(held)


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


# Types that take only the size they were configured for.
ONE_SIZE = ("aimv2_vision_model", "hiera", "levit", "pvt", "sam_vision_model", "sam_hq_vision_model")
ONE_SIZE = (*ONE_SIZE, "vitpose_backbone")


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


def test_a_model_in_hand_stays_as_it_is():
    model = model_of("vit")
    modules = [name for name, _ in model.named_modules()]
    hooks, settings = [len(module._forward_hooks) for module in model.modules()], model.config.to_dict()
    FeatureExtractWrapper(bridge.pyramid(model), [0])
    assert [name for name, _ in model.named_modules()] == modules
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert model.config.to_dict() == settings


def test_a_classifier_in_hand_gives_maps_under_its_own_names():
    model = randomise(bridge.build("convnext", num_classes=5, **CONVS))
    extractor = FeatureExtractWrapper(bridge.pyramid(model), [-1, -2])
    assert {name.split(".")[0] for name in extractor.state_dict()} == {"convnext"}
    with torch.no_grad():
        states = model(images(), output_hidden_states=True).hidden_states
        assert_same(extractor(images()), [states[-1], states[-2]])


def test_a_backbone_in_hand_offers_the_stages_it_has_norms_for():
    config = transformers.ConvNextConfig(**CONVS, out_features=["stage2", "stage4"])
    pyramid = bridge.pyramid(transformers.ConvNextBackbone(config))
    assert pyramid.feature_info.names() == ["stage2", "stage4"]
    assert pyramid.feature_info.reduction() == [8, 32]


def test_the_image_encoder_of_a_model_of_images_and_text_gives_maps():
    text = {**CLIP, "vocab_size": 9}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=CLIP)).eval()
    extractor = FeatureExtractWrapper(bridge.pyramid(model), [0])
    assert {name.split(".")[0] for name in extractor.state_dict()} == {"vision_model"}
    assert extractor(images(1, 3, 32, 32))[0].shape == (1, 16, 4, 4)


def test_where_the_package_declares_other_channels_the_measured_ones_stand():
    pyramid = bridge.pyramid(bridge.build("hgnet_v2"))
    assert "stem has 48 channels, declared are 64" in pyramid.corrections
    assert pyramid_of("convnext").corrections == ()


def test_a_model_that_takes_no_images_is_refused():
    text = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(ContractError, match="BertModel has no part that takes images"):
        bridge.pyramid(transformers.BertModel(text))


def test_an_unknown_type_is_refused_with_the_closest_ones():
    with pytest.raises(UnknownModelError, match=r"no model type 'convnxt', but \['convnext'"):
        bridge.build("convnxt")


@pytest.mark.parametrize("kind", sorted(bridge.REFUSED))
def test_types_without_maps_are_refused_with_the_reason(kind):
    with pytest.raises(UnknownModelError, match="gives no maps: "):
        bridge.build(kind)


def test_types_of_models_that_take_no_images_are_refused():
    with pytest.raises(UnknownModelError, match="'bert', which gives no maps"):
        bridge.build("bert")


def test_unknown_settings_are_refused_with_the_closest_ones():
    with pytest.raises(ArgumentError, match=r"no field 'hidden_sise' \(did you mean \['hidden_size'"):
        bridge.build("vit", hidden_sise=8)
    with pytest.raises(ArgumentError, match="no field 'output_stride'"):
        bridge.build("convnext", output_stride=16)
    with pytest.raises(ArgumentError, match="cannot be configured so"):
        bridge.build("vit", hidden_size="wide")
    with pytest.raises(ArgumentError, match="no classifier of type vitdet"):
        bridge.build("vitdet", num_classes=3)


def test_channels_sizes_and_strides_reach_the_configuration():
    model = bridge.build("vit", in_chans=1, **{**CLIP, "image_size": 64})
    assert model(images(1, 1, 64, 64)).last_hidden_state.shape[1] == 65
    assert FeatureExtractWrapper(bridge.pyramid(model), [0]).in_chans == 1
    dilated = bridge.pyramid(bridge.build("mobilevit", output_stride=16, **EVERY["mobilevit"][0]))
    assert dilated.feature_info.reduction() == [2, 4, 8, 16]


def saved(tmp_path, model):
    model.save_pretrained(tmp_path)
    return str(tmp_path)


def test_weights_of_a_folder_are_loaded(tmp_path):
    model = model_of("convnext")
    folder = saved(tmp_path, model)
    processor = {"size": {"shortest_edge": 48}, "crop_pct": 0.75, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processor, "resample": 2}))
    loaded = bridge.build(folder, pretrained=True).eval()
    assert_same(extracted(bridge.pyramid(loaded), images()), extracted(pyramid_of("convnext"), images()))
    data = FeatureExtractWrapper(bridge.pyramid(loaded)).data_config
    assert (data.size, data.crop, data.mean, data.interpolation) == ((48, 48), 0.75, (0.1,) * 3, "bilinear")


def test_weights_of_a_classifier_fill_the_backbone_without_its_fresh_norms(tmp_path):
    classifier = randomise(bridge.build("convnext", num_classes=5, **CONVS))
    backbone = bridge.build(saved(tmp_path, classifier), pretrained=True)
    for name, tensor in backbone.state_dict().items():
        if "hidden_states_norms" not in name:
            assert torch.equal(tensor, classifier.state_dict()[f"convnext.{name}"])


def test_weights_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"do not fit: other shapes .*patch_embeddings"):
        bridge.build(saved(tmp_path, model_of("convnext")), pretrained=True, in_chans=4)


def test_weights_that_are_not_there_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(WeightsNotFoundError, match="is a model type, which has no weights"):
        bridge.build("vit", pretrained=True)
    with pytest.raises(WeightsNotFoundError, match="name a folder that save_pretrained wrote"):
        bridge.build(str(tmp_path))
    model_of("convnext").config.save_pretrained(tmp_path)
    with pytest.raises(WeightsNotFoundError, match="cannot have the weights of"):
        bridge.build(str(tmp_path), pretrained=True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsNotFoundError, match=r"cannot have the config\.json of owner/missing"):
        bridge.build("owner/missing", cache_dir=tmp_path)
