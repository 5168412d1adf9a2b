"""What a file with a graph says of it, so that the graph alone is an extractor again."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..errors import CheckpointError
from ..features import FeatureInfo, Levels
from ..preprocessing import DataConfig
from ..wrappers import FeatureExtractWrapper
from .taken import Axis, Taken, is_condition

KEY = "featx"  # of the description in a file's metadata
VERSION = 1
DTYPES = {f"{dtype}".removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
DTYPES |= {"float64": torch.float64}


@dataclass(frozen=True)
class Description:
    """An extractor without its tensors and its code.

    levels: those returned, in order. output: "list", "dict" or "tokens". taken: images the graph is right for, None if
        it is made anew for others. smallest: the shortest side of images, in pixels.
    dtype: of the maps. computes: "float32", "bfloat16", …, or "int8". layout: "contiguous" or "channels_last".
    agreement: with the original's maps, by level.
    machine: what the graph was compiled for, None if it runs anywhere.
    capture: what wrote the operations down, "recorder" (featx's own) or "torch.export"; None if that is not known.
    fallbacks: the captures that were tried before and failed, each with the reason.
    """

    levels: Levels
    output: str
    in_chans: int | None
    size_divisor: int
    fixed_size: tuple[int, int] | None
    data_config: DataConfig | None
    taken: Taken | None
    dtype: torch.dtype
    computes: str
    layout: str
    agreement: dict[str, float] | None = None
    machine: dict[str, str] | None = None
    capture: str | None = None
    fallbacks: tuple[str, ...] = ()
    smallest: int | None = None

    def tensors(self) -> list[str]:
        """Names of what the graph returns, safe in any format: a map per level, or its prefix tokens and the map.

        They are in ascending order of levels, whatever order was asked for.
        """
        names = [self.levels[position].name for position in ascending(self.levels)]
        safe = _distinct(["".join(c if c.isalnum() and c.isascii() else "_" for c in name) for name in names])
        return [part for name in safe for part in (f"{name}_tokens", name)] if self.output == "tokens" else safe


def describe(
    extractor: FeatureExtractWrapper, taken: Taken | None, dtypes: tuple[torch.dtype, torch.dtype], layout: str
) -> Description:
    """The description of a graph of the extractor's. dtypes: of the maps, and what it computes in."""
    return Description(
        extractor.feature_info,
        extractor._output,
        extractor.in_chans,
        extractor.size_divisor,
        extractor._inner.fixed_size,
        extractor.data_config,
        taken,
        dtypes[0],
        f"{dtypes[1]}".removeprefix("torch."),
        layout,
        smallest=extractor._smallest,
    )


def ascending(levels: Levels) -> list[int]:
    """Positions among the levels returned, from the shallowest level to the deepest."""
    return sorted(range(len(levels)), key=lambda position: levels.out_indices[position])


def to_json(said: Description) -> str:
    every = [[row["num_chs"], row["reduction"], row["module"]] for row in said.levels.info]
    fields = {name: value for name, value in vars(said).items() if name not in ("levels", "dtype", "taken")}
    assert said.taken is not None
    config = None if said.data_config is None else asdict(said.data_config)
    return json.dumps(
        {
            **fields,
            "version": VERSION,
            "levels": every,
            "out_indices": said.levels.out_indices,
            "data_config": config,
            "dtype": f"{said.dtype}".removeprefix("torch."),
            "shape": said.taken.shape,
            "free": {f"{at}": [axis.name, axis.least, axis.most] for at, axis in said.taken.free.items()},
            "conditions": said.taken.conditions,
        }
    )


def from_json(text: str | bytes, file: object) -> Description:
    """The description in a file; CheckpointError if it is none, or one that this version of featx does not know."""
    try:
        return _read(json.loads(text))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} describes no extractor that this version of featx knows ({type(error).__name__}: {error}): write "
            "it again with featx.export"
        ) from error


def _read(read: dict[str, Any]) -> Description:
    if read["version"] != VERSION:
        raise ValueError(f"version {read['version']}, expected {VERSION}")
    levels = Levels((FeatureInfo(int(c), int(r), f"{name}") for c, r, name in read["levels"]), read["out_indices"])
    if not levels.out_indices or not set(levels.out_indices) <= set(range(len(read["levels"]))):
        raise ValueError(f"out_indices {levels.out_indices} of {len(read['levels'])} levels")
    free = {int(at): Axis(f"{name}", int(least), most) for at, (name, least, most) in read["free"].items()}
    shape = tuple(int(length) for length in read["shape"])
    if len(shape) != 4 or not set(free) <= {0, 1, 2, 3}:
        raise ValueError(f"shape {shape}, free {sorted(free)}")
    names = {axis.name for axis in free.values()}
    if not all(is_condition(condition, names) for condition in read["conditions"]):
        raise ValueError("unknown conditions")
    if read["layout"] not in ("contiguous", "channels_last"):
        raise ValueError(f"layout {read['layout']!r}")
    if read["output"] not in ("list", "dict", "tokens"):
        raise ValueError(f"output {read['output']!r}")
    fixed = read["fixed_size"]
    return Description(
        levels,
        read["output"],
        read["in_chans"],
        int(read["size_divisor"]),
        None if fixed is None else (int(fixed[0]), int(fixed[1])),
        None if read["data_config"] is None else DataConfig.from_json(read["data_config"]),
        Taken(shape, free, tuple(read["conditions"])),
        DTYPES[read["dtype"]],
        read["computes"],
        read["layout"],
        read["agreement"],
        read["machine"],
        read.get("capture"),
        tuple(read.get("fallbacks", ())),
        _smallest(read),
    )


def _smallest(read: dict[str, Any]) -> int | None:
    stated = read.get("smallest")  # which files of earlier versions lack
    return None if stated is None else int(stated)


def _distinct(names: list[str]) -> list[str]:
    """The names, those that are there already with a number after them."""
    made: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in range(2, len(names) + 2))
        made.append(name if name not in made else next(other for other in numbered if other not in names + made))
    return made
