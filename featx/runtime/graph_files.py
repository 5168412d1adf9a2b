"""Extractors on runtimes that read ONNX: their graphs, written once or found in the cache, and compared once."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from ..json_checks import JsonError, Value, parsed
from ..tracing.execution_order import channels_of
from ..wrappers import FeatureExtractWrapper
from .agreement import agreement, compared, smooth_noise
from .available import processor, version
from .backends.engine import COMPILED, EngineExtractor
from .backends.engines import ENGINES, write
from .cache import Cache, OwnFolder
from .capture import GraphSpec
from .fingerprint import digest_of, fingerprint
from .mixed_precision import Layers, kept_layers, wanted_similarity
from .onnx.file import describe_onnx, read_onnx
from .passes.lowering import layers_in_order, lowest_dtype
from .passes.memory_format import MemoryFormat
from .passes.prepare import prepare
from .watch import copy_of, own_size

MODEL, FACTS = "model.onnx", "facts.json"


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
        """The model's own dtype."""
        return lowest_dtype(self.model)

    @property
    def computes(self) -> torch.dtype:
        return self.dtype or self.given

    @property
    def is_lower(self) -> bool:
        """Whether it is to compute in a lower precision than the model's, so that weights are rounded."""
        return self.computes.itemsize < self.given.itemsize

    @property
    def wanted(self) -> float:
        """The cosine similarity that layers in float32 are kept for; 0 where precision is not lowered."""
        return wanted_similarity(self.computes, self.min_agreement) if self.is_lower else 0.0

    @property
    def like(self) -> Tensor:
        """One image of the size that the extractor will be given."""
        if self.example is not None:
            return self.example[:1]
        weight = next(self.model.parameters())
        shape = (1, channels_of(self.model), *own_size(self.model))
        return torch.zeros(shape, dtype=weight.dtype, device=weight.device)

    def similarity(self, made: FeatureExtractWrapper) -> float:
        """The cosine similarity of the least similar level to the model's, on the example or on noise."""
        images = smooth_noise(self.like) if self.example is None else self.example
        return min(agreement(made, copy_of(self.model, shares=True), images).values())

    @cached_property
    def fingerprint(self) -> str | None:
        """What identifies it all in the cache; None if there is none, or nothing identifies the model."""
        made = None if self.cache is None else fingerprint(self.model, self.example)
        if made is None:
            return None
        images = digest_of(self.example) if self.is_lower and self.example is not None else None
        return _key(made, self.computes, images, self.wanted)

    def graph_key(self, runtime: str) -> str | None:
        """The key of the graph. Those in a lower precision are for a runtime and a processor."""
        one = (runtime, version(runtime), processor()) if self.is_lower else ()
        return self.fingerprint and _key("graph", self.fingerprint, *one)

    def run_key(self, *of: object) -> str | None:
        """The key of what was measured on this processor."""
        return self.fingerprint and _key(self.fingerprint, processor(), *of)


def _key(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()


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
        return _written(runtime, request)
    found = cache.find(key)
    if found is not None:
        return found
    with cache.reserved(key):
        found = cache.find(key)  # another process may have built it meanwhile
        if found is None:
            found = _written(runtime, request)
            cache.keep(key, found.path)
    return found


def _written(runtime: str, request: Request) -> OwnFolder:
    """A new folder with the graph."""
    extractor, seen = prepare(request.model, request.example)
    layers = layers_in_order(extractor, seen)
    folder = OwnFolder()
    path = folder.path / MODEL
    said = write(extractor, seen, GraphSpec(request.computes, request.example, wanted=request.wanted), path)
    if request.wanted and request.computes.is_floating_point:

        def similarity(kept: Layers) -> float:
            mixed = replace(said, in_float32=kept)
            return request.similarity(EngineExtractor(ENGINES[runtime](path, mixed), mixed))

        kept = kept_layers(lambda: layers, similarity, request.wanted)
        describe_onnx(path, replace(said, in_float32=kept))
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
