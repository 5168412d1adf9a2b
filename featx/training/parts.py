"""Which parts of a model its levels need."""

from dataclasses import dataclass

from torch import nn

from ..errors import ArgumentError, ContractError, OutIndicesError
from ..features import FeatureInfo, Levels, table
from ..spelling import closest
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import as_pyramid, pyramid_of
from ..wrappers.transparent import without


@dataclass(frozen=True)
class Part:
    """The backbone in a model. prefix: of its names there. levels: all of the full backbone, shallow to deep."""

    prefix: str
    module: nn.Module
    levels: tuple[FeatureInfo, ...]

    def needed(self, position: int) -> nn.Module:
        """What the level at that position is computed with: shares modules and names with the backbone."""
        pyramid = pyramid_of(self.module)
        cut = pyramid.cut([position])
        there = {path for path, _ in cut.named_modules()}  # an extractor has left some out before
        return without(cut, [path for path in cut.unused([position]) if path in there])

    def names(self, position: int) -> frozenset[str]:
        """Names, in the whole model, of the parameters that the level at that position depends on."""
        needed = self.needed(position)
        excess = getattr(needed, "excess", ())
        return frozenset(self.prefix + name for name, _ in needed.named_parameters() if name not in excess)

    def position(self, level: int | str, argument: str) -> int:
        """Of a level that the model computes; OutIndicesError, which names the argument, if it does not."""
        every = Levels(self.levels)
        names, count = every.names(), len(every)
        found = {**{i: i % count for i in range(-count, count)}, **{name: i for i, name in enumerate(names)}}
        if isinstance(level, bool) or not isinstance(level, int | str) or level not in found:
            close = closest(level, names, 1) if isinstance(level, str) else []
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise OutIndicesError(
                f"{argument}={level!r}{hint}: expected the name or the index of a level:\n{table(every)}"
            )
        if found[level] > self.deepest:
            raise OutIndicesError(
                f"{argument}={level!r}: level {found[level]} ({names[found[level]]}) is not in this extractor, whose "
                f"deepest is level {self.deepest}"
            )
        return found[level]

    @property
    def deepest(self) -> int:
        """Position of the deepest level that the model computes."""
        chosen = getattr(self.module, "_ascending", None)
        return chosen[-1] if chosen else len(self.levels) - 1


def backbone_in(model: nn.Module) -> Part:
    """The backbone in a model: the model itself, or the only extractor in it.

    ArgumentError if there are several extractors; ContractError if there is none and the model has no levels.
    """
    found = {path: m for path, m in model.named_modules() if isinstance(m, FeatureExtractWrapper)}
    inner = {path: m for path, m in found.items() if not any(_inside(other, path) for other in found)}
    if len(inner) > 1:
        raise ArgumentError(f"{type(model).__name__} has several feature extractors, {list(inner)}: pass one of them")
    for path, extractor in inner.items():
        rows = (FeatureInfo(row["num_chs"], row["reduction"], row["module"]) for row in extractor.feature_info.info)
        return Part(f"{path}." if path else "", extractor, tuple(rows))
    if not hasattr(model, "feature_info"):
        raise ContractError(
            f"{type(model).__name__} has no levels and no feature extractor in it: pass a model with feature_info, or "
            "one that was built around create_model(..., features_only=True)"
        )
    return Part("", model, tuple(as_pyramid(model).feature_info))


def _inside(path: str, outer: str) -> bool:
    return path != outer and (outer == "" or path.startswith(f"{outer}."))
