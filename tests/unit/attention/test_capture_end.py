"""Captures of attention: copies made during one are clean, and captures may end in any order and by any error."""

import copy
import io
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from conftest import assert_same, images, random_extractor, randomize
from support.attention_models import tiny_vit
from support.torchvision_transformers import narrow_vit
from torch import nn

import featx
from featx import FeatureExtractWrapper
from featx.attention import capture_attention

X = images(1, 3, 64, 64)
MODELS = {
    "native": lambda: FeatureExtractWrapper(tiny_vit()).eval(),
    "separable": lambda: random_extractor("mobilevitv2_050", out_indices=[4]),
    "timm": lambda: random_extractor("timm/vit_tiny_patch16_224", depth=2, embed_dim=48, num_heads=3),
    "torchvision": lambda: FeatureExtractWrapper(randomize(narrow_vit())),
}


def image_of(name):
    return images(1, 3, 32, 32) if name == "torchvision" else X


def hooks_of(model):
    tables = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs")
    return [path for path, part in model.named_modules() for name in tables if vars(part)[name]]


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def eager(model):
    return featx.optimize(model, runtime="eager", example=X)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
    "optimize": eager,
}


@torch.no_grad()
@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("name", MODELS)
def test_a_copy_made_inside_a_capture_has_nothing_of_it(name, copied):
    model, x = MODELS[name](), image_of(name)
    before, expected = hooks_of(model), model(x)
    with capture_attention(model) as seen:
        if copied == "optimize" and name == "torchvision":
            twin = featx.optimize(model, runtime="eager", example=x)
        else:
            twin = COPIES[copied](model)
        twin(x)
        assert seen.maps == {}
        model(x)
        kept = len(seen.maps)
        assert kept > 0
    assert hooks_of(model) == before
    assert not any("__reduce_ex__" in vars(part) for part in [*model.modules(), *twin.modules()])
    if copied != "optimize":
        assert hooks_of(twin) == before
    for got, wanted in zip(twin(x), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert len(seen.maps) == kept
    with capture_attention(model) as again:
        model(x)
    assert len(again.maps) == kept


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
@pytest.mark.parametrize("name", ["native", "torchvision"])
def test_what_is_compiled_or_traced_inside_a_capture_has_nothing_of_it(name, tolerant_of_torch):
    model, x = MODELS[name](), image_of(name)
    expected = model(x)
    with capture_attention(model) as seen:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        traced = torch.jit.trace(model, x, check_trace=False)
        program = torch.export.export(model, (x,))
        made = [compiled(x), traced(x), program.module()(x)]
        assert seen.maps == {}
    for maps in [*made, compiled(x), traced(x), program.module()(x)]:
        for got, wanted in zip(maps, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert "softmax" not in str(program.graph_module.code)  # which is in the fused kernel


def test_hooks_of_users_are_copied():
    model, calls = MODELS["native"](), []
    model.blocks[0].attn.register_forward_hook(lambda *_: calls.append(1))
    with capture_attention(model), torch.no_grad():
        twin = copy.deepcopy(model)
    twin(X)
    assert calls == [1]


class Stopped(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("error", [ValueError, Stopped])
@pytest.mark.parametrize("where", ["before", "inside", "after"])
def test_nothing_stays_on_a_stack_after_an_exception(where, error):
    def fail(*_):
        raise error("on purpose")

    model = MODELS["native"]()
    attention = model.blocks[1].attn
    part = attention.proj if where == "inside" else attention
    register = part.register_forward_hook if where == "after" else part.register_forward_pre_hook
    for inside in (False, True):
        with ExitStack() as stack:
            seen = stack.enter_context(capture_attention(model))
            handle = register(fail)
            with pytest.raises(error), torch.no_grad():
                model(X)
            handle.remove()
            if inside:
                with torch.no_grad():
                    model(X)
                assert len(seen.maps) == 3
        assert torch.overrides._get_current_function_mode_stack() == []
        assert hooks_of(model) == []


def test_a_capture_that_another_thread_ends_during_a_forward_lets_it_end():
    model, inside, ended = MODELS["native"](), threading.Event(), threading.Event()
    with torch.no_grad():
        expected = model(X)

    def wait(*_):
        inside.set()
        assert ended.wait(30)

    def run():
        stack = ExitStack()
        stack.enter_context(capture_attention(model))
        stacks.append(stack)
        handle = model.blocks[1].attn.proj.register_forward_hook(wait)
        with torch.no_grad():
            maps = model(X)
        handle.remove()
        return maps, torch.overrides._get_current_function_mode_stack()

    stacks: list[ExitStack] = []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        assert inside.wait(30)
        stacks[0].close()
        ended.set()
        maps, modes = running.result()
    assert_same(maps, expected)
    assert (modes, hooks_of(model)) == ([], [])


def stress(seconds: float, threads: int = 8) -> int:
    """Threads capture at random from one model and check every map; returns how many forwards were captured."""
    model = MODELS["native"]()
    plain: nn.Module = model
    inputs = [images(1, 3, 64, 64, seed=seed) for seed in range(threads)]
    with torch.no_grad():
        maps = [plain(x) for x in inputs]
    attention = []
    for x in inputs:
        with torch.no_grad(), capture_attention(model) as seen:
            model(x)
        attention.append(seen.maps)
    until = time.monotonic() + seconds

    def check(i: int, found: dict[str, torch.Tensor], names: set[str]) -> None:
        assert found.keys() == names
        assert all(torch.equal(map_, attention[i][name]) for name, map_ in found.items())

    def run(i: int) -> int:
        own, captured, blocks = random.Random(i), 0, [*attention[i]]
        while not captured or time.monotonic() < until:
            chosen = [own.sample(blocks, own.randint(1, len(blocks))) for _ in range(own.randint(0, 3))]
            with torch.no_grad(), ExitStack() as stack:
                seen = [stack.enter_context(capture_attention(model, names)) for names in chosen]
                assert_same(model(inputs[i]), maps[i])
                for one, names in zip(seen, chosen, strict=True):
                    check(i, one.maps, {*names})
                    captured += 1
            assert torch.overrides._get_current_function_mode_stack() == []
        return captured

    with ThreadPoolExecutor(threads) as pool:
        captured = sum(pool.map(run, range(threads)))
    assert hooks_of(model) == []
    assert not any("__reduce_ex__" in vars(part) for part in model.modules())
    return captured


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.sweep)])
def test_threads_that_capture_at_random_get_their_own_maps(seconds):
    """In a process of its own, because what goes wrong in the stack of modes ends it."""
    tests, root = Path(__file__).parents[2], Path(__file__).parents[3]
    code = "import sys; sys.setswitchinterval(5e-5); " + (
        f"from unit.attention.test_capture_end import stress; print(stress({seconds}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [root, tests]))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 8
