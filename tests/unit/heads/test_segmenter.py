"""Whole networks for segmentation: against transformers, and there and back through every layout.

CVNets cannot be installed: its numbers are checked by check_golden.py, and its names are written out here.
"""

import pickle
from copy import deepcopy

import pytest
import torch
from conftest import images, randomize, relative_difference, same_state
from safetensors.torch import save_file
from support.mindspore_names import both, conv_norm

import featx
from featx import ArgumentError, CheckpointError
from featx.heads import AuxiliaryHead, DeepLabV3Config, LinearProbe, PSPNetConfig, Segmenter, segmentation_loss
from featx.weights.layout import all_layouts, recognize_layout

NARROW = DeepLabV3Config(chs=16)
BACKBONES = ["mobilevit_xxs", "mobilevitv2_050"]
XXS = {"hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "expand_ratio": 2.0}


def segmenter(backbone="mobilevitv2_050", head=NARROW, num_classes=5, **arguments):
    return featx.create_segmenter(head, backbone, num_classes=num_classes, **arguments)


def transformers_model(backbone, **config):
    transformers = pytest.importorskip("transformers")
    config = {"num_labels": 5, "aspp_out_channels": 16, **config}
    if backbone == "mobilevit_xxs":
        model = transformers.MobileViTForSemanticSegmentation(transformers.MobileViTConfig(**XXS, **config))
    else:
        config = transformers.MobileViTV2Config(width_multiplier=0.5, **config)
        model = transformers.MobileViTV2ForSemanticSegmentation(config)
    return lively(randomize(model))


def lively(model):
    """Weights of a size that keeps the deviation of maps, in place; transformers' own make maps nearly constant."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, (1.5 / parameter[0].numel()) ** 0.5, generator=generator)
    return model


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_logits_and_loss_are_those_of_transformers(backbone, stride):
    reference = transformers_model(backbone, output_stride=stride)
    ours = segmenter(backbone, output_stride=stride, checkpoint_path=reference.state_dict()).eval()
    x, labels = images(1, 3, 128, 192), torch.randint(0, 5, (1, 128, 192))
    labels[:, :9] = 255
    theirs = x.flip(1) if backbone == "mobilevit_xxs" else x  # its weights take BGR
    with torch.no_grad():
        expected = reference(theirs, labels=labels)
        assert relative_difference(ours.forward_coarse(x), expected.logits) <= 1e-5
        torch.testing.assert_close(ours(x, labels), expected.loss, rtol=1e-5, atol=0)


def test_transformers_does_not_dilate_the_local_convolutions_of_v2_and_cvnets_does():
    reference, x = transformers_model("mobilevitv2_050", output_stride=8), images(1, 3, 128, 128)
    state = reference.state_dict()
    as_there = segmenter(output_stride=8, checkpoint_path=state).eval()
    asked = segmenter(output_stride=8, checkpoint_path=state, local_dilation=True).eval()
    assert (as_there.config.local_dilation, asked.config.local_dilation) == (False, True)
    assert any("local convolutions are not dilated" in note for note in as_there.load_report.notes)
    with torch.no_grad():
        assert relative_difference(asked.forward_coarse(x), as_there.forward_coarse(x)) > 1e-2


def test_a_folder_of_transformers_says_stride_and_labels(tmp_path):
    names = {0: "nothing", 1: "cat", 2: "dog", 3: "toad", 4: "cow"}
    reference = transformers_model("mobilevitv2_050", output_stride=16, id2label=names, atrous_rates=[2, 4, 6])
    reference.save_pretrained(tmp_path)
    head, x = DeepLabV3Config(16, (2, 4, 6)), images(1, 3, 128, 192)
    ours = segmenter(head=head, checkpoint_path=tmp_path).eval()
    assert ours.feature_info.reduction() == [16]
    assert ours.label_names == tuple(names.values())
    with torch.no_grad():
        assert relative_difference(ours.forward_coarse(x), reference(x).logits) <= 1e-5
    assert segmenter(head=head, checkpoint_path=tmp_path, output_stride=8).feature_info.reduction() == [8]
    assert segmenter(head=head, checkpoint_path=tmp_path, num_classes=3).label_names == ()
    with pytest.raises(CheckpointError, match=r"these weights have atrous_rates=\(2, 4, 6\), not \(6, 12, 18\)"):
        segmenter(checkpoint_path=tmp_path)


def test_a_folder_without_a_configuration_says_nothing(tmp_path):
    save_file(segmenter("resnet18").state_dict(), tmp_path / "model.safetensors")
    assert segmenter("resnet18", checkpoint_path=tmp_path).label_names == ()


def test_a_segmenter_can_be_copied_pickled_compiled_and_exported(tolerant_of_torch):
    torch._dynamo.reset()
    model, x = randomize(segmenter("resnet18", aux_head=True)), images(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)
        copies = [deepcopy(model), pickle.loads(pickle.dumps(model))]
        copies += [torch.compile(model, backend="eager", fullgraph=True), torch.export.export(model, (x,)).module()]
        assert all(relative_difference(copy(x), expected) <= 1e-6 for copy in copies)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_transformers_names_come_back(backbone):
    state = transformers_model(backbone).state_dict()
    ours = segmenter(backbone, checkpoint_path=state)
    layout = recognize_layout(state, ["Segmenter"])
    assert layout.system == ours.load_report.layout == "transformers"
    assert same_state(layout.from_native(ours.state_dict()), state)


AUX = conv_norm("seg_head.aux_head.0") | both("seg_head.aux_head.2.block.conv")
ASPP = "seg_head.aspp.aspp_layer"
CVNETS = {
    "deeplabv3": (
        NARROW,
        set.union(*(conv_norm(f"{ASPP}.convs.{number}") for number in range(4)))
        | conv_norm(f"{ASPP}.convs.4.aspp_pool.conv_1x1")
        | conv_norm(f"{ASPP}.project")
        | both("seg_head.classifier.block.conv"),
    ),
    "pspnet": (
        PSPNetConfig(chs=24),
        set.union(*(conv_norm(f"seg_head.psp_layer.psp_branches.{number}.1") for number in range(4)))
        | conv_norm("seg_head.psp_layer.fusion.0")
        | both("seg_head.classifier.block.conv"),
    ),
    "linear": ("linear", both("seg_head.classifier.block.conv")),
}


def cvnets_layout(backbone):
    family = "MobileViTV2" if "v2" in backbone else "MobileViT"
    rows = [layout for layout in all_layouts() if (layout.system, layout.family) == ("cvnets", "Segmenter")]
    return rows[["MobileViT", "MobileViTV2"].index(family)]


@pytest.mark.parametrize("kind", CVNETS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_cvnets_names_lead_there_and_back(backbone, kind):
    head, names = CVNETS[kind]
    model = randomize(segmenter("mobilevitv2_100" if kind == "pspnet" else backbone, head, aux_head=True))
    layout = cvnets_layout("mobilevitv2_100" if kind == "pspnet" else backbone)
    foreign = layout.from_native(model.state_dict())
    assert {name for name in foreign if not name.startswith("encoder.")} == names | AUX
    assert not any("classifier" in name or "conv_1x1_exp" in name for name in foreign if name.startswith("encoder."))
    assert recognize_layout(foreign, ["Segmenter"]) is layout
    assert same_state(layout.to_native(foreign, model.state_dict().keys()), model.state_dict())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_checkpoint_of_cvnets_fills_a_segmenter_that_resizes_as_cvnets(backbone, tmp_path):
    model = randomize(segmenter(backbone, output_stride=16, aux_head=True, align_corners=True))
    foreign = cvnets_layout(backbone).from_native(model.state_dict())
    torch.save({**foreign, "encoder.neural_augmentor.noise._low": torch.zeros(1)}, tmp_path / "w.pt")
    again = segmenter(backbone, output_stride=16, aux_head=True, checkpoint_path=tmp_path / "w.pt").eval()
    assert again.align_corners
    assert any("aligned corners" in note for note in again.load_report.notes)
    assert list(again.load_report.skipped) == ["encoder.neural_augmentor.noise._low"]
    with torch.no_grad():
        assert torch.equal(again(images()), model(images()))


def test_without_an_auxiliary_head_that_of_the_checkpoint_is_left_out():
    foreign = cvnets_layout("v2").from_native(segmenter(aux_head=True).state_dict())
    report = segmenter(checkpoint_path=foreign).load_report
    assert {*report.skipped.values()} == {"of the auxiliary head: aux_head=True"}
    assert len(report.skipped) == 8


def test_loading_in_place_refuses_a_segmenter_that_resizes_otherwise():
    foreign = cvnets_layout("v2").from_native(segmenter().state_dict())
    with pytest.raises(CheckpointError, match=r"whose numbers need \{'align_corners': True\}"):
        featx.load_weights(segmenter(), foreign)
    assert featx.load_weights(segmenter(align_corners=True), foreign).layout == "cvnets"


def test_a_head_that_a_program_lacks_has_no_way_back():
    layouts = {layout.system: layout for layout in all_layouts() if layout.family == "Segmenter"}
    with pytest.raises(CheckpointError, match=r"transformers has no place for 8 of these tensors: 'aux\.local"):
        layouts["transformers"].from_native(segmenter(aux_head=True).state_dict())
    strange = {**segmenter().state_dict(), "head.strange": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"cvnets has no place for 1 of these tensors: 'head\.strange'"):
        layouts["cvnets"].from_native(strange)


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto", "vit_wee_patch16_reg1_gap_256", *BACKBONES])
@pytest.mark.parametrize("head", ["linear", NARROW])
def test_every_backbone_gives_logits_at_the_size_of_the_image(backbone, head):
    model = segmenter(backbone, head).eval()
    with torch.no_grad():
        assert model(images(1, 3, 100, 68)).shape == (1, 5, 100, 68)
        coarse = model.forward_coarse(images(1, 3, 128, 64))
    assert coarse.shape[2:] == (128 // model.feature_info[-1].reduction, 64 // model.feature_info[-1].reduction)


@pytest.mark.parametrize("backbone", ["timm/resnet18", "torchvision/mobilenet_v3_small"])
def test_backbones_of_other_packages_serve_as_well(backbone):
    pytest.importorskip("timm")
    model = segmenter(backbone, "linear", aux_head=True).train()
    loss = model(images(), torch.randint(0, 5, (2, 64, 96)))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_backbones_own_weights_can_be_taken(tmp_path):
    plain = randomize(featx.create_model("resnet18", num_classes=3))
    featx.save(plain, tmp_path)
    ours = segmenter(f"local-dir:{tmp_path}", "linear", pretrained=True).backbone.state_dict()
    assert same_state(ours, {name: tensor for name, tensor in plain.state_dict().items() if name in ours})
    assert len(ours) == len(plain.state_dict()) - 2  # without its classifier


def test_the_head_takes_the_last_stage_and_not_its_expansion():
    assert segmenter("mobilevit_xxs").feature_info.names() == ["stages.4"]
    assert segmenter("mobilevit_xxs", output_stride=8, aux_head=True).feature_info.names() == ["stages.3", "stages.4"]
    assert segmenter("resnet18", aux_head=True).feature_info.names() == ["layer3", "layer4"]


@pytest.mark.parametrize("backbone", ["resnet18", "vit_wee_patch16_reg1_gap_256", "mobilevit_xxs"])
def test_a_step_of_training_reaches_every_parameter(backbone):
    model = randomize(segmenter(backbone, aux_head=True)).train()  # residual branches start with a scale of zero
    model(images(), torch.randint(0, 5, (2, 64, 96))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_the_loss_counts_the_auxiliary_head_in_training_alone():
    model, labels = segmenter("resnet18", "linear", aux_head=True), torch.randint(0, 5, (2, 64, 96))
    for module in model.modules():
        module.p = 0.0
    model.eval()
    torch.testing.assert_close(model(images(), labels), segmentation_loss(model(images()), labels))
    model.aux.train()
    model.training = True
    assert model(images(), labels) > segmentation_loss(model(images()), labels)


def test_a_segmenter_learns_a_toy():
    torch.manual_seed(0)
    x = images(4, 3, 64, 64)
    labels = torch.zeros(4, 64, 64, dtype=torch.long)
    x[:, :, :32, 32:] += 3
    labels[:, :32, 32:] = 1
    model = segmenter("resnet18", num_classes=2, output_stride=16)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(x, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_saved_segmenter_loads_again(tmp_path):
    model = randomize(segmenter("resnet18", aux_head=True))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    again = segmenter("resnet18", aux_head=True, checkpoint_path=tmp_path / "w.safetensors").eval()
    assert again.load_report.layout == "native"
    assert same_state(again.state_dict(), model.state_dict())
    with torch.no_grad():
        assert relative_difference(again(images()), model(images())) <= 1e-6  # of tensors elsewhere in memory


def test_another_number_of_classes_leaves_the_classifiers_fresh():
    state = segmenter("resnet18", aux_head=True).state_dict()
    report = segmenter("resnet18", aux_head=True, num_classes=7, checkpoint_path=state).load_report
    classifiers = {f"{part}.classifier.{leaf}" for part in ("head", "aux") for leaf in ("weight", "bias")}
    assert {*report.fresh} == {*report.skipped} == classifiers


def test_another_width_of_the_head_is_refused_with_both():
    shapes = r"head\.aspp\.convs\.0\.0\.weight: \(16, 256, 1, 1\), .* \(32, 256, 1, 1\)"
    with pytest.raises(CheckpointError, match=shapes):
        segmenter(head=DeepLabV3Config(chs=32), checkpoint_path=segmenter().state_dict())


def test_keys_are_those_of_the_plain_model_behind_backbone():
    plain, ours = featx.create_model("resnet18").state_dict(), segmenter("resnet18").state_dict()
    inside = {name.removeprefix("backbone.") for name in ours if name.startswith("backbone.")}
    assert inside == {name for name in plain if not name.startswith("fc.")}


def test_a_plain_model_takes_its_part_of_a_segmenters_checkpoint():
    state = randomize(segmenter("resnet18")).state_dict()
    extractor = featx.create_model("resnet18", features_only=True, checkpoint_path=state)
    assert all(torch.equal(tensor, state[f"backbone.{name}"]) for name, tensor in extractor.state_dict().items())


def test_any_source_of_maps_can_be_the_backbone():
    extractor = featx.create_model("resnet18", features_only=True, out_indices=[2, 3], output="dict")
    model = Segmenter(extractor, LinearProbe(extractor.feature_info, 5), AuxiliaryHead(extractor.feature_info, 5))
    assert model(images()).shape == (2, 5, 64, 96)
    assert model.in_chans == 3
    assert model.data_config == extractor.data_config


def test_a_head_of_another_backbone_is_refused():
    extractors = [featx.create_model(name, features_only=True) for name in ("resnet18", "mobilevit_xxs")]
    with pytest.raises(ArgumentError, match="LinearProbe was built for other levels than the backbone returns"):
        Segmenter(extractors[0], LinearProbe(extractors[1].feature_info, 5))


def test_other_channels_device_and_dtype_are_passed_on():
    model = segmenter("resnet18", in_chans=1, dtype=torch.float64, checkpoint_path=segmenter("resnet18").state_dict())
    assert model.eval()(images(1, 1, 64, 64).double()).dtype == torch.float64
    assert "summed over the 3 input channels" in model.load_report.adapted.values()


def test_a_checkpoint_that_the_caller_holds_is_not_changed_by_training():
    state = segmenter("resnet18").state_dict()
    model = segmenter("resnet18", checkpoint_path=state)
    with torch.no_grad():
        model.head.classifier.weight.zero_()
    assert state["head.classifier.weight"].abs().max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "deeplab"}, r"there is no head 'deeplab': choose one of \['deeplabv3', 'pspnet', 'linear'\]"),
        ({"num_classes": 0}, "expected an int of at least 1"),
        ({"pretrained": True, "checkpoint_path": {}}, "pass one of them"),
        ({"backbone": "vit_tiny_patch16_224", "output_stride": 8}, "leave output_stride out"),
        ({"output_stride": 4}, "choose one of"),
        ({"chs": 512}, "has no argument 'chs'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        segmenter(**arguments)


def test_an_unknown_name_is_not_an_attribute_of_the_package():
    with pytest.raises(AttributeError, match="has no attribute 'create_sgmenter'"):
        featx.create_sgmenter  # noqa: B018
