"""Extractors on runtimes that read ONNX: their graphs, and facts about them, are written once and cached."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from ..json_checks import JsonError, Value, parsed
from ..wrappers import FeatureExtractWrapper
from .agreement import agreement, check_maps, smooth_noise
from .available import processor, version
from .backends.engine import COMPILED, EngineExtractor
from .backends.engines import ENGINES, write
from .cache import Cache, OwnFolder
from .capture import GraphSpec
from .fingerprint import digest_of, fingerprint
from .mixed_precision import Layers, kept_layers, target_similarity
from .onnx.file import describe_onnx, read_onnx
from .passes.lowering import layers_in_order, lowest_dtype
from .passes.memory_format import MemoryFormat
from .passes.prepare import prepare
from .sample_trace import black_image, default_size, inference_copy

MODEL, FACTS = "model.onnx", "facts.json"


@dataclass(frozen=True)
class Request:
    """The arguments of `optimize`, except the runtime.

    Attributes:
        model: An extractor in eval mode.
        dtype: The dtype to compute in; None keeps the model's.
        memory_format: The memory format in PyTorch.
        example: Images (N, in_chans, H, W) of the shape that will be used, or None.
        cache: The cache; None if the user disabled it.
        min_agreement: The minimum cosine similarity of each level's map with the original's, or None.
    """

    model: FeatureExtractWrapper
    dtype: torch.dtype | None
    memory_format: MemoryFormat
    example: Tensor | None
    cache: Cache | None
    min_agreement: float | None = None

    @property
    def computes(self) -> torch.dtype:
        """The dtype to compute in."""
        return self.dtype or lowest_dtype(self.model)

    @property
    def is_lower(self) -> bool:
        """Whether that dtype is a lower precision than the model's, so that weights are rounded."""
        return self.computes.itemsize < lowest_dtype(self.model).itemsize

    @property
    def target_similarity(self) -> float:
        """The cosine similarity to reach by keeping layers in float32; 0 if the precision is not lowered."""
        return target_similarity(self.computes, self.min_agreement) if self.is_lower else 0.0

    @property
    def like(self) -> Tensor:
        """One image of the size that will be used."""
        return black_image(self.model, default_size(self.model)) if self.example is None else self.example[:1]

    def similarity(self, built: FeatureExtractWrapper) -> float:
        """The cosine similarity of the least similar level with the model's, on the example or on noise."""
        images = smooth_noise(self.like) if self.example is None else self.example
        return min(agreement(built, inference_copy(self.model, shares=True), images).values())

    @cached_property
    def fingerprint(self) -> str | None:
        """A hash of the request; None without a cache, or if the model has no fingerprint."""
        of_model = None if self.cache is None else fingerprint(self.model, self.example)
        if of_model is None:
            return None
        images = digest_of(self.example) if self.is_lower and self.example is not None else None
        return _key(of_model, self.computes, images, self.target_similarity)

    def graph_key(self, runtime: str) -> str | None:
        """The cache key of the graph, which in a lower precision also depends on the runtime and the processor."""
        parts = (runtime, version(runtime), processor()) if self.is_lower else ()
        return self.fingerprint and _key("graph", self.fingerprint, *parts)

    def run_key(self, *parts: object) -> str | None:
        """The cache key of a measurement on this processor."""
        return self.fingerprint and _key(self.fingerprint, processor(), *parts)

    def find(self, key: str | None) -> OwnFolder | None:
        """A folder with the cached files of a key, or None."""
        return None if self.cache is None or key is None else self.cache.find(key)

    def facts(self, key: str | None) -> Value | None:
        """The facts that are cached under a key, or None."""
        folder = self.find(key)
        try:
            return None if folder is None else parsed((folder.path / FACTS).read_bytes())
        except (OSError, JsonError):
            return None

    def keep(self, key: str | None, facts: dict[str, Any], folder: OwnFolder | None = None) -> None:
        """Cache facts, and the files of a folder; without a cache or a key, this does nothing."""
        if self.cache is not None and key is not None:
            folder = folder or OwnFolder()
            (folder.path / FACTS).write_text(json.dumps(facts))
            self.cache.keep(key, folder.path)


def _key(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()


def build_on_engine(runtime: str, request: Request) -> EngineExtractor:
    """The extractor on a runtime that reads ONNX.

    Raises:
        ContractError: The model cannot be captured, or the runtime computes other maps.
    """
    folder = _cached_graph(runtime, request)
    key = request.run_key("run", runtime, version(runtime), torch.get_num_threads())
    known = request.find(key)
    if known is not None and (known.path / COMPILED).exists():
        (known.path / COMPILED).replace(folder.path / COMPILED)
    path = folder.path / MODEL
    description = read_onnx(path)
    engine = ENGINES[runtime](path, description, folder)
    extractor = EngineExtractor(engine, description, request.model)
    if known is not None:
        extractor.agreement = json.loads((known.path / FACTS).read_bytes())["agreement"]
        return extractor
    extractor.agreement = check_maps(extractor, request.model, request.like, request.example, request.computes)
    if key is not None:
        compiled = OwnFolder()
        engine.keep_compiled(compiled.path)
        request.keep(key, {"agreement": extractor.agreement}, compiled)
    return extractor


def _cached_graph(runtime: str, request: Request) -> OwnFolder:
    """A folder with the graph, from the cache if it is there; else it is written and cached."""
    cache, key = request.cache, request.graph_key(runtime)
    if cache is None or key is None:
        return _write_graph(runtime, request)
    folder = cache.find(key)
    if folder is not None:
        return folder
    with cache.reserved(key):
        folder = cache.find(key)  # another process may have built it in the meantime
        if folder is None:
            folder = _write_graph(runtime, request)
            cache.keep(key, folder.path)
    return folder


def _write_graph(runtime: str, request: Request) -> OwnFolder:
    """Write the graph to a new folder, and return the folder."""
    extractor, trace = prepare(request.model, request.example)
    layers = layers_in_order(extractor, trace)
    folder = OwnFolder()
    path, target = folder.path / MODEL, request.target_similarity
    spec = GraphSpec(request.computes, request.example, target_similarity=target)
    description = write(extractor, trace, spec, path)
    if target and request.computes.is_floating_point:

        def similarity(kept: Layers) -> float:
            mixed = replace(description, in_float32=kept)
            return request.similarity(EngineExtractor(ENGINES[runtime](path, mixed), mixed))

        kept = kept_layers(lambda: layers, similarity, target)
        describe_onnx(path, replace(description, in_float32=kept))
    return folder
