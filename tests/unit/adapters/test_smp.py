"""Models of segmentation_models_pytorch on our backbones."""

import sys

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from conftest import SMALL, images, random_extractor
from support.adapters import CNNS, VITS, assert_close, assert_trains, is_vit, matrix, reloaded, stem
from torch import nn

import featx
from featx.adapters import smp as adapter
from featx.adapters.smp_dpt import dpt

PLAIN = ["Segformer", "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "UPerNet"]
DILATED = ["DeepLabV3", "DeepLabV3Plus", "PAN"]
NARROW = {
    "Unet": {"decoder_channels": (16, 16, 16, 8, 8)},
    "UnetPlusPlus": {"decoder_channels": (16, 16, 16, 8, 8)},
    "MAnet": {"decoder_channels": (16, 16, 16, 8, 8), "decoder_pab_channels": 8},
    **{kind: {"decoder_channels": 16} for kind in ("DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet")},
    "FPN": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    "PSPNet": {"psp_out_channels": 16},
    "Segformer": {"decoder_segmentation_channels": 16},
}


@pytest.fixture(autouse=True)
def encoders(monkeypatch):
    """Names registered by a test are forgotten after it."""
    monkeypatch.setattr(smp.encoders, "encoders", dict(smp.encoders.encoders))
    return smp.encoders.encoders


def register(name):
    return adapter.register(name, pyramid_channels=16 if is_vit(name) else 0)


def built(kind, name, **arguments):
    torch.manual_seed(0)
    return getattr(smp, kind)(register(name), encoder_weights=None, classes=2, **NARROW.get(kind, {}), **arguments)


def assert_reloads(model, fresh, x):
    again = reloaded(model, fresh)
    with torch.no_grad():
        logits = model.eval()(x)
        assert logits.shape == (len(x), 2, *x.shape[2:])
        assert_close(again(x), logits)


def images_for(kind, name):
    side = 160 if name == "timm/test_vit" else 128 if kind == "PAN" else 64  # PAN pools thrice
    return images(2, 3, side, side)


@pytest.mark.parametrize(("kind", "name"), matrix(PLAIN))
def test_decoders_train_and_keep_their_numbers_through_a_file(kind, name):
    model, x = built(kind, name), images_for(kind, name)
    if kind == "PSPNet" and is_vit(name):  # it reads the last map alone
        model.encoder.body.get_submodule("necks.0.simfp_2").requires_grad_(False)
    assert_trains(model.train(), model(x).square().mean())
    assert_reloads(model, built(kind, name), x)


@pytest.mark.parametrize(("kind", "name"), matrix(DILATED, CNNS))
def test_dilated_decoders_too(kind, name):
    model, x = built(kind, name), images_for(kind, name)
    assert model.encoder.output_stride < 32
    assert [map_.shape[-1] for map_ in model.encoder(x)][-1] == x.shape[-1] // model.encoder.output_stride
    assert_trains(model.train(), model(x).square().mean())
    assert_reloads(model, built(kind, name), x)


@pytest.mark.parametrize("kind", DILATED)
def test_transformers_cannot_be_dilated(kind):
    with pytest.raises(featx.ArgumentError, match="cannot trade strides for dilation"):
        built(kind, VITS[0])


def test_a_plain_transformer_is_refused_without_a_pyramid():
    name = adapter.register(VITS[0])
    with pytest.raises(featx.ArgumentError, match=r"no map of stride 32.*all its maps.*16.*pyramid_channels"):
        smp.Unet(name, encoder_weights=None)


def test_a_stride_that_is_missing_is_a_map_without_channels():
    encoder = smp.encoders.get_encoder(adapter.register("convnext_atto"), weights=None)
    x = images(2, 3, 64, 96)
    shapes = [tuple(map_.shape[1:]) for map_ in encoder(x)]
    assert shapes == [(3, 64, 96), (0, 32, 48), (40, 16, 24), (80, 8, 12), (160, 4, 6), (320, 2, 3)]
    assert encoder.out_channels == [shape[0] for shape in shapes]


def test_shapes_are_those_of_the_packages_own_encoder():
    ours = smp.encoders.get_encoder(adapter.register("resnet18"), in_channels=4, depth=4, weights=None)
    theirs = smp.encoders.get_encoder("resnet18", in_channels=4, depth=4, weights=None)
    x = images(2, 4, 64, 64)
    assert ours.out_channels == theirs.out_channels
    assert ours.output_stride == theirs.output_stride == 16
    assert [map_.shape for map_ in ours(x)] == [map_.shape for map_ in theirs(x)]


@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_is_the_packages_own(stride):
    ours = smp.encoders.get_encoder(adapter.register("resnet18"), weights=None, output_stride=stride)
    theirs = smp.encoders.get_encoder("resnet18", weights=None, output_stride=stride)
    x = images(2, 3, 64, 64)
    assert [map_.shape for map_ in ours(x)] == [map_.shape for map_ in theirs(x)]


def test_maps_are_those_of_the_extractor():
    encoder = smp.encoders.get_encoder(adapter.register("resnet18"), weights=None).eval()
    plain = random_extractor("resnet18")
    encoder.body.load_state_dict(plain.state_dict())
    x = images(2, 3, 64, 64)
    assert all(torch.equal(ours, map_) for ours, map_ in zip(encoder(x)[1:], plain(x), strict=True))


def test_weights_are_kept_when_channels_change(tmp_path):
    featx.save(featx.create_model("resnet18"), tmp_path)
    name = adapter.register("resnet18", checkpoint_path=str(tmp_path))
    three, one = (smp.encoders.get_encoder(name, in_channels=n, weights=None) for n in (3, 1))
    assert stem(one).shape[1] == 1
    torch.testing.assert_close(stem(one), stem(three).sum(1, keepdim=True))
    assert torch.equal(one.body.layer1[0].conv1.weight, three.body.layer1[0].conv1.weight)


def test_odd_sizes_pass_where_the_package_takes_them():
    model = built("Unet", "convnext_atto").eval()
    assert model(images(1, 3, 65, 97)).shape == (1, 2, 65, 97)


def test_saved_models_are_built_again_by_name(tmp_path):
    model = built("FPN", "mobilenetv3_small_050").eval()
    model.save_pretrained(tmp_path)
    again = smp.from_pretrained(tmp_path).eval()
    x = images(1, 3, 64, 64)
    assert_close(again(x), model(x))


@pytest.mark.parametrize("depth", [0, 6])
def test_a_depth_that_the_package_does_not_have_is_refused(depth):
    with pytest.raises(featx.ArgumentError, match="expected 1 to 5"):
        smp.encoders.get_encoder(adapter.register("resnet18"), depth=depth, weights=None)


def test_what_models_there_choose_is_not_registered():
    with pytest.raises(featx.ArgumentError, match=r"\['in_chans'\].*pass them there"):
        adapter.register("resnet18", in_chans=4)


@pytest.mark.parametrize("readout", ["ignore", "add", "cat"])
def test_dpt_trains_on_a_plain_transformer(readout):
    def model():
        torch.manual_seed(0)
        source = random_extractor("vit_tiny_patch16_224", out_indices=[2, 5, 8, 11], output="tokens")
        return dpt(source, 2, readout=readout, intermediate_channels=(8,) * 4, fusion_channels=8)

    made, x = model().train(), images(2, 3, 64, 96)
    loss = made(x).square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in made.parameters())
    assert stem(made).grad.abs().max() > 0
    assert_reloads(made, model(), x)


def test_dpt_without_prefix_tokens_ignores_them():
    source = random_extractor("vit_wee_patch16_reg1_gap_256", registers=0, out_indices=[1, 3, 5, 7], output="tokens")
    with pytest.raises(featx.ArgumentError, match="'ignore'"):
        dpt(source, 2, readout="cat")
    model = dpt(source, 2, readout="ignore", intermediate_channels=(8,) * 4, fusion_channels=8).eval()
    assert model(images(1, 3, 64, 64)).shape == (1, 2, 64, 64)


def test_dpt_needs_tokens_of_four_levels():
    with pytest.raises(featx.ArgumentError, match="output='tokens'"):
        dpt(random_extractor("vit_tiny_patch16_224", out_indices=4), 2)
    with pytest.raises(featx.ContractError, match="four levels"):
        dpt(random_extractor("vit_tiny_patch16_224", out_indices=3, output="tokens"), 2)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "segmentation_models_pytorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(featx.MissingPackageError, match=r"segmentation_models_pytorch.*featx\[smp\]"):
        adapter.register("resnet18")
    with pytest.raises(featx.MissingPackageError, match=r"featx\[smp\]"):
        dpt(nn.Identity(), 2)


# Families that enlarge maps, and every decoder on every family


def decoder_of(name, size):
    """The sizes of the encoder's maps, and of the logits of the decoder that doubles them most strictly."""
    model = built("FPN", name).eval()
    x = images(1, 3, *size)
    return [tuple(map_.shape[2:]) for map_ in model.encoder(x)[2:]], tuple(model(x).shape[2:])


@pytest.mark.parametrize("name", ["mobilevitv2_050", "timm/mobilevitv2_050"])
@pytest.mark.parametrize("size", [(96, 96), (96, 160)])
def test_maps_that_a_family_enlarges_are_resized_to_their_strides(name, size):
    height, width = size
    cells = [(height // stride, width // stride) for stride in (4, 8, 16, 32)]
    assert decoder_of(name, size) == (cells, size)


def test_resized_maps_are_those_of_the_extractor_with_its_corners_in_place():
    encoder = smp.encoders.get_encoder(adapter.register("mobilevitv2_050"), weights=None).eval()
    plain = random_extractor("mobilevitv2_050")
    encoder.body.load_state_dict(plain.state_dict())
    x = images(2, 3, 96, 96)
    ours, maps = encoder(x)[1:], plain(x)
    assert [map_.shape[-1] for map_ in maps] == [48, 24, 12, 6, 4]
    assert all(torch.equal(ours[i], maps[i]) for i in range(4))
    assert_close(ours[4], F.interpolate(maps[4], (3, 3), mode="bilinear", align_corners=True))
    assert_close(ours[4][..., ::2, ::2], maps[4][..., ::3, ::3])


@pytest.mark.parametrize(
    ("kind", "name"), [(k, "mobilevitv2_050") for k in ("FPN", "Linknet", "UnetPlusPlus", "MAnet")]
)
def test_decoders_that_double_maps_take_enlarged_ones(kind, name):
    assert built(kind, name).eval()(images(1, 3, 96, 96)).shape == (1, 2, 96, 96)


EVERY = [name for name in SMALL if not name.startswith("vit_")]
TRANSFORMERS = [*(name for name in SMALL if name.startswith("vit_")), "vit_small_patch14_dinov2"]
SWIN = "timm/swin_tiny_patch4_window7_224"


def any_size(kind, name):
    pyramid = {"pyramid_channels": 16} if name in TRANSFORMERS else {}
    more = {"embed_dim": 16, "strict_img_size": False} if name == SWIN else {}
    encoder = adapter.register(name, **pyramid, **more)
    return getattr(smp, kind)(encoder, encoder_weights=None, classes=2, **NARROW.get(kind, {})).eval()


@pytest.mark.sweep
@pytest.mark.usefixtures("shapes_alone")
@pytest.mark.parametrize("name", [*EVERY, *TRANSFORMERS, SWIN])
@pytest.mark.parametrize("kind", [*PLAIN, *DILATED])
def test_every_decoder_takes_every_family_or_says_why_not(kind, name):
    if kind in DILATED and not can_dilate(name):
        with pytest.raises(ValueError, match="cannot trade strides"):
            any_size(kind, name)
        return
    if (kind, name) == ("PSPNet", "rexnet_100"):
        pytest.skip("smp's pyramid pooling needs channels that are multiples of 4, and the level has 61")
    with torch.device("meta"), torch.no_grad():
        model = any_size(kind, name)
        for size in [(224, 224), (192, 256)]:
            assert model(torch.empty(1, 3, *size)).shape == (1, 2, *size)


def can_dilate(name):
    """As the family says itself."""
    if name in TRANSFORMERS or name == SWIN:
        return False
    try:
        with torch.device("meta"):
            featx.create_model(name, output_stride=16)
    except featx.ArgumentError:
        return False
    return True


@pytest.mark.parametrize("choice", [{"depth": 0}, {"depth": 6}, {"output_stride": 5}], ids=str)
def test_wrong_choices_are_value_errors_as_of_the_packages_own_encoders(choice):
    with pytest.raises(ValueError, match=r"expected|choose") as raised:
        smp.encoders.get_encoder(adapter.register("resnet18"), weights=None, **choice)
    assert isinstance(raised.value, featx.FeatxError)
