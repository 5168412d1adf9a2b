"""Extractors whose maps are computed by another library from a graph."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ...backbone import Backbone, Pyramid
from ...errors import ArgumentError, CheckpointError, InputError, names_in
from ...features import Levels
from ...file_version import Version, version_of
from ...wrappers import FeatureExtractWrapper
from ..cache import OwnFolder
from ..description import Description, ascending, weights_file
from ..optimized import OptimizedExtractor

COMPILED = "model.blob"  # the graph compiled for a processor and a number of threads, in the folder of an engine
DEVICE, DTYPE = torch.device("cpu"), torch.float32  # of images


class FileEngine(ABC):
    """Computes the outputs of a graph in a file by another library, on the CPU, for images in float32.

    An engine is immutable: a copy is the engine itself. Pickling includes the bytes of the file.

    Attributes:
        runtime: Name of the runtime.
        hides_nan: Whether some of its kernels return finite numbers for NaN.
        is_shape_specific: Whether images of the example's shape use another compiled graph than other images.
        dtypes: The dtypes in which the runtime can compute.
        path: The file.
        weights_files: Names of the files next to it that contain its weights.
        description: Description of the extractor.
    """

    runtime: str
    dtypes: tuple[torch.dtype, ...]
    hides_nan = False
    is_shape_specific = False

    def __init__(self, path: Path, description: Description, folder: OwnFolder | None = None) -> None:
        self.path, self.description, self._folder = path, description, folder
        self.weights_files = tuple(weights.name for weights in (weights_file(path),) if weights.exists())
        self._versions = self._current_versions()
        self.load()
        if self._current_versions() != self._versions:
            raise CheckpointError(f"{path} was overwritten while it was read: load it again")

    def _current_versions(self) -> list[Version]:
        """The present versions of its files; CheckpointError if one cannot be read."""
        try:
            return [version_of(self.path.parent / name) for name in (self.path.name, *self.weights_files)]
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read any more: {error}") from error

    @abstractmethod
    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """(N, in_chans, H, W) to the outputs of the graph, in ascending order of levels."""

    @abstractmethod
    def load(self, streams: int = 1) -> None:
        """Load the file, for as many threads as torch uses.

        Args:
            streams: Number of threads that will call the engine concurrently and share torch's number of threads.

        Raises:
            CheckpointError: The file cannot be used.
        """

    @abstractmethod
    def keep_compiled(self, folder: Path) -> None:
        """Write the compiled graph to a folder, if the runtime can load one."""

    def _require_names(self, inputs: list[str], outputs: list[str]) -> None:
        """CheckpointError if the inputs and outputs of the graph differ from its description."""
        described = self.description.output_names()
        if inputs != ["images"] or outputs != described:
            raise CheckpointError(
                f"{self.path} describes {names_in(described)} made from 'images', and its graph makes "
                f"{names_in(outputs)} from {names_in(inputs)}: write it again with featx.export"
            )

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        del memo
        return self

    def __getstate__(self) -> dict[str, Any]:
        try:
            files = {name: (self.path.parent / name).read_bytes() for name in (self.path.name, *self.weights_files)}
            if self._current_versions() != self._versions:
                raise CheckpointError("it was overwritten")
        except (OSError, CheckpointError) as error:
            raise ArgumentError(
                f"this runs from a file that cannot be read any more, so it cannot be pickled: {error}"
            ) from error
        return {"files": files, "description": self.description}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        folder = OwnFolder()
        for name, content in state["files"].items():
            (folder.path / name).write_bytes(content)
        self.__init__(folder.path / next(iter(state["files"])), state["description"], folder)


class EnginePyramid(Pyramid):
    """The maps that an engine computes, as a Pyramid without parameters.

    Args:
        engine: The engine.
        description: Description of the extractor.
        source: The extractor that the engine was built from, whose size rule is used; None for a loaded file.
    """

    def __init__(
        self, engine: FileEngine, description: Description, source: FeatureExtractWrapper | None = None
    ) -> None:
        super().__init__()
        self.engine, self.description = engine, description
        self.feature_info = Levels([description.levels[position] for position in ascending(description.levels)])
        self.fixed_size, self.smallest = description.fixed_size, description.smallest
        vars(self).update(size_divisor=description.size_divisor)  # a class attribute in families
        if description.in_chans is not None:
            self.in_chans = description.in_chans
        if description.data_config is not None:
            self.data_config = description.data_config
        if source is not None:
            self.corrections, self.load_report = source._inner.corrections, source.load_report
            if isinstance(source.source, Backbone):
                self.size_rule = source.source.size_rule

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        maps = self._run(x)
        return [maps[level] for level in levels]

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        if self.description.output != "tokens":
            return super().forward_tokens(x, levels)
        tensors = self._run(x)
        return [(tensors[2 * level], tensors[2 * level + 1]) for level in levels]

    def _run(self, x: Tensor) -> list[Tensor]:
        if tuple(x.shape) not in self.description.guard:
            raise InputError(
                f"this was built by runtime={self.engine.runtime!r} for {self.description.guard}, got {x.shape[0]} of "
                f"{x.shape[2]}x{x.shape[3]}, which its graph does not support: resize them, or build it again with "
                "example= images of this shape"
            )
        with torch.autocast(x.device.type, enabled=False):  # the graph has its own precision
            tensors = [tensor.to(self.description.dtype) for tensor in self.engine(x)]
        self._require_levels(tensors, len(x))
        if self.engine.hides_nan:
            is_not_finite = ~x.flatten(1).sum(1).isfinite()
            if is_not_finite.any():
                for tensor in tensors:
                    tensor[is_not_finite] = torch.nan
        return tensors

    def _require_levels(self, tensors: Sequence[Tensor], batch: int) -> None:
        """CheckpointError if the outputs of the graph are not the maps of the described levels."""
        ndims = (3, 4) if self.description.output == "tokens" else (4,)
        expected = [(ndim, batch, level.chs) for level in self.feature_info for ndim in ndims]
        axes = [slice(1, 2) if tensor.ndim == 4 else slice(-1, None) for tensor in tensors]  # of the channels
        if expected != [(x.ndim, *x.shape[:1], *x.shape[axis]) for x, axis in zip(tensors, axes, strict=True)]:
            raise CheckpointError(
                f"its graph returns {[tuple(tensor.shape) for tensor in tensors][:8]}, and its description states "
                f"levels of {self.feature_info.channels()[:8]} channels as {self.description.output}: export it again"
            )


class EngineExtractor(OptimizedExtractor):
    """An extractor that computes its maps by an engine; it cannot be moved to another device or dtype."""

    def __init__(
        self, engine: FileEngine, description: Description, source: FeatureExtractWrapper | None = None
    ) -> None:
        pyramid = EnginePyramid(engine, description, source).eval()
        order = [pyramid.feature_info.names().index(name) for name in description.levels.names()]
        output: Any = description.output
        wrapper = FeatureExtractWrapper(pyramid, order, output=output)
        wrapper.feature_info = description.levels
        super().__init__(wrapper, DTYPE, torch.contiguous_format)
        self.agreement, self.in_float32 = description.agreement, description.in_float32

    @property
    def _engine(self) -> FileEngine:
        pyramid = self._inner
        assert isinstance(pyramid, EnginePyramid)
        return pyramid.engine

    @property
    def runtime(self) -> str:
        """Name of the runtime."""
        return self._engine.runtime

    def serve(self, streams: int) -> None:
        """Prepare the engine, in place, for concurrent calls by `streams` threads, which share torch's threads."""
        self._engine.load(streams)

    def _check(self, x: Tensor) -> None:
        super()._check(x)
        if x.device.type != DEVICE.type:
            raise InputError(
                f"images are on {x.device}, and this was built by runtime={self.runtime!r} for {DEVICE}: move them "
                f"with images.to({DEVICE.type!r})"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        moved = fn(torch.empty(0, dtype=DTYPE, device=DEVICE))
        if moved.device.type != DEVICE.type or moved.dtype != DTYPE:
            raise ArgumentError(
                f"this was built by runtime={self.runtime!r} for {DEVICE} and {DTYPE}, and cannot become {moved.dtype} "
                f"on {moved.device}: optimize or export the original for that device and dtype"
            )
        return super()._apply(fn, recurse)
