"""Every kind of extractor, called from several threads at once, gives each call the maps of its own images."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import COPIES, VARIANTS, assert_same, images, one_per_family, random_extractor, randomize
from support.tap_models import Branches, Tokens
from support.torchvision_transformers import narrow_swin, narrow_vit
from torch import Tensor, nn

import featx
from featx import FeatureExtractWrapper
from featx.attention import capture_attention
from featx.bridges import torchvision as of_torchvision
from featx.necks import FPN, Pipeline
from featx.runtime import runtimes
from featx.tracing.map_layout import Tap
from featx.wrappers.chain import Chain
from featx.wrappers.hooked import HookedPyramid

THREADS, CALLS = 4, 3


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual, so that what they share meets."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def batches(size: tuple[int, int] = (64, 96)) -> list[Tensor]:
    return [images(1, 3, *size, seed=seed) for seed in range(THREADS)]


def tensors(returned: Any) -> list[Tensor]:
    """All tensors in what a model returned."""
    if isinstance(returned, Tensor):
        return [returned]
    values = returned.values() if isinstance(returned, dict) else returned
    return [tensor for value in values for tensor in tensors(value)]


def from_threads(model: Callable[[Tensor], Any], inputs: list[Tensor], calls: int = CALLS) -> list[list[Any]]:
    """What each thread got in `calls` calls with an input of its own; all begin together."""
    barrier = threading.Barrier(len(inputs))

    def run(x: Tensor) -> list[Any]:
        barrier.wait()
        with torch.no_grad():
            return [model(x) for _ in range(calls)]

    with ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(run, inputs))


def assert_every_call_gets_its_own(model: Callable[[Tensor], Any], inputs: list[Tensor]) -> None:
    """Bit for bit what the model returns when one thread runs it."""
    with torch.no_grad():
        expected = [tensors(model(x)) for x in inputs]
    assert not all(torch.equal(one, other) for one, other in zip(expected[0], expected[1], strict=True))
    for got, own in zip(from_threads(model, inputs), expected, strict=True):
        for returned in got:
            assert_same(tensors(returned), own)


@pytest.mark.parametrize("name", one_per_family())
def test_native_extractors_and_classifiers(name):
    extractor = random_extractor(name)
    assert_every_call_gets_its_own(extractor, batches())
    assert_every_call_gets_its_own(randomize(featx.create_model(name, num_classes=7)), batches())


def tapped() -> FeatureExtractWrapper:
    return featx.tap(randomize(Branches()), ["deep", "stem", "down"])


def tokens() -> FeatureExtractWrapper:
    return featx.tap(randomize(Tokens()), [Tap("layers.0", key=0), Tap("layers.2", key=0)], output="tokens")


@pytest.mark.parametrize("made", [tapped, tokens])
@pytest.mark.parametrize("copied", [pytest.param(lambda made: made, id="itself"), *COPIES])
def test_tapped_modules(made, copied):
    assert_every_call_gets_its_own(copied(made()), batches())


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("breaks", [False, True])
def test_tapped_modules_under_torch_compile(breaks):
    torch._dynamo.reset()
    model = randomize(Branches())
    if breaks:  # code of Python runs between two graphs
        model.right.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    extractor = featx.tap(model, ["deep", "stem"])
    assert_every_call_gets_its_own(torch.compile(extractor, backend="eager", fullgraph=not breaks), batches())


@pytest.mark.usefixtures("tolerant_of_torch")
def test_tapped_modules_under_torch_export():
    assert_every_call_gets_its_own(torch.export.export(tapped(), (images(1, 3, 64, 96),)).module(), batches())


def test_a_forward_inside_a_forward_of_the_same_extractor_takes_nothing_from_it():
    model, inner = randomize(Branches()), []
    extractor = featx.tap(model, ["deep", "stem"])

    def nested(*_: Any) -> None:
        if not inner:
            inner.append(None)
            inner[0] = extractor(images(1, 3, 32, 32, seed=9))

    with torch.no_grad():
        expected = extractor(images())
        other = extractor(images(1, 3, 32, 32, seed=9))
        extractor.get_submodule("down").register_forward_hook(nested)
        assert_same(extractor(images()), expected)
    assert_same(inner[0], other)


def test_a_forward_that_raises_in_the_middle_leaves_nothing_behind():
    extractor, failing = tapped(), [KeyboardInterrupt, RuntimeError]
    with torch.no_grad():
        expected = extractor(images())

    def fail(*_: Any) -> None:
        if failing:
            raise failing.pop()("stop")

    extractor.get_submodule("down").register_forward_hook(fail)
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error, match="stop"):
            extractor(images(1, 3, 32, 32))
        assert extractor._inner._collector.maps is None
    with torch.no_grad():
        assert_same(extractor(images()), expected)


KINDS: dict[str, tuple[Callable[[], nn.Module], type, tuple[int, int]]] = {
    "resnet18": (lambda: of_torchvision.build("resnet18"), Chain, (64, 96)),
    "mobilenet_v3_small": (lambda: of_torchvision.build("mobilenet_v3_small"), Chain, (64, 96)),
    "narrow_swin": (narrow_swin, Chain, (64, 96)),
    "narrow_vit": (narrow_vit, HookedPyramid, (32, 32)),
}


@pytest.mark.parametrize("name", KINDS)
def test_models_of_torchvision_run_without_hooks_where_their_order_is_proven(name):
    made, kind, size = KINDS[name]
    extractor = FeatureExtractWrapper(randomize(made()), [-1, 0])
    assert type(extractor._inner) is kind
    hooks = sum(len(module._forward_hooks) for module in extractor.modules())
    assert (hooks > 0) == (kind is HookedPyramid)
    assert_every_call_gets_its_own(extractor, batches(size))


# one of each wrapper of timm: list, getter, hooks, its own two; and models that keep what they computed
@pytest.mark.parametrize(
    "name",
    [
        *("test_resnet", "test_vit", "mobilenetv3_small_050", "levit_128s"),
        *(
            pytest.param(name, marks=pytest.mark.bridges)
            for name in ("hrnet_w18_small", "pit_ti_224", "efficientformer_l1", "swin_tiny_patch4_window7_224")
        ),
    ],
)
def test_models_of_timm(name):
    extractor = randomize(featx.create_model(f"timm/{name}", features_only=True))
    assert_every_call_gets_its_own(extractor, batches(extractor.data_config.size))


TINY = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "dinov2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28},
    "vit_mae": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32},
    "levit": {"image_size": 64},
}


@pytest.mark.parametrize("name", TINY)
def test_models_of_transformers(name):
    extractor = randomize(featx.create_model(f"transformers/{name}", features_only=True, **TINY[name]))
    side = TINY[name].get("image_size", 64)
    assert_every_call_gets_its_own(extractor, batches((side, side)))


def test_pipelines():
    extractor = random_extractor("resnet18", out_indices=[2, 3, 4])
    assert_every_call_gets_its_own(Pipeline(extractor, FPN(extractor.feature_info, 16)).eval(), batches())


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("runtime", runtimes())
def test_optimized_extractors(runtime):
    extractor = random_extractor("test_efficientnet", out_indices=[3, 1])
    faster = featx.optimize(extractor, runtime=runtime, example=batches()[0])
    assert_every_call_gets_its_own(faster, batches())


@pytest.mark.parametrize(
    ("name", "gradients"),
    [
        *(("vit_tiny_patch16_224", False), ("vit_tiny_patch16_224", True), ("mobilevitv2_050", False)),
        ("torchvision/narrow_vit", False),  # nn.MultiheadAttention, which is asked for its weights
    ],
)
def test_a_thread_that_captures_attention_and_others_keep_to_their_own_images(name, gradients):
    of_vit = name.startswith("torchvision/")
    model = FeatureExtractWrapper(randomize(narrow_vit())) if of_vit else random_extractor(name)
    inputs = batches((32, 32) if of_vit else (64, 96))
    own, stop = images(*inputs[0].shape, seed=99), threading.Event()

    def captured() -> dict[str, Tensor]:
        with torch.set_grad_enabled(gradients), capture_attention(model, gradients=gradients) as seen:
            model(own)
        return seen.maps

    def keep_capturing() -> list[dict[str, Tensor]]:
        found = [captured()]
        while not stop.is_set():
            found.append(captured())
        return found

    expected = captured()
    with ThreadPoolExecutor(1) as pool:
        capturing = pool.submit(keep_capturing)
        try:
            assert_every_call_gets_its_own(model, inputs)
        finally:
            stop.set()
    found = capturing.result()
    assert len(found) > 1
    for maps in found:
        assert maps.keys() == expected.keys()
        assert_same([*maps.values()], [*expected.values()])
    assert not any(module._forward_hooks and not of_vit for module in model.modules())
    assert torch.overrides._get_current_function_mode_stack() == []


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_extractors_are_made_and_verified_while_other_threads_run_the_model(name):
    model = randomize(featx.create_model(name))
    extractor, stop = FeatureExtractWrapper(model), threading.Event()

    def keep_making() -> int:
        made = 0
        while not stop.is_set() or not made:
            featx.verify(model, [(64, 64)])
            featx.tap(model, ["layer2"])
            made += 1
        return made

    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(keep_making)
        try:
            for _ in range(10):
                assert_every_call_gets_its_own(extractor, batches())
        finally:
            stop.set()
    assert making.result() > 0
    assert not any(module.training for module in model.modules())


def held(model: nn.Module) -> dict[tuple[str, ...], object]:
    """Everything that the modules of a model refer to, by path and attribute, and by key in their tables."""
    found: dict[tuple[str, ...], object] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            entries = value.items() if isinstance(value, dict) else [("", value)]
            found.update({(path, name, str(key)): entry for key, entry in entries})
    return found


@pytest.mark.usefixtures("shapes_alone")
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("features_only", [False, True])
def test_a_forward_keeps_nothing_on_the_model(name, features_only, code_paths):
    with torch.device("meta"):
        model = featx.create_model(name, features_only=features_only).eval()
    if code_paths.have("a forward keeps nothing", model):
        return
    before = held(model)
    for size in ((64, 96), (97, 65)):
        with torch.no_grad():
            model(torch.empty(1, 3, *size, device="meta"))
    after = held(model)
    assert after.keys() == before.keys()
    assert [key for key in after if after[key] is not before[key]] == []
