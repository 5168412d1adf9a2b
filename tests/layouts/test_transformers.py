"""Checkpoints of transformers: its own models, built from configurations and run beside ours."""

import pytest
import torch
from conftest import images, randomize, same_state
from safetensors.torch import load_file, save_file
from support.transformers_cases import CASES, CLASSES, Case, built, close, outputs, saved
from support.transformers_cases import case as case
from torch import Tensor, nn

import featx
from featx.weights.layout import all_layouts, recognize_layout

CLASSIFIERS = [name for name, case in CASES.items() if case.classifies]


def test_maps_are_those_of_transformers(case, tmp_path):
    theirs, x = built(case.backbone()), images(2, 3, *case.size)
    ours = case.loaded(saved(theirs, tmp_path), features_only=True, out_indices=case.levels, num_classes=0)
    with torch.no_grad():
        close(ours(x), case.maps(outputs(case, theirs, x)))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_are_those_of_a_model_fine_tuned_in_transformers(name, tmp_path):
    case = CASES[name]
    theirs, x = built(case.theirs()), images(2, 3, *case.size)
    ours = case.loaded(saved(theirs, tmp_path), num_classes=CLASSES)
    with torch.no_grad():
        close([ours(x)], [outputs(case, theirs, x).logits])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifiers_file_fills_an_extractor(name, tmp_path):
    case = CASES[name]
    path = saved(built(case.theirs()), tmp_path)
    deepest = case.loaded(path, features_only=True, out_indices=[-1], num_classes=CLASSES)
    full = case.loaded(path, num_classes=CLASSES)
    assert all(torch.equal(full.state_dict()[name], tensor) for name, tensor in deepest.state_dict().items())


def test_the_names_of_a_model_in_memory_are_read_like_those_of_its_file(case, tmp_path):
    theirs = built(case.theirs())
    path = tmp_path / "memory.pt"
    torch.save(theirs.state_dict(), path)
    from_memory = case.loaded(path, num_classes=case.num_classes)
    from_file = case.loaded(saved(theirs, tmp_path), num_classes=case.num_classes)
    assert same_state(from_memory.state_dict(), from_file.state_dict())


NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def test_every_norm_adds_to_the_variance_what_transformers_adds(case):
    theirs, ours = case.theirs(), case.model(num_classes=case.num_classes, **dict(case.layout.settings))
    added = [sorted(norm.eps for norm in model.modules() if isinstance(norm, NORMS)) for model in (ours, theirs)]
    assert added[0] == added[1]


def native(case: Case) -> dict[str, Tensor]:
    return randomize(case.model(num_classes=case.num_classes)).state_dict()


def test_there_and_back_nothing_changes(case):
    state = native(case)
    before = {name: tensor.clone() for name, tensor in state.items()}
    theirs = case.layout.from_native(state)
    given = {name: tensor.clone() for name, tensor in theirs.items()}
    kept = {name: tensor for name, tensor in theirs.items() if not name.endswith("mask_token")}
    assert same_state(case.layout.to_native(kept, state.keys()), before)
    assert same_state(state, before)
    assert same_state(theirs, given)


def test_transformers_loads_what_is_written_for_it_and_writes_the_same(case, tmp_path):
    state = native(case)
    written = case.layout.from_native(state)
    case.config.num_labels = case.num_classes
    case.config.save_pretrained(tmp_path)
    save_file({name: tensor.contiguous() for name, tensor in written.items()}, tmp_path / "model.safetensors")
    theirs, info = type(case.theirs()).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same_state(load_file(saved(theirs, tmp_path / "again")), written)


def test_a_model_without_classifier_is_written_as_the_backbone_alone(case):
    state = randomize(case.model(num_classes=0)).state_dict()
    with torch.device("meta"):
        theirs = case.backbone()
    in_file = {name.removeprefix("model.") for name in theirs.state_dict() if not name.startswith("pooler.")}
    if case.ours.startswith("vit_"):  # whose layers have other names in files
        in_file = {name for name in in_file if "layer" not in name or name.startswith("layernorm")}
    written = case.layout.from_native(state)
    assert in_file <= written.keys()
    assert not any(name.startswith(f"{theirs.base_model_prefix}.") for name in written)


def test_a_model_of_ours_is_not_taken_for_one_of_transformers():
    names = sorted({case.ours for case in CASES.values()} | {"vit_base_patch16_clip_224", "deit3_small_patch16_224"})
    for name in names:
        with torch.device("meta"):
            model = featx.create_model(name)
        assert recognize_layout(model.state_dict(), [type(model).__name__]) is None, name


def test_one_layout_recognizes_a_model_of_transformers(case, tmp_path):
    theirs = built(case.theirs())
    for state in (theirs.state_dict(), load_file(saved(theirs, tmp_path))):
        assert [layout for layout in all_layouts() if layout.recognizes(state)] == [case.layout]


def test_the_first_convolution_of_mobilevit_is_turned_round_and_that_of_v2_is_not(tmp_path):
    for name, turned in {"mobilevit": True, "mobilevitv2": False}.items():
        theirs = built(CASES[name].theirs())
        ours = CASES[name].loaded(saved(theirs, tmp_path), num_classes=CLASSES)
        stem = theirs.base_model.conv_stem.convolution.weight
        assert torch.equal(ours.stem.conv.weight, stem.flip(1) if turned else stem)
