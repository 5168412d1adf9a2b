"""The backbone inside a model, and the modules and parameters that its levels depend on."""

from dataclasses import dataclass

from torch import nn

from ..errors import ArgumentError, ContractError, OutIndicesError
from ..features import FeatureInfo, Levels, table
from ..spelling import closest
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import as_pyramid, pyramid_of
from ..wrappers.transparent import without


@dataclass(frozen=True)
class BackbonePart:
    """The backbone in a model.

    Attributes:
        prefix: of its parameter names in the model.
        module: the backbone or extractor.
        levels: all levels of the full backbone, shallow to deep.
    """

    prefix: str
    module: nn.Module
    levels: tuple[FeatureInfo, ...]

    def needed(self, position: int) -> nn.Module:
        """The modules that the level at `position` depends on, with shared parameters and the same names."""
        pyramid = pyramid_of(self.module)
        cut = pyramid.cut([position])
        present = {path for path, _ in cut.named_modules()}  # an extractor may have removed some
        return without(cut, [path for path in cut.unused([position]) if path in present])

    def names(self, position: int) -> frozenset[str]:
        """Names in the model of the parameters that the level at `position` depends on."""
        needed = self.needed(position)
        excess = getattr(needed, "excess", ())
        return frozenset(self.prefix + name for name, _ in needed.named_parameters() if name not in excess)

    def position(self, level: int | str, argument: str) -> int:
        """Position of a level, by name or index. OutIndicesError, naming `argument`, if it is not computed."""
        every = Levels(self.levels)
        names, count = every.names(), len(every)
        positions = {**{i: i % count for i in range(-count, count)}, **{name: i for i, name in enumerate(names)}}
        if isinstance(level, bool) or not isinstance(level, int | str) or level not in positions:
            close = closest(level, names, 1) if isinstance(level, str) else []
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise OutIndicesError(
                f"{argument}={level!r}{hint}: expected the name or the index of a level:\n{table(every)}"
            )
        if (position := positions[level]) > self.deepest:
            raise OutIndicesError(
                f"{argument}={level!r}: level {position} ({names[position]}) is not in this extractor, whose "
                f"deepest is level {self.deepest}"
            )
        return position

    @property
    def deepest(self) -> int:
        """Position of the deepest level that the model computes."""
        positions = getattr(self.module, "_ascending", None)
        return positions[-1] if positions else len(self.levels) - 1


def backbone_in(model: nn.Module) -> BackbonePart:
    """The backbone in a model: the only extractor in it, or the model itself.

    Raises:
        ArgumentError: there are several extractors.
        ContractError: there is no extractor, and the model has no levels.
    """
    extractors = {path: m for path, m in model.named_modules() if isinstance(m, FeatureExtractWrapper)}
    inner = {path: m for path, m in extractors.items() if not any(_inside(other, path) for other in extractors)}
    if len(inner) > 1:
        raise ArgumentError(f"{type(model).__name__} has several feature extractors, {list(inner)}: pass one of them")
    for path, extractor in inner.items():
        rows = (FeatureInfo(row["num_chs"], row["reduction"], row["module"]) for row in extractor.feature_info.info)
        return BackbonePart(f"{path}." if path else "", extractor, tuple(rows))
    if not hasattr(model, "feature_info"):
        raise ContractError(
            f"{type(model).__name__} has no levels and no feature extractor in it: pass a model with feature_info, or "
            "one that was built around create_model(..., features_only=True)"
        )
    return BackbonePart("", model, tuple(as_pyramid(model).feature_info))


def _inside(path: str, outer: str) -> bool:
    return path != outer and (outer == "" or path.startswith(f"{outer}."))
