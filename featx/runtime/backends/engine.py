"""Extractors whose maps come from something that was built once: a compiled graph, or another library's session."""

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
from ..description import Description, ascending, beside
from ..optimized import OptimizedExtractor


class Engine(ABC):
    """Computes what a graph returns. Nothing ever changes one, so copies are the engine itself.

    runtime: its name. device, dtype: of the images it takes. hides_nan: some of its kernels for
        CPUs make numbers of NaN. is_of_shape: images of the example's shape run another program than others do.
    """

    runtime: str
    hides_nan = False
    is_of_shape = False
    device = torch.device("cpu")
    dtype = torch.float32

    @abstractmethod
    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """(N, in_chans, H, W) to what the graph returns, in ascending order of levels."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        del memo
        return self


COMPILED = "model.blob"  # in an engine's own folder: its graph, compiled for a processor and a number of threads


class FileEngine(Engine):
    """An engine that another library makes of a file. It is pickled with the bytes of the file.

    path: the file, and in `beside` the name of the one that has its weights, if there is one. folder: where they
        are, if they are there for this engine alone.
    """

    def __init__(self, path: Path, said: Description, folder: OwnFolder | None = None) -> None:
        self.path, self.said, self._folder = path, said, folder
        self.beside = tuple(other.name for other in (beside(path),) if other.exists())
        self._versions = self._seen()
        self.load()
        if self._seen() != self._versions:
            raise CheckpointError(f"{path} was overwritten while it was read: load it again")

    def _seen(self) -> list[Version]:
        """The versions of its files; CheckpointError if one is not there."""
        try:
            return [version_of(self.path.parent / name) for name in (self.path.name, *self.beside)]
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read any more: {error}") from error

    @abstractmethod
    def load(self, streams: int = 1) -> None:
        """Make ready what computes, on as many threads as torch has; CheckpointError if the file cannot be used.

        streams: how many threads will call it at once, which then share those.
        """

    def keep_compiled(self, folder: Path) -> None:
        """Write what spares compiling the graph again to a folder; nothing where compiling takes no time."""

    def _require_names(self, inputs: list[str], outputs: list[str]) -> None:
        """CheckpointError if a graph takes and returns something else than its description says."""
        if inputs != ["images"] or outputs != self.said.tensors():
            raise CheckpointError(
                f"{self.path} describes {names_in(self.said.tensors())} made from 'images', and its graph makes "
                f"{names_in(outputs)} from {names_in(inputs)}: write it again with featx.export"
            )

    def __getstate__(self) -> dict[str, Any]:
        try:
            files = {name: (self.path.parent / name).read_bytes() for name in (self.path.name, *self.beside)}
            if self._seen() != self._versions:
                raise CheckpointError("it was overwritten")
        except (OSError, CheckpointError) as error:
            raise ArgumentError(
                f"this runs from a file that cannot be read any more, so it cannot be pickled: {error}"
            ) from error
        return {"files": files, "said": self.said}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        folder = OwnFolder()
        for name, content in state["files"].items():
            (folder.path / name).write_bytes(content)
        self.__init__(folder.path / next(iter(state["files"])), state["said"], folder)


class EnginePyramid(Pyramid):
    """The maps that an engine computes. It has no parameters.

    source: the extractor that the engine was made of, where there is one; it has the rule of sizes.
    """

    def __init__(self, engine: Engine, said: Description, source: FeatureExtractWrapper | None = None) -> None:
        super().__init__()
        self.engine, self.said = engine, said
        self.feature_info = Levels([said.levels[position] for position in ascending(said.levels)])
        self.fixed_size, self.smallest = said.fixed_size, said.smallest
        vars(self).update(size_divisor=said.size_divisor)  # of the class in a family
        if said.in_chans is not None:
            self.in_chans = said.in_chans
        if said.data_config is not None:
            self.data_config = said.data_config
        if source is not None:
            self.corrections, self.load_report = source._inner.corrections, source.load_report
            if isinstance(source.source, Backbone):
                self.size_rule = source.source.size_rule

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        maps = self._run(x)
        return [maps[level] for level in levels]

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        if self.said.output != "tokens":
            return super().forward_tokens(x, levels)
        tensors = self._run(x)
        return [(tensors[2 * level], tensors[2 * level + 1]) for level in levels]

    def _run(self, x: Tensor) -> list[Tensor]:
        if tuple(x.shape) not in self.said.guard:
            raise InputError(
                f"this was built by runtime={self.engine.runtime!r} for {self.said.guard}, got {x.shape[0]} of "
                f"{x.shape[2]}x{x.shape[3]}, which its graph is not right for: resize them, or build it again with "
                "example= images of this shape"
            )
        with torch.autocast(x.device.type, enabled=False):  # it computes in what it was built for
            tensors = [tensor.to(self.said.dtype) for tensor in self.engine(x)]
        self._require_levels(tensors, len(x))
        if self.engine.hides_nan and x.device.type == "cpu":
            broken = ~x.flatten(1).sum(1).isfinite()
            if broken.any():
                for tensor in tensors:
                    tensor[broken] = torch.nan
        return tensors

    def _require_levels(self, tensors: Sequence[Tensor], batch: int) -> None:
        """CheckpointError if these are not maps of the levels, which a file can say falsely."""
        kinds = (3, 4) if self.said.output == "tokens" else (4,)
        expected = [(ndim, batch, level.chs) for level in self.feature_info for ndim in kinds]
        found = [(one.ndim, *one.shape[:1], *(one.shape[1:2] if one.ndim == 4 else one.shape[-1:])) for one in tensors]
        if found != expected:
            raise CheckpointError(
                f"its graph returns {[tuple(tensor.shape) for tensor in tensors][:8]}, and its description says levels "
                f"of {self.feature_info.channels()[:8]} channels as {self.said.output}: export it again"
            )


class EngineExtractor(OptimizedExtractor):
    """An extractor on an engine, which cannot be moved or converted."""

    def __init__(
        self,
        engine: Engine,
        said: Description,
        source: FeatureExtractWrapper | None = None,
    ) -> None:
        pyramid = EnginePyramid(engine, said, source).eval()
        order = [pyramid.feature_info.names().index(name) for name in said.levels.names()]
        output: Any = said.output
        wrapper = FeatureExtractWrapper(pyramid, order, output=output)
        wrapper.feature_info = said.levels
        super().__init__(wrapper, engine.dtype, torch.contiguous_format)
        self.agreement, self.in_float32 = said.agreement, said.in_float32

    @property
    def _engine(self) -> Engine:
        pyramid = self._inner
        assert isinstance(pyramid, EnginePyramid)
        return pyramid.engine

    @property
    def runtime(self) -> str:
        """What runs it."""
        return self._engine.runtime

    def serve(self, streams: int) -> None:
        """Make it ready for so many threads that call it at once and share the threads of torch, in place."""
        engine = self._engine
        if isinstance(engine, FileEngine):
            engine.load(streams)

    def _check(self, x: Tensor) -> None:
        super()._check(x)
        device = self._engine.device
        if x.device.type != device.type:
            raise InputError(
                f"images are on {x.device}, and this was built by runtime={self._engine.runtime!r} for {device}: move "
                f"them with images.to({device.type!r})"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        engine = self._engine
        moved = fn(torch.empty(0, dtype=engine.dtype, device=engine.device))
        if moved.device.type != engine.device.type or moved.dtype != engine.dtype:
            raise ArgumentError(
                f"this was built by runtime={engine.runtime!r} for {engine.device.type} and {engine.dtype}, and cannot "
                f"become {moved.dtype} on {moved.device}: optimize or export the original again, as wanted there"
            )
        return super()._apply(fn, recurse)
