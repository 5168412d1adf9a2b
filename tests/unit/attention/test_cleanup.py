"""A capture of attention leaves the model as it was."""

import gc
import weakref

import pytest
import torch
from conftest import images
from support.attention_models import same_weights_every_time as same_weights_every_time
from support.attention_models import tiny_vit
from torch import Tensor, nn

from featx import ContractError
from featx.attention import capture_attention
from featx.attention.weight_trace import WeightTrace


def hooks_of(model):
    return [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def test_nothing_is_installed_outside_the_block():
    model = tiny_vit()
    with capture_attention(model, [-1]):
        assert len(hooks_of(model)) == 2
    assert hooks_of(model) == []
    with pytest.raises(KeyboardInterrupt), capture_attention(model):
        raise KeyboardInterrupt
    assert hooks_of(model) == []


def test_an_interrupted_forward_leaves_nothing_watching():
    def interrupt(*_):
        raise KeyboardInterrupt

    model = tiny_vit()
    handle = model.blocks[1].attn.proj.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), capture_attention(model):
        model(images(1, 3, 64, 64))
    handle.remove()
    assert not any(isinstance(mode, WeightTrace) for mode in torch.overrides._get_current_function_mode_stack())
    assert hooks_of(model) == []


def test_an_error_of_the_model_comes_out_as_it_is():
    model = tiny_vit()
    model.blocks[1].attn.proj = nn.Linear(7, 7)
    with capture_attention(model), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(images(1, 3, 64, 64))
    assert not torch.overrides._get_current_function_mode_stack()


class Token:
    """Something that can be seen to be gone."""


def tensors_alive() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("gradients", [False, True])
def test_a_hundred_captured_forwards_leave_nothing_behind(gradients):
    model, x, graphs, counts = tiny_vit(), images(1, 3, 32, 32), [], []
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gc.collect()
    gc.disable()  # what only the collector frees is a cycle, which is a leak for as long
    try:
        with capture_attention(model, gradients=gradients) as seen:
            for number in range(100):
                output = model(x)
                token = Token()  # lives as long as the graph does
                output.grad_fn.register_hook(lambda *_, token=token: None)
                graphs.append(weakref.ref(token))
                del token
                if gradients:
                    output.sum().backward()
                del output
                if number in (1, 50, 99):
                    counts.append(tensors_alive())
            kept = [weakref.ref(map_) for map_ in (*seen.maps.values(), *seen.gradients.values())]
        assert all(graph() is None for graph in graphs)
        assert len(set(counts)) == 1
        assert len(kept) == (6 if gradients else 3)
        assert all(map_() is not None for map_ in kept)
        del seen
        assert all(map_() is None for map_ in kept)
    finally:
        gc.enable()


def test_what_was_seen_holds_neither_model_nor_graph():
    model = tiny_vit()
    alive = weakref.ref(model)
    with capture_attention(model, gradients=True) as seen:
        output = model(images(1, 3, 64, 64))
    assert not any(map_.requires_grad for map_ in seen.maps.values())
    del model, output
    assert alive() is None
    assert len(seen.maps) == 3


def test_a_compiled_model_is_refused_with_the_one_to_pass():
    model = tiny_vit()
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ContractError, match=r"before torch\.compile, its _orig_mod"), capture_attention(compiled):
        pass
    model.compile(backend="eager")
    with pytest.raises(ContractError, match="a compiled model"), capture_attention(model):
        pass
