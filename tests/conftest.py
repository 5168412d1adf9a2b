"""What several test files need: variants to test, weights that make comparisons mean something."""

import copy
import gc
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import huggingface_hub
import pytest
import torch
from support.hub_server import Hub, serve
from support.slow_tests import mark_slow_tests
from support.truncation import CodePaths
from torch import Tensor, nn

import featx
from featx import FeatureExtractWrapper, registry
from featx.features import as_levels
from featx.tracing.meta_kernels import MetaKernels
from featx.weights.checkpoint import LoadOptions, open_checkpoint

# The smallest variant of each family, and of each way a family's blocks differ; for tests that compute values.
SMALL = [
    *("resnet18", "resnet50d", "resnext50_32x4d", "ecaresnet26t", "resnest14d", "repvgg_a0"),
    *("mobilenetv2_035", "mobilenetv3_small_050", "tf_mobilenetv3_small_minimal_100", "test_efficientnet"),
    *(
        "efficientnet_b0",
        "rexnet_100",
        "regnety_002",
        "hrnet_w18_small",
        "convnext_atto",
        "convnextv2_atto",
        "mobilevit_xxs",
        "mobilevitv2_050",
    ),
    *("vit_tiny_patch16_224", "vit_wee_patch16_reg1_gap_256", "vit_tiny_r_s16_p8_224", "vit_tiny_patch16_dinov3_qkvb"),
]


def one_per_family() -> list[str]:
    """A variant of every class that the registry builds: the first of the small ones, or else the first of all."""
    entries = {name: registry.lookup(name) for name in [*SMALL, *featx.list_models()]}
    families = {entry.build: name for name, entry in reversed(entries.items()) if isinstance(entry, registry.Variant)}
    return sorted(families.values())


def swept(names: Iterable[str]) -> list:
    """Names of variants as parameters of a test: one of each class in every run, the others with the marker `sweep`."""
    quick = one_per_family()
    return [name if name in quick else pytest.param(name, marks=pytest.mark.sweep) for name in names]


VARIANTS, SMALL_VARIANTS = swept(featx.list_models()), swept(SMALL)

IMAGES = (2, 3, 64, 96)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random norm scales and statistics, biases and tokens, in place, so that nothing multiplies by one or adds zero.

    So are tables and heads that start at zero; buffers that no checkpoint holds keep their values. In eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    buffers = [(name, tensor) for name, tensor in model.named_buffers() if name in state]
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *buffers]:
            drawn = draw(name, tensor, generator)
            if not drawn and isinstance(tensor, nn.Parameter) and not tensor.is_meta and not tensor.any():
                tensor.normal_(0, 0.3, generator=generator)
    return model.eval()


def random_extractor(name: str, **choice: object) -> FeatureExtractWrapper:
    """The same at every call: its weights are drawn from one seed, its norms are those of `randomize`."""
    torch.manual_seed(0)
    return randomize(featx.create_model(name, features_only=True, **choice))


def draw(name: str, tensor: Tensor, generator: torch.Generator) -> bool:
    """Give `tensor` random values, in place, and return True, if it is one that multiplies or adds per channel."""
    is_vector = tensor.is_floating_point() and tensor.numel() == max(tensor.shape, default=0)
    if name.endswith(("bias", "beta", "running_mean", "token")):
        tensor.normal_(0, 0.3, generator=generator)
    elif name.endswith("running_var") or is_vector:  # what is a vector and no bias is a scale
        tensor.uniform_(0.5, 1.5, generator=generator)
    else:
        return False
    return True


def relative_difference(ours: Tensor, reference: Tensor) -> float:
    """Largest difference over the reference's largest value; both must be finite, and the reference not zero."""
    assert ours.shape == reference.shape
    assert ours.isfinite().all()
    assert reference.isfinite().all()
    assert reference.abs().max() > 0
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@torch.no_grad()
def worst(made: nn.Module, original: nn.Module, x: Tensor) -> float:
    """Largest relative difference over the maps."""
    return max(relative_difference(ours, true) for ours, true in zip(made(x), original(x), strict=True))


def assert_same(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
    """Bit for bit."""
    assert len(ours) == len(reference)
    assert all(torch.equal(one, other) for one, other in zip(ours, reference, strict=True))


def same_state(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """The same names and, bit for bit, the same tensors."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class OneConv(nn.Module):
    """A network of one convolution; what it does beside it, classes below say."""

    feature_info = ({"chs": 4, "reduction": 1, "name": "conv"},)
    is_rewritten = True

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)


COPIES = [
    pytest.param(copy.deepcopy, id="deepcopy"),
    pytest.param(lambda m: pickle.loads(pickle.dumps(m)), id="pickle"),
]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or IMAGES, generator=torch.Generator().manual_seed(seed))


def hooked_maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs of the modules that `feature_info` names, seen from outside while the intact model runs."""
    seen, levels = {}, as_levels(model.feature_info, "the model")

    def keep(name: str, reduction: int, output: Tensor) -> None:
        if output.ndim == 3:  # tokens of a ViT
            grid = [-(-side // reduction) for side in x.shape[2:]]
            output = output[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)
        # cloned: a later in-place operation of the model must not change what was seen
        seen[name] = output.clone()

    handles = [
        model.get_submodule(level.name).register_forward_hook(
            lambda _, __, out, level=level: keep(level.name, level.reduction, out)
        )
        for level in levels
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return [seen[level.name] for level in levels]


@pytest.fixture(scope="module", params=SMALL_VARIANTS)
def built(request: pytest.FixtureRequest) -> nn.Module:
    return randomize(featx.create_model(request.param))


@pytest.fixture
def model(built: nn.Module) -> nn.Module:
    """A copy, which is made in less time than random weights are drawn."""
    return copy.deepcopy(built)


@pytest.fixture(scope="session")
def code_paths() -> CodePaths:
    return CodePaths()


@pytest.fixture
def shapes_alone() -> Iterator[None]:
    """Without values PyTorch decomposes each norm in Python, which would be nearly all the time of these tests."""
    with MetaKernels():
        yield


@pytest.fixture(autouse=True)
def default_streams(request: pytest.FixtureRequest) -> Iterator[None]:
    """Extraction runs on several threads by default, although the tests themselves give PyTorch one."""
    before = torch.get_num_threads()
    if "bulk" in request.path.parts:
        torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every test has a cache of runtimes of its own: what it builds is built, and the user's stays as it is."""
    folder = tmp_path_factory.getbasetemp() / f"cache-{uuid4().hex}"
    monkeypatch.setenv("FEATX_CACHE", str(folder))
    return folder


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that a test registers are forgotten after it."""
    featx.list_models()
    monkeypatch.setattr(registry, "_models", dict(registry._models))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The Hub as this process sees it: empty, with an empty cache; no token, no proxy, no pauses between retries."""
    with serve() as hub:
        constants = {
            "ENDPOINT": hub.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
            "HF_TOKEN_PATH": str(tmp_path / "token"),
        }
        for name, value in constants.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        for module in ("utils._http", "file_download"):
            monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=lambda seconds: None))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()


@pytest.fixture
def tolerant_of_torch() -> Iterator[None]:
    """For tests of torch's own compilers, which warn of their own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.hookimpl(tryfirst=True)  # before tests are deselected by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_slow_tests(items)


def pytest_collection_finish() -> None:
    """Keep what was imported and collected from being traversed by every full garbage collection of a test."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let packages that count what is left of them at the end of the process find nothing."""
    gc.unfreeze()


# What the parity sweep records of a variant; dilation only of what the reference can dilate.
COLUMNS = ("maps", "training step", "stride 8", "stride 16", "left out")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of the parity sweep: the largest differences to the reference per variant, and what was not checked."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    table: dict[str, dict[str, str]] = {}
    for row in (dict(report.user_properties) for report in reports if report.when == "call"):
        if "variant" in row:
            table.setdefault(row["variant"], {}).update(row)
    if any("maps" in row for row in table.values()):
        terminalreporter.section("largest differences to the reference, relative to its largest value")
        terminalreporter.write_line(f"{'variant':36}" + "".join(f"{column:14}" for column in COLUMNS))
        for variant, row in sorted(table.items()):
            terminalreporter.write_line(f"{variant:36}" + "".join(f"{row.get(column, '-'):14}" for column in COLUMNS))
        checked = [variant for variant, row in table.items() if "maps" in row and "training step" in row]
        unchecked = sorted(set(featx.list_models()) - set(checked))
        terminalreporter.write_line(f"not checked: {', '.join(unchecked) or 'none'}")


def to_native(state, names, families):
    """The tensors of a checkpoint as loading it converts them."""
    return open_checkpoint(state, names, families, LoadOptions()).state


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A process group of this process alone."""
    store = tmp_path_factory.mktemp("ddp") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
