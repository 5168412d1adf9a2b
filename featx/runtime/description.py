"""What a file with a graph says of it, so that the graph alone is an extractor again."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..features import FeatureInfo, Levels
from ..json_checks import JsonError, Value, parsed
from ..preprocessing import DataConfig
from ..wrappers import FeatureExtractWrapper

KEY = "featx"  # of the description in a file's metadata
VERSION = 2
DTYPES = {f"{dtype}".removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
DTYPES |= {"float64": torch.float64}
OUTPUTS = ("list", "dict", "tokens")
LARGEST = 2**20  # of channels, strides and pixels


@dataclass(frozen=True, slots=True)
class ShapeGuard:
    """The images that a graph is right for. shape: (N, C, H, W). free: the axes that may have any other length."""

    shape: tuple[int, ...]
    free: frozenset[int]

    def __contains__(self, shape: Sequence[int]) -> bool:
        return all(axis in self.free or length == self.shape[axis] for axis, length in enumerate(shape))

    def __str__(self) -> str:
        batch = "any batch of" if 0 in self.free else f"batches of {self.shape[0]}"
        size = "" if {2, 3} <= self.free else f" of {self.shape[2]}x{self.shape[3]} pixels"
        return f"{batch} images{size or ' of most sizes'}"


@dataclass(frozen=True)
class Description:
    """An extractor without its tensors and its code.

    levels: those returned, in order. output: "list", "dict" or "tokens". guard: images the graph is right for.
    dtype: of the maps. computes: "float32", "bfloat16" or "int8". agreement: with the original's maps, by level.
    smallest: the shortest side of images, in pixels. in_float32: in a lower precision, paths of the layers that stay.
    """

    levels: Levels
    output: str
    in_chans: int | None
    size_divisor: int
    fixed_size: tuple[int, int] | None
    data_config: DataConfig | None
    guard: ShapeGuard
    dtype: torch.dtype
    computes: str
    agreement: dict[str, float] | None = None
    smallest: int | None = None
    in_float32: tuple[str, ...] = ()

    def tensors(self) -> list[str]:
        """Names of what the graph returns, safe in any format: a map per level, or its prefix tokens and the map.

        They are in ascending order of levels, whatever order was asked for.
        """
        names = [self.levels[position].name for position in ascending(self.levels)]
        safe = _distinct(["".join(c if c.isalnum() and c.isascii() else "_" for c in name) for name in names])
        return [part for name in safe for part in (f"{name}_tokens", name)] if self.output == "tokens" else safe


def describe(extractor: FeatureExtractWrapper, guard: ShapeGuard, maps: torch.dtype, computes: str) -> Description:
    """The description of a graph of the extractor's. maps: their dtype. computes: see `Description`."""
    return Description(
        extractor.feature_info,
        extractor._output,
        extractor.in_chans,
        extractor.size_divisor,
        extractor._inner.fixed_size,
        extractor.data_config,
        guard,
        maps,
        computes,
        smallest=extractor._smallest,
    )


def ascending(levels: Levels) -> list[int]:
    """Positions among the levels returned, from the shallowest level to the deepest."""
    return sorted(range(len(levels)), key=lambda position: levels.out_indices[position])


def to_json(said: Description) -> str:
    every = [[row["num_chs"], row["reduction"], row["module"]] for row in said.levels.info]
    fields = {name: value for name, value in vars(said).items() if name not in ("levels", "dtype", "guard")}
    config = None if said.data_config is None else asdict(said.data_config)
    return json.dumps(
        {
            **fields,
            "version": VERSION,
            "levels": every,
            "out_indices": said.levels.out_indices,
            "data_config": config,
            "dtype": f"{said.dtype}".removeprefix("torch."),
            "shape": said.guard.shape,
            "free": sorted(said.guard.free),
        }
    )


def from_json(text: str | bytes, file: object) -> Description:
    """The description in a file; CheckpointError if it is none, or one that this version of featx does not know."""
    try:
        return _read(parsed(text))
    except JsonError as error:
        raise CheckpointError(
            f"{file} describes no extractor that this version of featx knows ({error}): write it again with "
            "featx.export"
        ) from error


def _read(said: Value) -> Description:
    if said["version"].held != VERSION:
        raise said["version"].mismatch(f"{VERSION}")
    levels, guard, config = _levels(said), _guard(said), said.get("data_config")
    in_chans, fixed = _number(said, "in_chans"), said.get("fixed_size")
    if in_chans not in (None, guard.shape[1]):
        raise said["in_chans"].mismatch(f"{guard.shape[1]}, as its shape says")
    agreement, exact = said.get("agreement"), said.get("in_float32")
    return Description(
        levels,
        said["output"].text(OUTPUTS),
        in_chans,
        said["size_divisor"].number(1, LARGEST),
        None if fixed is None else (fixed.numbers(1, LARGEST, 2)[0], fixed.array()[1]),
        None if config is None else DataConfig.from_json(config),
        guard,
        DTYPES[said["dtype"].text(DTYPES)],
        said["computes"].text(("float32", "bfloat16", "int8")),
        None if agreement is None else {name: agreement[name].real() for name in agreement.object()},
        _number(said, "smallest"),
        () if exact is None else tuple(path.text() for path in exact.each()),
    )


def _number(said: Value, key: str) -> int | None:
    stated = said.get(key)
    return None if stated is None else stated.number(1, LARGEST)


def _levels(said: Value) -> Levels:
    every = []
    for level in said["levels"].each():
        if len(level.array()) != 3:
            raise level.mismatch("chs, reduction and name")
        chs, reduction, name = level.each()
        every.append(FeatureInfo(chs.number(1, LARGEST), reduction.number(1, LARGEST), name.text()))
    if len({level.name for level in every}) < len(every):
        raise said["levels"].mismatch("levels of different names")
    chosen = said["out_indices"].numbers(0, len(every) - 1)
    if not chosen or len(set(chosen)) < len(chosen):
        raise said["out_indices"].mismatch("the index of a level, or several")
    return Levels(every, chosen)


def _guard(said: Value) -> ShapeGuard:
    shape, free = said["shape"].numbers(1, LARGEST, 4), said["free"].numbers(0, 3)
    return ShapeGuard(tuple(shape), frozenset(free))


def _distinct(names: list[str]) -> list[str]:
    """The names, those that are there already with a number after them."""
    made: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in range(2, len(names) + 2))
        made.append(name if name not in made else next(other for other in numbered if other not in names + made))
    return made


def beside(path: Path) -> Path:
    """The file next to another that has its weights, where they are large."""
    return path.with_name(f"{path.name}.data")
