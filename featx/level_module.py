"""The module that returns the map of a level, and the conversion of its output to the map."""

import copy
import re
from ast import literal_eval
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .backbone import Backbone, Pyramid
from .errors import ArgumentError, ContractError
from .features import FeatureInfo
from .tracing.map_layout import AXES, MapLayout, Tap, described
from .tracing.survey import survey_model
from .wrappers.extractor import pyramid_of
from .wrappers.hooked import layout_or_problem


@dataclass(frozen=True, slots=True)
class LevelModule:
    """The module that returns the map of a level.

    Attributes:
        path: path of the module.
        key: key of the map in the module's output; None if the output is the map.
        level: the level in the model's extractor; None for a module that is not a level.
        pyramid: the extractor's source of maps; None for a module that is not a level.
    """

    path: str
    key: int | str | None
    level: FeatureInfo | None
    pyramid: Pyramid | None

    def value(self, output: Any) -> Tensor:
        """The tensor in the module's output. ContractError if there is none."""
        return Tap(self.path, self._key(output)).value(output)

    def replaced(self, output: Any, value: Tensor) -> Any:
        """The module's output with another tensor in place of the map."""
        key = self._key(output)
        if key is None:
            return value
        if type(output) in (list, tuple):
            return type(output)(value if i == key % len(output) else entry for i, entry in enumerate(output))
        if not isinstance(output, dict):
            raise ContractError(f"{self.path} returns {described(output)}: expected a tensor, tuple, list or dict")
        entries: Any = copy.copy(output)
        entries[key] = value
        return entries

    def layout(self, model: nn.Module, value: Tensor, images: Tensor) -> MapLayout:
        """The layout of the map in the tensor. ContractError if the tensor is not a map of the level."""
        layouts = [] if self.level is None else self._layouts(value, images)
        if len(layouts) == 1:
            return layouts[0]
        layout = None
        if self.level is None or layouts:  # ambiguous by channels: compare two image sizes
            traces = survey_model(model, images).layout_traces
            layout = layout_or_problem(Tap(self.path, self.key), self.path, traces)
        if not isinstance(layout, MapLayout):
            raise ContractError(
                f"{self.path} returns {tuple(value.shape)}, not a map (N, chs, h, w), (N, h, w, chs) or tokens "
                "(N, tokens, chs)"
            )
        return layout

    def _layouts(self, value: Tensor, images: Tensor) -> list[MapLayout]:
        """The layouts that fit the level's channels and reduction."""
        assert self.level is not None
        chs, reduction = self.level.chs, self.level.reduction
        if value.ndim == 3:
            prefix = value.shape[1] - self._cells(images.shape[2]) * self._cells(images.shape[3])
            return [MapLayout("NLC", chs, reduction, prefix)] if prefix >= 0 and value.shape[2] == chs else []
        layouts = ("NCHW", "NHWC") if value.ndim == 4 else ()
        possible = [MapLayout(layout, chs, reduction) for layout in layouts if value.shape[AXES[layout][0]] == chs]
        cells = (self._cells(images.shape[2]), self._cells(images.shape[3]))
        return [m for m in possible if tuple(value.shape[axis] for axis in AXES[m.layout][1]) == cells] or possible

    def _cells(self, side: int) -> int:
        assert self.level is not None
        source: Any = self.pyramid
        if side % self.level.reduction == 0 or not isinstance(source, Backbone):
            return side // self.level.reduction
        return source.size_rule(side, self.level.reduction)

    def _key(self, output: Any) -> int | str | None:
        """The key; for a level named without one, the first entry of a tuple, which blocks of transformers return."""
        is_implicit = self.key is None and self.level is not None and isinstance(output, tuple | list)
        return 0 if is_implicit else self.key


def level_module(model: nn.Module, name: str) -> LevelModule:
    """The module that returns the level of that name, or the module at that path.

    Raises ArgumentError if there is neither, or if no single module returns the level.
    """
    pyramid = _pyramid(model)
    rows = [] if pyramid is None else list(pyramid.feature_info)
    level = next((row for row in rows if row.name == name), None)
    path, key = _parts(name)
    paths = [path for path, module in model.named_modules() if path and not isinstance(module, nn.ModuleList)]
    if path in paths:
        return LevelModule(path, key, level, pyramid)
    if level is None:
        listed = [row.name for row in rows if _parts(row.name)[0] in paths]
        raise ArgumentError(f"level={name!r}: the model has no such module; its levels are {listed or paths[:8]}")
    raise ArgumentError(
        f"level={name!r}: no module returns this map as it is, and its gradient cannot be taken: pass the path of a "
        f"module, such as one of {paths[:8]} and so on"
    )


def _parts(name: str) -> tuple[str, int | str | None]:
    """The path and the key in a name such as "blocks.0[1]" or "neck['fine']"."""
    keyed = re.fullmatch(r"(.+)\[(\d+|'[^']*')\]", name)
    return (keyed[1], literal_eval(keyed[2])) if keyed else (name, None)


def _pyramid(model: Any) -> Pyramid | None:
    """The source of the model's maps; None for a model without levels."""
    try:
        return pyramid_of(model)
    except ContractError:  # its modules can still be named
        return None
