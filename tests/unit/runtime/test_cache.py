"""The cache of graphs: lookup, damaged entries, removal of entries, and unchanged extractors."""

import json
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import images, random_extractor, randomize, relative_difference
from support.two_level_net import net

import featx
from featx import FeatureExtractWrapper
from featx.necks import FPN, Pipeline
from featx.runtime import cache, clear_cache, graph_files, runtimes
from featx.runtime.backends import openvino
from featx.runtime.cache import Cache, cache_at, default_folder
from featx.wrappers.extractor import maps_in

KEY, OTHER = "a" * 64, "b" * 64
X = images(2, 3, 64, 64)
needs_onnx = pytest.mark.skipif(runtimes()["onnxruntime"] is not None, reason="no ONNX Runtime")
pytestmark = pytest.mark.usefixtures("tolerant_of_torch")
needs_openvino = pytest.mark.skipif(runtimes()["openvino"] is not None, reason="no OpenVINO")


@pytest.fixture
def built(tmp_path) -> Path:
    """A folder with the files of an entry, before it is cached."""
    folder = tmp_path / "built"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph" * 100)
    (folder / "model.onnx.data").write_bytes(b"weights" * 100)
    return folder


@pytest.fixture
def kept(tmp_path, built) -> Cache:
    made = Cache(tmp_path / "cache", is_named=True)
    made.keep(KEY, built)
    return made


def test_what_is_kept_is_found_whole_and_under_its_key_alone(kept, built):
    found = Cache(kept.folder).find(KEY)
    assert found is not None
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == {
        path.name: path.read_bytes() for path in built.iterdir()
    }
    assert kept.find(OTHER) is None


def cut(entry: Path) -> None:
    os.truncate(entry / "model.onnx.data", 10)


def flip(entry: Path) -> None:
    content = bytearray((entry / "model.onnx").read_bytes())
    content[7] ^= 1
    (entry / "model.onnx").write_bytes(content)


def lose(entry: Path) -> None:
    (entry / "model.onnx").unlink()


def spoil(entry: Path) -> None:
    (entry / "entry.json").write_text("{")


def rename(entry: Path) -> None:
    said = json.loads((entry / "entry.json").read_text())
    (entry / "entry.json").write_text(json.dumps({**said, "key": OTHER}))


def list_others(entry: Path) -> None:
    (entry / "entry.json").write_text(json.dumps({"key": KEY, "sha256": {"../../built/model.onnx": "0" * 64}}))


@pytest.mark.parametrize("harm", [cut, flip, lose, spoil, rename, list_others])
def test_an_entry_that_is_damaged_or_of_another_key_is_not_found_and_is_replaced(kept, built, harm):
    harm(kept.folder / KEY)
    assert kept.find(KEY) is None
    kept.keep(KEY, built)
    assert kept.find(KEY) is not None


def test_the_entries_that_were_used_least_recently_go_first(kept, built, monkeypatch):
    for number in range(1, 4):
        kept.keep(f"{number}" * 64, built)
        os.utime(kept.folder / (f"{number}" * 64), (number, number))
    os.utime(kept.folder / KEY, (0, 0))
    assert kept.find(KEY) is not None  # used now
    monkeypatch.setattr(cache, "MOST_BYTES", 3 * cache._bytes_of(kept.folder / KEY))
    kept.keep(OTHER, built)
    assert sorted(path.name[0] for path in kept.folder.iterdir()) == ["3", "a", "b"]


def test_what_was_found_stays_when_its_entry_is_removed(kept, built):
    found = kept.find(KEY)
    assert clear_cache(kept.folder) == 1
    assert kept.find(KEY) is None
    assert (found.path / "model.onnx").read_bytes() == (built / "model.onnx").read_bytes()


def test_nothing_is_removed_that_is_not_of_the_cache(kept, built, monkeypatch):
    own = kept.folder / KEY / "notes.txt"
    foreign = [kept.folder / "README", kept.folder / OTHER / "model.onnx", own]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    monkeypatch.setattr(cache, "MOST_BYTES", 0)
    kept.keep("c" * 64, built)
    clear_cache(kept.folder)
    assert all(path.read_text() == "mine" for path in foreign)
    assert sorted(path.name for path in own.parent.iterdir()) == ["notes.txt"]


def test_one_of_those_that_build_the_same_does(kept):
    inside, most = [], []

    def build(_: int) -> None:
        with kept.reserved(OTHER):
            inside.append(threading.get_ident())
            most.append(len(inside))
            inside.remove(threading.get_ident())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(build, range(40)))
    assert max(most) == 1


@pytest.mark.parametrize("part", ["file", "file/below"])
def test_a_named_folder_that_cannot_be_written_is_an_error(tmp_path, built, part):
    (tmp_path / "file").write_text("in the way")
    named = cache_at(tmp_path / part)
    with pytest.raises(featx.OutputError, match=r"cache='.*file.*' cannot be used: "):
        named.keep(KEY, built)
    with pytest.raises(featx.OutputError, match=r"cache='.*file.*' cannot be used: "), named.reserved(KEY):
        raise AssertionError("unreachable")


def test_a_default_folder_that_cannot_be_written_is_warned_of(tmp_path, built, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FEATX_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="is not kept for later processes .* pass cache= with another folder"):
        cache_at(None).keep(KEY, built)


def test_the_default_folder_is_in_the_users_cache(monkeypatch, own_cache):
    assert default_folder() == own_cache
    monkeypatch.delenv("FEATX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/of/the/user")
    assert default_folder() == Path("/of/the/user/featx")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "featx"


@pytest.mark.parametrize("place", [7, ["folder"]])
def test_what_names_no_folder_is_refused(place):
    with pytest.raises(featx.ArgumentError, match="expected a folder, True for the default one, or False for none"):
        featx.optimize(random_extractor("resnet18"), cache=place)
    with pytest.raises(featx.ArgumentError, match="cache=False: expected a folder"):
        clear_cache(False)


# extractors


def timm_net() -> FeatureExtractWrapper:
    return random_extractor("timm/test_resnet", out_indices=[3, 1], output="dict")


def torchvision_net() -> FeatureExtractWrapper:
    return random_extractor("torchvision/shufflenet_v2_x0_5")


def transformers_net() -> FeatureExtractWrapper:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
    return FeatureExtractWrapper(randomize(transformers.AutoModel.from_config(transformers.ResNetConfig(**sizes))))


def native_tokens() -> FeatureExtractWrapper:
    return random_extractor("vit_wee_patch16_reg1_gap_256", out_indices=[-1], output="tokens")


def pipeline() -> FeatureExtractWrapper:
    source = random_extractor("mobilenetv3_small_050", out_indices=[2, 3, 4])
    torch.manual_seed(0)
    return randomize(Pipeline(source, FPN(source.feature_info, 8)))


FACTS = ("feature_info", "in_chans", "data_config", "size_divisor", "agreement", "load_report")
MODELS = [net, timm_net, torchvision_net, transformers_net, native_tokens, pipeline]


@needs_onnx
@torch.no_grad()
@pytest.mark.parametrize("make", MODELS)
def test_what_is_found_is_what_was_built(make, monkeypatch):
    original = make()
    x = images(2, 3, 256, 256) if make is native_tokens else X
    uncached = featx.optimize(original, runtime="onnxruntime", example=x, cache=False)
    built = featx.optimize(original, runtime="onnxruntime", example=x)
    forbid(monkeypatch, "write", "prepare", "check_maps")
    found = featx.optimize(make(), runtime="onnxruntime", example=x)
    for other in (uncached, found):
        assert type(other(x)) is type(original(x))
        assert [getattr(other, fact) for fact in FACTS] == [getattr(built, fact) for fact in FACTS]
        assert other._inner.description == built._inner.description
        assert [*sizes(other)] == [*sizes(built)]
        assert all(map(torch.equal, maps_in(other(x)), maps_in(built(x))))
    for ours, true in zip(maps_in(found(x)), maps_in(original(x)), strict=True):
        assert relative_difference(ours, true) < 1e-4
    told = {refusal(one) for one in (built, found, original)}
    assert len(told) == 1


def sizes(extractor: FeatureExtractWrapper):
    """Sizes of maps according to the size rule."""
    pyramid = extractor._inner
    return (pyramid.size_rule(side, one) for side in (64, 65, 95) for one in pyramid.feature_info.reduction())


def refusal(extractor: FeatureExtractWrapper) -> str:
    with pytest.raises(featx.InputError) as raised:
        extractor(images(1, 4, 64, 64))
    return str(raised.value)


def forbid(monkeypatch, *names: str) -> None:
    """Make the test fail if an extractor is built again."""

    def fail(*_, **__):
        raise AssertionError("it was in the cache")

    for name in names:
        monkeypatch.setattr(graph_files, name, fail)


@needs_onnx
@needs_openvino
def test_a_graph_serves_both_runtimes_and_is_compared_on_each(monkeypatch):
    featx.optimize(net(), runtime="onnxruntime", example=X)
    forbid(monkeypatch, "write", "prepare")
    check_maps, checked = graph_files.check_maps, []
    monkeypatch.setattr(
        graph_files, "check_maps", lambda built, *rest: checked.append(built.runtime) or check_maps(built, *rest)
    )
    for _ in range(2):
        featx.optimize(net(), runtime="openvino", example=X)
    assert checked == ["openvino"]


@needs_openvino
def test_what_openvino_compiled_is_for_this_number_of_threads_alone(monkeypatch, own_cache):
    built = featx.optimize(net(), runtime="openvino", example=X)
    forbid(monkeypatch, "write", "prepare", "check_maps")
    with monkeypatch.context() as patch:
        patch.setattr("openvino.Core.compile_model", lambda *_: pytest.fail("it was in the cache"))
        found = featx.optimize(net(), runtime="openvino", example=X)
    assert all(map(torch.equal, found(X), built(X)))
    monkeypatch.undo()
    monkeypatch.setenv("FEATX_CACHE", str(own_cache))
    torch.set_num_threads(torch.get_num_threads() + 1)  # as the fixture of threads takes back
    compiled, compile_model = [], openvino.OpenVinoEngine.keep_compiled
    monkeypatch.setattr(
        openvino.OpenVinoEngine,
        "keep_compiled",
        lambda self, folder: compiled.append(1) or compile_model(self, folder),
    )
    featx.optimize(net(), runtime="openvino", example=X)
    assert compiled == [1]


@needs_onnx
def test_a_graph_in_a_lower_precision_keeps_its_agreement(monkeypatch):
    example = images(4, 3, 32, 32)
    built = featx.optimize(net(), runtime="onnxruntime", example=example, dtype=torch.int8)
    forbid(monkeypatch, "write", "prepare", "check_maps")
    found = featx.optimize(net(), runtime="onnxruntime", example=example, dtype=torch.int8)
    assert 0.9 < min(built.agreement.values()) < 1
    assert found.agreement == built.agreement


@needs_onnx
def test_a_damaged_entry_is_built_again():
    built = featx.optimize(net(), runtime="onnxruntime", example=X)
    for path in default_folder().rglob("model.onnx"):
        path.write_bytes(path.read_bytes()[:-9])
    again = featx.optimize(net(), runtime="onnxruntime", example=X)
    assert all(map(torch.equal, again(X), built(X)))


@needs_onnx
def test_an_extractor_outlives_the_cache(own_cache):
    made = featx.optimize(net(), runtime="onnxruntime", example=X)
    expected = made(X)
    clear_cache()
    assert not [*own_cache.rglob("model.onnx")]
    copied = pickle.loads(pickle.dumps(made))
    assert all(map(torch.equal, copied(X), expected))


@needs_onnx
def test_without_a_cache_nothing_is_kept(own_cache, tmp_path):
    featx.optimize(net(), runtime="onnxruntime", example=X, cache=False)
    assert not own_cache.exists()
    featx.optimize(net(), runtime="onnxruntime", example=X, cache=tmp_path / "named")
    assert not own_cache.exists()
    assert len([*(tmp_path / "named").rglob("model.onnx")]) == 1


@needs_onnx
def test_threads_that_build_the_same_get_the_same(monkeypatch):
    write, written = graph_files.write, []
    monkeypatch.setattr(graph_files, "write", lambda *words: written.append(1) or write(*words))
    models = [net() for _ in range(3)]  # one after another: the seed is the process's
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda model: featx.optimize(model, runtime="onnxruntime", example=X), models))
    assert len(written) == 1
    assert all(torch.equal(one(X)[1], made[0](X)[1]) for one in made)
