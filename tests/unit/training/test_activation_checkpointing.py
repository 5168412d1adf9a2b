"""Activation checkpointing: blocks that are computed again in the backward pass."""

import copy
import pickle

import pytest
import torch
from conftest import images, one_per_family, random_extractor
from support.training_steps import batch, step
from torch import nn

import featx
from featx import training

BRIDGED = [
    *("timm/test_resnet", "timm/test_vit", "timm/dla34", "torchvision/resnet18", "torchvision/densenet121"),
    "torchvision/swin_t",
]
OF_TRANSFORMERS = {"transformers/resnet": "ResNetStage", "transformers/swin": "SwinStage"}


def assert_the_same_step(name, kind_of, arch):
    """One step with and without what `kind_of(model)` names computed again; a writing module's gradients add up in
    another order."""
    model = random_extractor(name, **arch)
    again = copy.deepcopy(model)
    training.recompute(again, kind_of(again))
    x = batch(model)
    assert not x.requires_grad
    step(model, x)
    step(again, x)
    for name, parameter in again.named_parameters():
        grad = model.get_parameter(name).grad
        assert (parameter.grad is None) == (grad is None), name
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6, msg=name)
    for name, buffer in again.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), name


def levels_of(model):
    return model.feature_info.names()


@pytest.mark.parametrize("name", [*one_per_family(), *BRIDGED])
def test_recomputing_levels_changes_neither_gradients_nor_statistics(name):
    assert_the_same_step(name, levels_of, {"depth": 2} if name.startswith("vit") else {})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("mobilenetv3_small_050", "Hardswish"), ("mobilevit_xxs", "SiLU"), ("hrnet_w18_small", "ReLU")),
        *(("timm/test_resnet", "BatchNorm2d"), ("timm/dla34", "ReLU"), ("timm/densenet121", "DenseLayer")),
        *(("torchvision/resnet18", "ReLU"), ("torchvision/densenet121", "_DenseLayer")),
    ],
)
def test_recomputing_a_class_changes_neither_gradients_nor_statistics(name, kind):
    """Also of modules that write over their inputs, or that are given a list that grows."""

    def classes(model):
        return next(type(module) for module in model.modules() if type(module).__name__ == kind)

    assert_the_same_step(name, classes, {})


@pytest.mark.parametrize(("name", "stage"), OF_TRANSFORMERS.items())
def test_recomputing_stages_of_transformers(name, stage):
    def stages(model):
        return next(type(module) for module in model.modules() if type(module).__name__ == stage)

    assert_the_same_step(name, stages, {})
    with pytest.raises(featx.ArgumentError, match="no module is called"):
        training.recompute(random_extractor(name), random_extractor(name).feature_info.names())


def test_a_module_that_needs_values_to_run_may_write_over_its_inputs():
    class Reading(nn.Module):
        feature_info = ({"chs": 4, "reduction": 1, "name": "act"},)

        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)

        def forward(self, x):
            assert x.abs().max().item() > 0
            return self.act(torch.sigmoid(self.conv(x)) - 0.5)

    model = Reading().train()
    again, x = copy.deepcopy(model), images(2, 3, 8, 8)
    training.recompute(again, "act")
    for one in (model, again):
        one(x).square().mean().backward()
    assert torch.equal(again.conv.weight.grad, model.conv.weight.grad)


def test_pytorch_alone_would_update_statistics_twice():
    norm = nn.BatchNorm2d(2)
    x = torch.randn(2, 2, 4, 4, requires_grad=True)
    torch.utils.checkpoint.checkpoint(norm, x, use_reentrant=False).sum().backward()
    assert norm.num_batches_tracked == 2


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
def test_blocks_run_twice_only_where_gradients_are_wanted(mode):
    model = random_extractor("vit_wee_patch16_reg1_gap_256", out_indices=[2]).train(mode == "train")
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
    model = random_extractor("vit_wee_patch16_reg1_gap_256", drop_path_rate=0.5)
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

    model = random_extractor("resnet18")
    before = kept(model)
    training.recompute(model, ["layer1", "layer2", "layer3", "layer4"])
    assert kept(model) < before / 2


def test_it_is_pickled_with_the_model():
    model = random_extractor("resnet18")
    training.recompute(model, "layer1")
    again = pickle.loads(pickle.dumps(model))
    assert vars(again.layer1)["forward"].args[0] is again.layer1
    torch.testing.assert_close(again(batch(model))[1], model(batch(model))[1])


def test_it_compiles_whole(tolerant_of_torch):
    model = random_extractor("resnet18", out_indices=[1]).train()
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
        training.recompute(random_extractor("mobilenetv3_small_050"), "blocks")


@pytest.mark.parametrize("kind", [nn.LSTM, "layer7", []])
def test_a_module_that_does_not_exist_is_refused(kind):
    with pytest.raises(featx.ArgumentError, match="no module is"):
        training.recompute(random_extractor("resnet18"), kind)
