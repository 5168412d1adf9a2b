"""Functions of training, on models of featx and of other packages."""

import copy
import pickle

import pytest
import timm
import torch
from conftest import SMALL, images, randomise
from timm.optim import param_groups_layer_decay
from torch import nn
from torchvision.ops import misc

import featx
from featx import training
from featx.models.layers.drop_path import DropPath
from featx.necks import FPN, Pipeline

NAMES = ["resnet18", "mobilenetv3_small_050", "vit_wee_patch16_reg1_gap_256", "timm/test_resnet", "timm/test_vit"]


def extractor(name, **choice):
    torch.manual_seed(0)
    return randomise(featx.create_model(name, features_only=True, **choice))


def batch(model):
    side = 160 if model.data_config.size == (160, 160) else 64
    return images(2, 3, side, side)


def step(model, x):
    """One step's gradients: mean squares of all maps."""
    torch.manual_seed(1)
    model.train()
    sum(map_.square().mean() for map_ in model(x)).backward()


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def pickled(model):
    return pickle.loads(pickle.dumps(model))


# freezing


@pytest.mark.parametrize("name", NAMES)
def test_exactly_what_the_level_needs_is_frozen(name):
    model = extractor(name)
    training.freeze(model, 1)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    alone = extractor(name, out_indices=[1])
    assert frozen == {name for name, _ in alone.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_level_does_not_change_in_training(name):
    model = extractor(name)
    x = batch(model)
    training.freeze(model, 1)
    before = [map_.detach().clone() for map_ in model(x)]
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step(model, x)
    optimiser.step()
    after = model.eval()(x)
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[-1], after[-1])


def test_the_level_may_be_named_and_counted_from_the_deepest():
    named, counted = extractor("resnet18"), extractor("resnet18")
    training.freeze(named, "layer3")
    training.freeze(counted, -2)
    frozen = [[p.requires_grad for p in model.parameters()] for model in (named, counted)]
    assert frozen[0] == frozen[1]
    assert not frozen[0][0]
    assert frozen[0][-1]


def test_an_index_counts_all_levels_of_the_backbone_as_out_indices_does():
    model = extractor("resnet18", out_indices=[2, 4])
    training.freeze(model, 2)
    assert not model.get_parameter("layer2.0.conv1.weight").requires_grad
    assert model.get_parameter("layer3.0.conv1.weight").requires_grad


@pytest.mark.parametrize("level", [7, "layer9"])
def test_a_level_that_does_not_exist_is_refused(level):
    with pytest.raises(featx.OutIndicesError, match="layer4"):
        training.freeze(extractor("resnet18"), level)


def test_a_level_that_was_cut_off_is_refused():
    with pytest.raises(featx.OutIndicesError, match="deepest is level 2"):
        training.freeze(extractor("resnet18", out_indices=[2]), 3)


def test_the_backbone_is_found_inside_whatever_is_around_it():
    plain = extractor("resnet18", out_indices=[1, 2])
    around = nn.ModuleDict({"detector": Pipeline(plain, FPN(plain.feature_info, 8))})
    training.freeze(around, 1)
    frozen = [name for name, p in around.named_parameters() if not p.requires_grad]
    assert frozen[0] == "detector.backbone.conv1.weight"
    assert frozen[-1].startswith("detector.backbone.layer1.1")


def test_a_model_without_levels_is_refused():
    with pytest.raises(featx.ContractError, match="features_only=True"):
        training.freeze(nn.Linear(2, 2), 0)


def test_several_backbones_are_ambiguous():
    with pytest.raises(featx.ArgumentError, match=r"several.*\['0', '1'\]"):
        training.freeze(nn.Sequential(extractor("resnet18"), extractor("resnet18")), 0)


def test_without_a_level_all_of_the_model_is_frozen():
    model = featx.create_model("resnet18")
    training.freeze(model)
    model.train()
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("again", [copy.deepcopy, pickled], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", ["resnet18", "timm/test_vit"])
def test_copies_stay_frozen_on_their_own(name, again):
    model = extractor(name)
    training.freeze(model, 1)
    copied = again(model)
    training.unfreeze(model)
    copied.train()
    frozen = {path for path, module in copied.named_modules() if not module.training}
    assert frozen
    training.unfreeze(copied)
    assert all(module.training == copied.training for module in copied.modules())


def test_names_in_the_state_dict_stay():
    model = extractor("resnet18")
    before = list(model.state_dict())
    training.freeze(model, 2)
    training.freeze_norms(model)
    training.recompute(model, model.feature_info.names())
    assert list(model.state_dict()) == before


def test_unfreezing_undoes_all_of_it():
    model = extractor("resnet18").train()
    training.freeze_norms(model)
    training.freeze(model, 3)
    training.unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize("affine", [True, False])
def test_frozen_norms_keep_their_statistics(affine):
    model = extractor("resnet18")
    training.freeze_norms(model, affine=affine)
    before = [norm.running_mean.clone() for norm in norms(model)]
    step(model, batch(model))
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms(model), before, strict=True))
    assert all((norm.weight.grad is None) == affine for norm in norms(model))
    assert model.layer1.training


def test_norms_without_statistics_are_not_touched():
    model = extractor("convnext_atto")
    training.freeze_norms(model)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.train().modules())


def test_torchvisions_frozen_norm_agrees():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    randomise(model)
    reference = misc.FrozenBatchNorm2d(4)
    reference.load_state_dict(model[1].state_dict())
    training.freeze_norms(model)
    x = images(2, 3, 8, 8)
    torch.testing.assert_close(model.train()(x), reference(model[0](x)))  # the same formula in another order


def test_a_frozen_model_compiles_whole(tolerant_of_torch):
    model = extractor("resnet18", out_indices=[1]).train()
    training.freeze(model, 0)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = batch(model)
    torch.testing.assert_close(compiled(x)[0], model(x)[0])


# recomputing


@pytest.mark.parametrize("name", NAMES)
def test_recomputing_changes_neither_gradients_nor_statistics(name):
    model = extractor(name)
    again = copy.deepcopy(model)
    training.recompute(again, again.feature_info.names()[1:])
    x = batch(model)
    assert not x.requires_grad
    step(model, x)
    step(again, x)
    for name, parameter in again.named_parameters():
        assert parameter.grad is not None, name
        assert torch.equal(parameter.grad, model.get_parameter(name).grad), name  # the same operations
    for name, buffer in again.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), name


def test_pytorch_alone_would_update_statistics_twice():
    norm = nn.BatchNorm2d(2)
    x = torch.randn(2, 2, 4, 4, requires_grad=True)
    torch.utils.checkpoint.checkpoint(norm, x, use_reentrant=False).sum().backward()
    assert norm.num_batches_tracked == 2


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
def test_blocks_run_twice_only_where_gradients_are_wanted(mode):
    model = extractor("vit_wee_patch16_reg1_gap_256", out_indices=[2]).train(mode == "train")
    runs = []
    block = type(model.blocks[0])
    training.recompute(model, block)
    model.blocks[0].norm1.register_forward_hook(lambda *_: runs.append(1))
    with torch.set_grad_enabled(mode != "no_grad"):
        (map_,) = model(images(1, 3, 32, 32))
    if mode != "no_grad":
        map_.sum().backward()
    assert len(runs) == (2 if mode == "train" else 1)


def test_random_branches_are_the_same_in_both_runs():
    model = extractor("vit_wee_patch16_reg1_gap_256", drop_path_rate=0.5)
    again = copy.deepcopy(model)
    training.recompute(again, type(model.blocks[0]))
    x = images(4, 3, 32, 32)
    step(model, x)
    step(again, x)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_less_is_kept_for_the_backward_pass():
    def kept(model):
        sizes = {}

        def note(tensor):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model.train()(images(2, 3, 64, 64))
        return sum(sizes.values()) - sum(p.numel() for p in model.parameters())

    model = extractor("resnet18")
    before = kept(model)
    training.recompute(model, ["layer1", "layer2", "layer3", "layer4"])
    assert kept(model) < before / 2


def test_it_is_pickled_with_the_model():
    model = extractor("resnet18")
    training.recompute(model, "layer1")
    again = pickle.loads(pickle.dumps(model))
    assert vars(again.layer1)["forward"].args[0] is again.layer1
    torch.testing.assert_close(again(batch(model))[1], model(batch(model))[1])


def test_it_compiles_whole(tolerant_of_torch):
    model = extractor("resnet18", out_indices=[1]).train()
    training.recompute(model, "layer1")
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    step(compiled, batch(model))
    step(plain, batch(model))
    ours, reference = model.get_parameter("conv1.weight").grad, plain.get_parameter("conv1.weight").grad
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)  # compiled operations round differently
    assert torch.equal(model.get_buffer("layer1.0.bn1.num_batches_tracked"), plain.layer1[0].bn1.num_batches_tracked)


def test_a_container_that_is_never_called_is_refused():
    with pytest.raises(featx.ArgumentError, match=r"\['blocks'\] are never called"):
        training.recompute(extractor("mobilenetv3_small_050"), "blocks")


@pytest.mark.parametrize("kind", [nn.LSTM, "layer7", []])
def test_a_module_that_does_not_exist_is_refused(kind):
    with pytest.raises(featx.ArgumentError, match="no module is"):
        training.recompute(extractor("resnet18"), kind)


# groups of parameters


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_every_trained_parameter_is_in_one_group(name, layer_decay):
    model = extractor(name)
    training.freeze(model, 0)
    groups = training.param_groups(model, 0.1, layer_decay=layer_decay, lr=layer_decay and 1e-3)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    torch.optim.AdamW(groups, lr=1e-3)


def by_name(model, groups, key):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (row["weight_decay"], pytest.approx(row[key])) for row in groups for p in row["params"]}


@pytest.mark.parametrize("architecture", ["test_vit", "test_vit2", "test_vit3"])
def test_groups_of_a_vit_are_timms(architecture):
    model = timm.create_model(architecture)
    theirs = param_groups_layer_decay(model, 0.1, model.no_weight_decay(), layer_decay=0.7)
    ours = training.param_groups(model, 0.1, layer_decay=0.7, lr=1.0)
    ours, theirs = by_name(model, ours, "lr"), by_name(model, theirs, "lr_scale")
    # the norm after the blocks goes with the head here, as BEiT has it, and with the last block there
    behind = {"norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias"}
    assert {n: v for n, v in ours.items() if n not in behind} == {n: v for n, v in theirs.items() if n not in behind}


def test_our_vit_is_grouped_as_timms():
    name = "vit_wee_patch16_reg1_gap_256"
    with torch.device("meta"):
        models = featx.create_model(name), timm.create_model(name)
    ours, theirs = (by_name(m, training.param_groups(m, 0.1, layer_decay=0.7, lr=1.0), "lr") for m in models)
    assert ours == theirs


def test_rates_rise_by_level_and_end_at_lr():
    model = extractor("resnet18")
    groups = by_name(model, training.param_groups(model, 0.1, layer_decay=0.5, lr=1.0), "lr")
    paths = ("conv1", "layer1.0.conv1", "layer2.0.conv1", "layer4.0.conv1")
    assert [groups[f"{path}.weight"][1] for path in paths] == [0.5**4, 0.5**3, 0.5**2, 1.0]


def test_what_is_around_the_backbone_has_the_full_rate():
    model = nn.Sequential(extractor("resnet18"), nn.Conv2d(512, 2, 1))
    groups = by_name(model, training.param_groups(model, 0.1, layer_decay=0.5, lr=1.0), "lr")
    assert groups["1.weight"][1] == 1.0
    assert groups["0.layer4.1.conv2.weight"][1] == 0.5


def test_biases_scales_positions_and_tokens_do_not_decay():
    model = featx.create_model("vit_tiny_patch16_224")
    still, decayed = training.param_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert still["weight_decay"] == 0.0
    assert {"pos_embed", "cls_token", "norm.weight", "head.bias"} <= {names[id(p)] for p in still["params"]}
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight"}


def test_further_names_can_be_spared():
    model = featx.create_model("resnet18")
    still, _ = training.param_groups(model, 0.1, no_decay=["fc.weight"])
    assert any(p is model.fc.weight for p in still["params"])
    with pytest.raises(featx.ArgumentError, match=r"\['fd.weight'\]"):
        training.param_groups(model, 0.1, no_decay=["fd.weight"])


def test_a_layer_decay_that_an_optimiser_would_ignore_is_refused():
    with pytest.raises(featx.ArgumentError, match="lr go together"):
        training.param_groups(featx.create_model("resnet18"), 0.1, layer_decay=0.7)


# stochastic depth


def rates(model):
    return {path: module.rate for path, module in model.named_modules() if isinstance(module, DropPath)}


@pytest.mark.parametrize("name", [name for name in SMALL if not name.startswith(("mobilenetv2", "resnest", "hrnet"))])
def test_branches_are_dropped_as_the_family_itself_would(name):
    try:
        with torch.device("meta"):
            reference = featx.create_model(name, drop_path_rate=0.3, features_only=True)
    except featx.ArgumentError:
        pytest.skip("no stochastic depth")
    with torch.device("meta"):
        model = featx.create_model(name, features_only=True)
    training.drop_path(model, 0.3)
    assert rates(model) == rates(reference)
    assert max(rates(model).values()) > 0.2
    training.drop_path(model, 0)
    assert not rates(model)


def test_dropping_keeps_names_and_the_values_in_eval():
    model = extractor("convnext_atto")
    keys, before = list(model.state_dict()), model(batch(model))
    training.drop_path(model, 0.5)
    assert list(model.state_dict()) == keys
    assert all(torch.equal(a, b) for a, b in zip(before, model(batch(model)), strict=True))
    assert not torch.equal(before[-1], model.train()(batch(model))[-1])


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(featx.ArgumentError, match="less than 1"):
        training.drop_path(extractor("convnext_atto"), rate)


@pytest.mark.parametrize("name", ["timm/test_vit", "torchvision/resnet18"])
def test_other_packages_models_take_their_rate_when_they_are_created(name):
    with pytest.raises(featx.ArgumentError, match="create_model"):
        training.drop_path(extractor(name), 0.1)
