"""Names, arguments and weights of timm's models, and the table of all architectures in docs/bridges.md."""

import importlib.util
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import assert_same, images, randomize
from support.timm_extractors import extractor, maps_of, on_meta
from torch import nn

import featx
from featx.bridge_registry import bridge_of, bridge_to
from featx.bridges import timm as bridge


def test_output_stride_is_passed_on():
    assert bridge.pyramid(on_meta("test_resnet", output_stride=8)).feature_info.reduction() == [2, 4, 8, 8, 8]


@pytest.mark.parametrize("name", ["test_vit", "vgg11", "hrnet_w18_small", "ghostnet_050"])
def test_an_architecture_that_cannot_trade_strides_says_so(name):
    with pytest.raises(featx.ArgumentError, match="output_stride"):
        bridge.build(name, output_stride=8)


def test_channels_and_classes_are_choices():
    model = on_meta("test_resnet", in_chans=5, num_classes=7)
    assert extractor(model).in_chans == 5
    assert model(torch.empty(1, 5, 64, 64, device="meta")).shape == (1, 7)


def test_preprocessing_is_what_timm_publishes():
    data = extractor(on_meta("vit_base_patch16_clip_224.openai", depth=1)).data_config
    assert (data.mean, data.size, data.interpolation) == (featx.preprocessing.CLIP_MEAN, (224, 224), "bicubic")
    assert extractor(on_meta("tf_efficientnetv2_b3.in21k_ft_in1k")).data_config.crop_mode == "squash"


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("resnet81", featx.UnknownModelError, "the closest are .*'resnet18'"),
        ("resnet18.nope", featx.UnknownModelError, "no weights tagged 'nope'; it has .*'a1_in1k'"),
    ],
)
def test_unknown_names_come_with_the_known_ones(name, error, match):
    with pytest.raises(error, match=match):
        bridge.build(name)


def test_unknown_arguments_come_with_the_known_ones():
    with pytest.raises(featx.ArgumentError, match=r"no argument 'drop_pth_rate': its class has \[.*'drop_path_rate'"):
        bridge.build("test_resnet", drop_pth_rate=0.1)


def test_arguments_of_timms_own_feature_nets_are_refused():
    with pytest.raises(featx.ArgumentError, match="no argument 'features_only'"):
        bridge.build("test_resnet", features_only=True)


def test_weights_that_are_nowhere_are_missed():
    unpublished = sorted(set(timm.list_models("resnet*")) - {n.partition(".")[0] for n in timm.list_pretrained()})
    with pytest.raises(featx.WeightsNotFoundError, match="no published weights"):
        bridge.build(unpublished[0], pretrained=True)


def test_weights_that_cannot_be_fetched_are_missed(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(featx.WeightsNotFoundError, match=r"could not load the weights of test_resnet .*no route"):
        bridge.build("test_resnet", pretrained=True)


def test_weights_are_loaded_as_timm_loads_them(monkeypatch):
    tuned = randomize(bridge.build("test_vit"), seed=3)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *a, **k: dict(tuned.state_dict()))
    model = bridge.build("test_vit.r160_in1k", pretrained=True).eval()
    assert_same(maps_of(extractor(model), images(1, 3, 160, 160)), maps_of(extractor(tuned), images(1, 3, 160, 160)))


def test_a_feature_net_of_timm_is_refused():
    net = timm.create_model("test_resnet", features_only=True)
    with pytest.raises(featx.ContractError, match="without features_only=True"):
        bridge.pyramid(net)


def test_a_bridge_is_found_by_name_and_by_model():
    assert bridge_of("timm/test_vit.r160_in1k") == (bridge, "test_vit.r160_in1k")
    assert bridge_to(on_meta("test_vit")) is bridge


def test_a_model_that_runs_at_no_size_is_refused():
    model = bridge.build("test_resnet")
    model.conv1 = nn.Linear(1, 1)
    with pytest.raises(featx.ContractError, match="does not run on images of"):
        bridge.pyramid(model)


def table():
    """The module that writes the tables in docs/bridges.md."""
    spec = importlib.util.spec_from_file_location("bridge_table", Path(__file__).parents[3] / "docs" / "bridges.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.bridges
@pytest.mark.filterwarnings("ignore")  # some architectures warn of their own age
@pytest.mark.parametrize("name", timm.list_models())
def test_every_architecture_keeps_the_contract_on_shapes(name):
    row = table().timm_row(name)
    assert not row.refused


def test_the_table_is_of_this_timm():
    text = (Path(__file__).parents[3] / "docs" / "bridges.md").read_text()
    section = text.partition(f"### timm {timm.__version__}\n")[2].partition("\n### ")[0]
    assert f"| all | {len(timm.list_models())} |\n| supported | {len(timm.list_models())} |" in section


def test_a_broken_promise_stops_the_table():
    module, model = table(), on_meta("test_resnet")
    taken = extractor(model, [1, 0])
    taken.feature_info = bridge.pyramid(on_meta("test_vit")).feature_info.select([1, 0])
    with pytest.raises(AssertionError, match="FeatureInfo"):
        module.check_maps(taken, (160, 160))
