"""Levels: the channels, reductions and names of a backbone's maps, and the selection of levels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, overload

from .errors import ContractError, OutIndicesError, shortened

OutIndices = int | Sequence[int]

# Keys of other libraries' dictionaries, and the fields they stand for.
ALIASES = {"num_chs": "chs", "module": "name"}


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """One level of a backbone.

    Attributes:
        chs: channels of its map, the size of axis 1.
        reduction: input pixels per cell along each side: the total stride, after any dilation.
        name: dotted path of the module whose output is the map.
    """

    chs: int
    reduction: int
    name: str

    def __getitem__(self, key: str) -> Any:
        """The field of that name (`chs`, `reduction`, `name`), or of timm's name for it (`num_chs`, `module`)."""
        field = ALIASES.get(key, key)
        if field not in self.__slots__:
            raise KeyError(f"{key!r}: a level has {[*self.__slots__, *ALIASES]}")
        return getattr(self, field)

    def __contains__(self, key: object) -> bool:
        return key in [*self.__slots__, *ALIASES]

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The field of that name, or `default`, which is not stored. timm's FeatureInfo calls this on dictionaries."""
        return self[key] if key in self else default  # noqa: SIM401


class Levels(Sequence[FeatureInfo]):
    """The levels a model returns, one per map and in the order of the maps.

    `out_indices` are their positions among all levels of the full model. The methods and keys of timm's FeatureInfo
    (`module_name()`, `get_dicts()`, `info`, `num_chs`, `module`) are supported, because other libraries read them. As
    in timm, `info` and an explicit `idx` refer to all levels of the full model.
    """

    def __init__(self, every: Iterable[FeatureInfo], out_indices: Sequence[int] | None = None) -> None:
        self._every = tuple(every)
        self.out_indices = tuple(range(len(self._every)) if out_indices is None else out_indices)

    def channels(self, idx: OutIndices | None = None) -> Any:
        """Channels per map."""
        return self._field_of("chs", idx)

    def reduction(self, idx: OutIndices | None = None) -> Any:
        """Input pixels per cell, per map."""
        return self._field_of("reduction", idx)

    def names(self) -> list[str]:
        """Dotted module path per map."""
        return [level.name for level in self]

    def feature_at(self, stride: int) -> FeatureInfo:
        """The deepest level with a reduction of `stride` pixels. OutIndicesError if the model returns none."""
        levels = [level for level in self if level.reduction == stride]
        if not levels:
            raise OutIndicesError(f"no map has a stride of {stride} pixels:\n{table(self)}")
        return levels[-1]

    def select(self, out_indices: OutIndices | None, out_names: Sequence[str] | None = None) -> "Levels":
        """The selected levels in the requested order.

        Args:
            out_indices: positions, as for `create_model`.
            out_names: names, as for `create_model`.

        Raises:
            OutIndicesError: a level does not exist or is selected twice.
        """
        return Levels(self, resolve(self, out_indices, out_names))

    @property
    def info(self) -> list[dict[str, Any]]:
        return [
            {"num_chs": level.chs, "reduction": level.reduction, "module": level.name, "index": i}
            for i, level in enumerate(self._every)
        ]

    def module_name(self, idx: OutIndices | None = None) -> Any:
        return self._field_of("name", idx)

    def get_dicts(self, keys: Sequence[str] | None = None, idx: OutIndices | None = None) -> Any:
        def dictionary(position: int) -> dict[str, Any]:
            row = self.info[position]
            return row if keys is None else {key: row[key] for key in keys}

        positions = self.out_indices if idx is None else idx
        return dictionary(positions) if isinstance(positions, int) else [dictionary(i) for i in positions]

    def _field_of(self, key: str, idx: OutIndices | None) -> Any:
        positions = self.out_indices if idx is None else idx
        return self._every[positions][key] if isinstance(positions, int) else [self._every[i][key] for i in positions]

    def __len__(self) -> int:
        return len(self.out_indices)

    @overload
    def __getitem__(self, position: int) -> FeatureInfo: ...
    @overload
    def __getitem__(self, position: slice) -> "Levels": ...
    def __getitem__(self, position: int | slice) -> "FeatureInfo | Levels":
        if isinstance(position, slice):
            return Levels(self._every, self.out_indices[position])
        return self._every[self.out_indices[position]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Levels) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        width = max((len(level.name) for level in self), default=0)
        rows = (f"  {i}: {f.name:{width}}  {f.chs:5} channels  1/{f.reduction}" for i, f in enumerate(self))
        return "\n".join(rows)


def resolve(
    levels: Sequence[FeatureInfo], out_indices: OutIndices | None, out_names: Sequence[str] | None = None
) -> tuple[int, ...]:
    """Positions of the selected levels in the requested order.

    Args:
        levels: all levels.
        out_indices: None for all levels, a sequence of positions (negative ones count from the deepest), or an int n
            for the last n levels.
        out_names: names of levels, instead of `out_indices`.

    Raises:
        OutIndicesError: the selection is invalid.
    """
    if out_names is not None:
        if out_indices is not None:
            raise OutIndicesError("out_indices and out_names both choose levels: pass one of them")
        return _by_name(levels, out_names)
    if out_indices is None:
        return tuple(range(len(levels)))
    if isinstance(out_indices, int) and not isinstance(out_indices, bool):
        if not 1 <= out_indices <= len(levels):
            raise _no_choice(f"out_indices={out_indices} asks for the last {out_indices} levels", levels)
        return tuple(range(len(levels) - out_indices, len(levels)))
    return _distinct([_position(i, levels, out_indices) for i in _sequence(out_indices, levels)], levels, out_indices)


def _sequence(out_indices: object, levels: Sequence[FeatureInfo]) -> Sequence[Any]:
    if isinstance(out_indices, str | bytes | bool | Mapping) or not isinstance(out_indices, Iterable):
        raise _no_choice(f"out_indices={out_indices!r} is neither a sequence of ints nor a number of levels", levels)
    return list(out_indices)


def _position(wanted: Any, levels: Sequence[FeatureInfo], out_indices: object) -> int:
    try:
        position = index(wanted)
    except TypeError:
        raise _no_choice(f"out_indices={out_indices!r}: {wanted!r} is not an int", levels) from None
    if isinstance(wanted, bool):
        raise _no_choice(f"out_indices={out_indices!r}: {wanted!r} is not an int", levels)
    if not -len(levels) <= position < len(levels):
        raise _no_choice(f"out_indices={out_indices!r}: there is no level {position}", levels)
    return position % len(levels)


def _by_name(levels: Sequence[FeatureInfo], out_names: object) -> tuple[int, ...]:
    if isinstance(out_names, str) or not isinstance(out_names, Iterable):
        raise _no_choice(f"out_names={out_names!r} is not a sequence of names", levels)
    names = [level.name for level in levels]
    wanted = list(out_names)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise _no_choice(f"out_names={out_names!r}: no level is named {unknown}", levels)
    return _distinct([names.index(name) for name in wanted], levels, out_names)


def _distinct(positions: list[int], levels: Sequence[FeatureInfo], asked: object) -> tuple[int, ...]:
    if not positions:
        raise _no_choice("no level was asked for", levels)
    if len(set(positions)) < len(positions):
        raise _no_choice(f"{asked!r} asks for a level twice", levels)
    return tuple(positions)


def _no_choice(problem: str, levels: Sequence[FeatureInfo]) -> OutIndicesError:
    return OutIndicesError(f"{problem}. Choose distinct levels among:\n{table(levels)}")


def table(levels: Sequence[FeatureInfo]) -> str:
    """The levels as rows for an error message, shortened if there are many."""
    return "\n".join(shortened(repr(Levels(levels)).splitlines()))


def as_levels(rows: object, owner: str) -> Levels:
    """Convert a model's declared `feature_info` to Levels.

    Args:
        rows: FeatureInfo objects, or dictionaries with `chs`, `reduction` and `name`.
        owner: the model's name, for the error message.

    Raises:
        ContractError: rows are invalid; the message lists all problems.
    """
    if isinstance(rows, Levels):
        return rows
    rows = getattr(rows, "info", rows)  # timm's own class keeps its dictionaries there
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise ContractError(f"feature_info of {owner} is {rows!r}; expected a list with one row per level")
    problems = [problem for i, row in enumerate(rows) for problem in _row_problems(i, row)]
    if not problems:
        names = [_field(row, "name") for row in rows]
        problems = [f"{name!r} stands in several rows" for name in sorted({*names}) if names.count(name) > 1]
    if problems:
        raise ContractError(f"feature_info of {owner}:\n" + "\n".join(f"  {line}" for line in shortened(problems)))
    return Levels(FeatureInfo(_field(row, "chs"), _field(row, "reduction"), _field(row, "name")) for row in rows)


def _field(row: Any, key: str) -> Any:
    keys = [key, *(alias for alias, field in ALIASES.items() if field == key)]
    return next((row[k] for k in keys if isinstance(row, FeatureInfo) or k in row), None)


def _row_problems(position: int, row: object) -> list[str]:
    if not isinstance(row, Mapping | FeatureInfo):
        return [f"row {position} is {row!r}, expected a dictionary with chs, reduction and name"]
    expected = {"chs": (int, "a positive int"), "reduction": (int, "a positive int"), "name": (str, "a module path")}
    return [
        f"row {position}: {key}={value!r}, expected {what}"
        for key, (kind, what) in expected.items()
        if not isinstance(value := _field(row, key), kind) or (isinstance(value, int) and value < 1) or value == ""
    ]
