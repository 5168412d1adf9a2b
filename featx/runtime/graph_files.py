"""Extractors on runtimes that read ONNX: their graphs, written once or found in the cache, and compared once."""

import json
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from ..json_checks import JsonError, Value, parsed
from ..tracing.execution_order import channels_of
from ..wrappers import FeatureExtractWrapper
from .agreement import compared, smooth_noise
from .available import processor, version
from .backends.engine import COMPILED, EngineExtractor
from .backends.engines import ENGINES, write
from .cache import Cache, OwnFolder
from .capture import GraphSpec
from .fingerprint import digest_of, fingerprint
from .mixed_precision import mixed_precision, wanted_similarity
from .onnx.file import read_onnx
from .passes.lowering import MixedPrecision
from .passes.memory_format import MemoryFormat
from .passes.prepare import Prepared, prepare
from .watch import own_size

MODEL, FACTS = "model.onnx", "facts.json"
ENOUGH = 8  # images to measure on how many layers stay in float32


@dataclass(frozen=True)
class Request:
    """What `optimize` was asked for, beside the runtime; `model` is an extractor in eval mode. cache: None is none."""

    model: FeatureExtractWrapper
    dtype: torch.dtype | None
    memory_format: MemoryFormat
    example: Tensor | None
    cache: Cache | None
    min_agreement: float | None = None

    @property
    def given(self) -> torch.dtype:
        """The model's own dtype; the lower one of two."""
        return min((parameter.dtype for parameter in self.model.parameters()), key=lambda dtype: dtype.itemsize)

    @property
    def computes(self) -> torch.dtype:
        return self.dtype or self.given

    @property
    def is_lower(self) -> bool:
        """Whether it is to compute in a lower precision than the model's, so that weights are rounded."""
        return self.computes.itemsize < self.given.itemsize

    @property
    def wanted(self) -> float:
        """The cosine similarity that every level is to have with the original's, if layers in float32 can do it."""
        return wanted_similarity(self.computes, self.min_agreement)

    @property
    def like(self) -> Tensor:
        """One image of the size that the extractor will be given."""
        if self.example is not None:
            return self.example[:1]
        weight = next(self.model.parameters())
        shape = (1, channels_of(self.model), *own_size(self.model))
        return torch.zeros(shape, dtype=weight.dtype, device=weight.device)

    @cached_property
    def fingerprint(self) -> str | None:
        """What identifies it all in the cache; None if there is none, or nothing identifies the model."""
        made = None if self.cache is None else fingerprint(self.model, self.example)
        if made is None:
            return None
        images = digest_of(self.example) if self.is_lower and self.example is not None else None
        return _key(made, self.computes, images, self.wanted)

    def graph_key(self, runtime: str) -> str | None:
        """The key of the graph. Those in int8 are for a runtime and a processor."""
        one = (runtime, version(runtime), processor()) if self.computes is torch.int8 else ()
        return self.fingerprint and _key("graph", self.fingerprint, *one)

    def run_key(self, *of: object) -> str | None:
        """The key of what was measured on this processor."""
        return self.fingerprint and _key(self.fingerprint, processor(), *of)


def _key(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()


def precision_for(prepared: Prepared, request: Request) -> MixedPrecision:
    """Which layers stay in float32 in a lower precision of floats."""
    if not request.is_lower or not request.computes.is_floating_point:
        return MixedPrecision()
    images = smooth_noise(request.like) if request.example is None else request.example[:ENOUGH]
    return mixed_precision(*prepared, images, request.computes, request.wanted)


def on_runtime(runtime: str, request: Request) -> EngineExtractor:
    """The extractor on a runtime that reads ONNX.

    Raises ContractError for a model that cannot be captured, or whose maps the runtime computes otherwise.
    """
    folder = _graph(runtime, request)
    key = request.run_key("run", runtime, version(runtime), torch.get_num_threads())
    known = None if request.cache is None or key is None else request.cache.find(key)
    if known is not None and (known.path / COMPILED).exists():
        (known.path / COMPILED).replace(folder.path / COMPILED)
    path = folder.path / MODEL
    said = read_onnx(path)
    engine = ENGINES[runtime](path, said, folder)
    made = EngineExtractor(engine, said, request.model)
    if known is not None:
        made.agreement = json.loads((known.path / FACTS).read_bytes())["agreement"]
        return made
    made.agreement = compared(made, request.model, request.like, request.example, request.computes)
    if request.cache is not None and key is not None:
        own = OwnFolder()
        engine.keep_compiled(own.path)
        _keep(request.cache, key, own, {"agreement": made.agreement})
    return made


def _graph(runtime: str, request: Request) -> OwnFolder:
    cache, key = request.cache, request.graph_key(runtime)
    if cache is None or key is None:
        return _written(request)
    found = cache.find(key)
    if found is not None:
        return found
    with cache.reserved(key):
        found = cache.find(key)  # another process may have built it meanwhile
        if found is None:
            found = _written(request)
            cache.keep(key, found.path)
    return found


def _written(request: Request) -> OwnFolder:
    """A new folder with the graph."""
    extractor, seen = prepared = prepare(request.model, request.example)
    mixed = precision_for(prepared, request)
    folder = OwnFolder()
    path = folder.path / MODEL
    write(
        extractor,
        seen,
        GraphSpec(request.computes, request.example, wanted=request.wanted, in_float32=mixed.exact),
        path,
    )
    return folder


def facts_in(cache: Cache | None, key: str | None) -> Value | None:
    """The facts that the cache has under a key; None if it has none."""
    found = None if cache is None or key is None else cache.find(key)
    try:
        return None if found is None else parsed((found.path / FACTS).read_bytes())
    except (OSError, JsonError):
        return None


def keep_facts(cache: Cache | None, key: str | None, facts: dict[str, Any]) -> None:
    """Keep facts under a key, if there is a cache."""
    if cache is not None and key is not None:
        _keep(cache, key, OwnFolder(), facts)


def _keep(cache: Cache, key: str, folder: OwnFolder, facts: dict[str, Any]) -> None:
    """Keep the files of a folder with facts about them."""
    (folder.path / FACTS).write_text(json.dumps(facts))
    cache.keep(key, folder.path)
