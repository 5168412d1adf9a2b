"""Attention maps of timm, transformers and torchvision models, compared with each package's own output."""

from contextlib import ExitStack

import pytest
import torch
from conftest import images, randomize, relative_difference
from support.attention_models import same_weights_every_time as same_weights_every_time
from torch import Tensor, nn

import featx
from featx import ArgumentError, ContractError, capture_attention
from featx.attention.blocks import KINDS

# Names of timm's models and the size of images.
TIMM = {
    "test_vit": 64,
    "vit_tiny_patch16_224": 224,
    "test_vit_relpos": 160,
    "vit_medium_patch16_reg4_gap_256": 256,
    "vit_tiny_patch16_dinov3_qkvb": 64,
    "vit_pe_spatial_tiny_patch16_512": 64,
    "beit_base_patch16_224": 224,
    "eva02_tiny_patch14_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_tiny_window8_256": 256,
    "mobilevit_xxs": 64,
}
TINY = {name: {"depth": 2, "embed_dim": 48, "num_heads": 3} for name in TIMM if name.startswith(("vit_", "beit"))}
TINY |= {name: {"depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)} for name in TIMM if name.startswith("swin")}
TINY["eva02_tiny_patch14_224"] = {"depth": 2}
TINY["vit_pe_spatial_tiny_patch16_512"] |= {"img_size": 64}


def timm_model(name: str) -> nn.Module:
    return randomize(featx.create_model(f"timm/{name}", **TINY.get(name, {}))).double()


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules() if hasattr(module, "attn_drop")}


def fuse(model: nn.Module, fused: bool) -> None:
    for module in attentions(model).values():
        module.fused_attn = fused


def dropped(model: nn.Module, x: Tensor, attn_mask: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """What timm's own step by step attention hands to its dropout, with the graph, and what the model returns."""
    fuse(model, False)
    seen: list[Tensor] = []
    with ExitStack() as hooks:
        for module in attentions(model).values():
            hook = module.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
            hooks.callback(hook.remove)
        output = run(model, x, attn_mask)
    return output, seen


def run(model: nn.Module, x: Tensor, attn_mask: Tensor | None) -> Tensor:
    return model(x) if attn_mask is None else model.forward_features(x, attn_mask=attn_mask)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", TIMM)
def test_maps_and_gradients_are_those_of_timm(name, fused):
    model, x = timm_model(name), images(2, 3, TIMM[name], TIMM[name]).double()
    output, expected = dropped(model, x)
    gradients = torch.autograd.grad(output.square().sum(), expected)
    fuse(model, fused)
    plain = model(x)
    with capture_attention(model, gradients=True) as seen:
        captured = model(x)
        captured.square().sum().backward()
    assert torch.equal(captured, plain)
    assert len(seen.maps) == len(expected) > 1
    for map_, wanted in zip(seen.maps.values(), expected, strict=True):
        assert relative_difference(map_, wanted) <= 1e-12  # fp64
    for gradient, wanted in zip(seen.gradients.values(), gradients, strict=True):
        assert relative_difference(gradient, wanted) <= 1e-10  # fp64


@pytest.mark.parametrize("fused", [True, False])
def test_masks_of_timm_enter_the_map(fused):
    model, x = timm_model("test_vit"), images(1, 3, 64, 64).double()
    tokens = 16 + model.num_prefix_tokens
    mask = images(1, 1, tokens, tokens, seed=1) > -0.5
    _, expected = dropped(model, x, mask)
    fuse(model, fused)
    with torch.no_grad(), capture_attention(model) as seen:
        run(model, x, mask)
    for map_, wanted in zip(seen.maps.values(), expected, strict=True):
        assert bool((map_ == 0).any())
        assert relative_difference(map_, wanted) <= 1e-12  # fp64


def test_windows_of_swin_stand_in_rows_within_each_image():
    model, x = timm_model("swin_tiny_patch4_window7_224"), images(2, 3, 224, 224).double()
    with torch.no_grad(), capture_attention(model, [0]) as seen:
        model(x)
    with torch.no_grad(), capture_attention(model, [0]) as alone:
        model(x[1:])
    assert seen.maps["layers.0.blocks.0"].shape == (2 * 64, 2, 49, 49)
    assert relative_difference(seen.maps["layers.0.blocks.0"][64:], alone.maps["layers.0.blocks.0"]) <= 1e-12
    changed = x.clone()
    changed[1, :, 28:56, :28] += 1  # under the first window of the second row, of 7x7 patches of 4x4 pixels
    with torch.no_grad(), capture_attention(model, [0]) as other:
        model(changed)
    differ = (other.maps["layers.0.blocks.0"] != seen.maps["layers.0.blocks.0"]).flatten(1).any(1)
    assert differ.nonzero().flatten().tolist() == [64 + 8]


DINO = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 56}
SMALL = {**DINO, "intermediate_size": 96, "image_size": 64}
TRANSFORMERS = {
    "vit": SMALL,
    "dinov2": DINO,
    "dinov2_with_registers": DINO,
    "dinov3_vit": {**SMALL, "num_register_tokens": 4},
    "clip_vision_model": SMALL,
    "siglip_vision_model": SMALL,
    "beit": {**SMALL, "use_relative_position_bias": True},
    "swin": {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "image_size": 112},
    "mobilevit": {"image_size": 64},
}


def transformers_model(name: str, implementation: str) -> nn.Module:
    model = randomize(featx.create_model(f"transformers/{name}", **TRANSFORMERS[name])).double()
    if name != "mobilevit":  # which has one implementation
        model.set_attn_implementation(implementation)
    return model


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_maps_and_gradients_are_those_of_transformers(name, implementation):
    size = TRANSFORMERS[name]["image_size"]
    eager, x = transformers_model(name, "eager"), images(2, 3, size, size).double()
    model = transformers_model(name, implementation)
    model.load_state_dict(eager.state_dict())
    expected, gradients = own_attentions(eager, x)
    plain = first(model(pixel_values=x))
    with capture_attention(model, list(range(len(expected))), gradients=True) as seen:
        captured = first(model(pixel_values=x))
        captured.square().sum().backward()
    assert torch.equal(captured, plain)
    assert list(seen.maps) == list(seen.gradients)
    for map_, wanted in zip(seen.maps.values(), expected, strict=True):
        assert relative_difference(map_, wanted) <= 1e-6  # its softmax is of float32
    for gradient, wanted in zip(seen.gradients.values(), gradients, strict=True):
        assert relative_difference(gradient, wanted) <= 1e-5


def first(output) -> Tensor:
    return output["feature_maps"][-1] if "feature_maps" in output else output["last_hidden_state"]


def own_attentions(model: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The weights that go into each dropout of a step by step implementation, and their gradients."""
    kept: list[Tensor] = []
    real = nn.functional.dropout

    def keep(x, *args, **kwargs):
        if x.ndim == 4 and x.shape[-1] == x.shape[-2] and x.requires_grad:
            kept.append(x)
        return real(x, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "dropout", keep)
        output = first(model(pixel_values=x))
    sums = [map_ for map_ in kept if torch.allclose(map_.sum(-1), torch.ones_like(map_.sum(-1)), atol=1e-5)]
    return sums, list(torch.autograd.grad(output.square().sum(), sums))


def timm_checkpointing(model):
    model.set_grad_checkpointing(True)


def transformers_checkpointing(model):
    model.activation_checkpointing_enable()


@pytest.mark.parametrize(
    ("name", "arch", "checkpointing"),
    [("timm/test_vit", {}, timm_checkpointing), ("transformers/vit", SMALL, transformers_checkpointing)],
)
def test_checkpointing_of_the_packages_changes_nothing(name, arch, checkpointing):
    model = featx.create_model(name, **arch).train()
    size = arch.get("image_size", 160)
    x, found = images(2, 3, size, size), []
    for prepare in (lambda model: None, checkpointing):
        prepare(model)
        with capture_attention(model, gradients=True) as seen:
            output = model(x)
            (output if isinstance(output, Tensor) else output["last_hidden_state"]).square().sum().backward()
        found.append(seen)
    plain, checkpointed = found
    assert len(plain.gradients) == len(plain.maps) > 1
    for block in plain.maps:
        assert torch.equal(checkpointed.maps[block], plain.maps[block])
        assert torch.equal(checkpointed.gradients[block], plain.gradients[block])


@pytest.mark.parametrize("name", ["timm/test_vit", "transformers/dinov2_with_registers", "timm/mobilevit_xxs"])
def test_bridged_extractors_are_captured(name):
    arch = TRANSFORMERS["dinov2_with_registers"] if name.startswith("transformers") else {}
    size = arch.get("image_size", 160)
    extractor = featx.create_model(name, features_only=True, **arch).eval()
    x = images(1, 3, size, size)
    with torch.no_grad():
        expected = extractor(x)
        with capture_attention(extractor, [-1]) as seen:
            maps = extractor(x)
    assert len(seen.maps) == 1
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_maps_of_torchvision_are_those_that_pytorch_tells(dtype):
    from torchvision.models import VisionTransformer

    model = randomize(VisionTransformer(64, 16, 2, 3, 48, 96)).to(dtype)
    x = images(2, 3, 64, 64).to(dtype)
    with torch.no_grad():
        expected = model(x)
        with capture_attention(model) as seen:
            assert torch.equal(model(x), expected)
    assert list(seen.maps) == ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]
    attention = model.encoder.layers[1].self_attention
    inputs: list[Tensor] = []
    handle = attention.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    q, k, _ = (inputs[0] @ attention.in_proj_weight.T + attention.in_proj_bias).unflatten(-1, (3, 3, 16)).unbind(2)
    wanted = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / 4).softmax(-1)
    assert relative_difference(seen.maps["encoder.layers.encoder_layer_1"], wanted) <= (
        1e-12 if x.dtype == torch.float64 else 1e-5
    )
    with pytest.raises(ArgumentError, match=r"are nn\.MultiheadAttention, of which only maps"):
        capture_attention(model, gradients=True).__enter__()


def test_windows_of_torchvision_are_captured():
    from torchvision.models import SwinTransformer

    model = SwinTransformer([4, 4], 24, [2, 2], [2, 4], [7, 7]).eval()
    with torch.no_grad():
        expected = model(images(1, 3, 112, 112))
        with capture_attention(model) as seen:
            assert torch.equal(model(images(1, 3, 112, 112)), expected)
    assert [tuple(map_.shape) for map_ in seen.maps.values()] == 2 * [(16, 2, 49, 49)] + 2 * [(4, 4, 49, 49)]


def test_an_attention_pool_has_a_name_and_no_number():
    model = featx.create_model("timm/test_vit3").eval()
    with torch.no_grad(), capture_attention(model, [-1, "attn_pool"]) as seen:
        model(images(1, 3, 160, 160))
    assert [(name, map_.shape[-2]) for name, map_ in seen.maps.items()] == [("blocks.8", 101), ("attn_pool", 1)]


@pytest.mark.parametrize("name", ["xcit_nano_12_p8_224", "cait_xxs24_224"])
def test_only_known_attention_of_a_mixed_model_is_captured(name):
    model = featx.create_model(f"timm/{name}")
    known = [module for module in model.modules() if type(module).__name__ == "ClassAttn"]
    with capture_attention(model) as seen:
        assert len(seen.positions) == len(known) == 2


@pytest.mark.parametrize(
    ("name", "suspect"),
    [
        ("edgenext_xx_small", "CrossCovarianceAttn"),
        ("coat_tiny", "FactorAttnConvRelPosEnc"),
        ("vit_dwee_patch16_reg1_gap_256", "DiffAttention"),
    ],
)
def test_attention_of_other_kinds_is_refused(name, suspect):
    model = featx.create_model(f"timm/{name}")
    with pytest.raises(ContractError, match=f"{suspect}.* have no map that could be proven"):
        capture_attention(model).__enter__()


def test_unknown_classes_of_the_packages_are_not_taken_by_name_either():
    model = featx.create_model("timm/edgenext_xx_small")
    with pytest.raises(ContractError, match="CrossCovarianceAttn"):
        capture_attention(model, ["stages.1.blocks.1.xca"]).__enter__()


@pytest.mark.parametrize("full_name", KINDS)
def test_every_class_that_is_named_exists(full_name):
    from importlib import import_module

    module, _, name = full_name.rpartition(".")
    assert issubclass(getattr(import_module(module), name), nn.Module)


# A small model for each class of timm that is named, and for each model type of transformers.
ARCHITECTURES = [
    *("test_vit", "vit_pe_spatial_tiny_patch16_512", "mobilenetv4_hybrid_medium_075", "test_vit3", "resnet50_clip"),
    *(
        "beit_base_patch16_224",
        "cait_xxs24_224",
        "crossvit_tiny_240",
        "davit_tiny",
        "efficientformer_l1",
        "eva02_tiny_patch14_224",
    ),
    *("fastvit_mci0", "gcvit_xxtiny", "sam2_hiera_tiny", "levit_128s", "test_coatnet", "test_maxvit", "caformer_s18"),
    *("mvitv2_tiny", "nextvit_small", "pvt_v2_b0", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"),
    *("swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "twins_svt_small", "test_vit_relpos"),
    *("visformer_tiny", "volo_d1_224", "mobilevitv2_050"),
]
TYPES = [
    *("aimv2_vision_model", "beit", "blip_vision_model", "chinese_clip_vision_model", "clip_vision_model"),
    *("data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "donut-swin", "dpt", "glpn", "ijepa"),
    *("internvl_vision", "levit", "lw_detr_vit", "maskformer-swin", "metaclip_2_vision_model", "mlcd_vision_model"),
    *(
        "mobilevit",
        "mobilevitv2",
        "pixio",
        "pvt",
        "pvt_v2",
        "rf_detr_dinov2",
        "sam2_hiera_det_model",
        "sam_vision_model",
    ),
    *("sam_hq_vision_model", "sapiens2", "segformer", "siglip_vision_model", "swin", "swinv2", "tipsv2_vision_model"),
    *("vit", "vit_mae", "vit_msn", "vitpose_backbone"),
]


def small(name: str) -> nn.Module:
    """The model type with few blocks, where these fields mean what they say."""
    fields = {key: value for key, value in SMALL.items() if key != "image_size"}
    without = {key: value for key, value in fields.items() if key != "intermediate_size"}
    for arch in ({},) if "swin" in name else (fields, without, {}):
        try:
            return featx.create_model(f"transformers/{name}", **arch).eval()
        except ArgumentError:
            continue
    raise AssertionError(name)


def captured_classes(model: nn.Module, x: Tensor) -> set[str]:
    """Full names of the classes whose maps were captured, after holding them to what every map is."""
    named = {"pixel_values": x} if hasattr(model, "config") else {}
    call = (lambda: model(**named)) if named else (lambda: model(x))
    with torch.no_grad():
        torch.manual_seed(1)  # masked autoencoders shuffle
        expected = call()
        with capture_attention(model) as seen:
            torch.manual_seed(1)
            output = call()
    tensors = [(output, expected)] if isinstance(output, Tensor) else [(output[k], expected[k]) for k in output]
    assert all(torch.equal(a, b) for a, b in tensors if isinstance(a, Tensor))
    assert sorted(seen.maps) == sorted(seen.positions)
    for map_ in seen.maps.values():
        assert map_.ndim == 4
        assert map_.min() >= 0
        assert (map_.sum(-1) - 1).abs().max() <= 1e-5
    return {type(module).__module__ + "." + type(module).__qualname__ for module in model.modules()} & KINDS.keys()


@pytest.mark.bridges
def test_every_class_of_timm_that_is_named_is_captured():
    found = set()
    for name in ARCHITECTURES:
        model = featx.create_model(f"timm/{name}").eval()
        size = model.pretrained_cfg["input_size"][-2:]
        found |= captured_classes(model, images(1, 3, *size))
    assert {name for name in KINDS if name.startswith("timm.")} <= found


@pytest.mark.bridges
def test_every_class_of_transformers_that_is_named_is_captured():
    found = set()
    for name in TYPES:
        model = small(name)
        size = getattr(model.config, "image_size", None) or 224
        size = size if isinstance(size, list | tuple) else (size, size)
        found |= captured_classes(model, images(1, 3, *size))
    named = {name for name in KINDS if name.startswith("transformers.")}
    assert named - found == {"transformers.models.data2vec.modeling_data2vec_vision.Data2VecVisionSelfAttention"}
