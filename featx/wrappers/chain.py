"""Maps of a model whose modules run one after another."""

from collections.abc import Iterator, Sequence

import torch.fx
from torch import Tensor, nn

from ..backbone import Backbone, Pyramid
from ..features import FeatureInfo, Levels, as_levels
from ..image_checks import check_size
from ..models.layers.normed import last_conv, normed
from ..sequence import require_map, steps_to
from ..tracing.execution_order import prove_order
from ..tracing.map_layout import MapLayout
from .transparent import Transparent

torch.fx.wrap("require_map")  # a symbolic tracer wraps names module by module


class Chain(Transparent[nn.Module], Pyramid):
    """Runs the children of `model` in order, and opens a container only if a level lies inside it.

    The order is proven on the meta device, except for a Backbone that inherits its forward.

    Args:
        model: the model.
        levels: levels to use instead of the model's `feature_info`.
        layouts: the layout of each level's output; by default outputs are maps.
        images: images on the meta device for the proof; by default of the size that the model declares.

    Raises:
        ContractError: a level is not a module, or `model` does not run its children in order. The message names the
            module.
    """

    def __init__(
        self,
        model: nn.Module,
        levels: Levels | None = None,
        layouts: Sequence[MapLayout] = (),
        images: Tensor | None = None,
    ) -> None:
        super().__init__(model)
        self.feature_info = as_levels(model.feature_info if levels is None else levels, type(model).__name__)
        self._steps = steps_to(model, self.feature_info)
        self._runs = _with_norms(model, self._steps, self.feature_info)
        self._layouts = dict(zip(self.feature_info.names(), layouts, strict=True)) if layouts else {}
        is_proven = isinstance(model, Backbone) and model.runs_in_order(self._steps)
        self._overwritten = frozenset() if is_proven else prove_order(model, self._steps, self.feature_info, images)

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        check_size(x, self.fixed_size)
        taps, size = [self.feature_info[level].name for level in levels], (x.shape[2], x.shape[3])
        maps = []
        for conv, step in self._runs:
            module = self.get_submodule(step)
            x = module(x) if conv is None else normed(self.get_submodule(conv), module, x)
            if step in taps:
                map_ = self._layouts[step].map(x, size, step) if self._layouts else require_map(x, step)
                maps.append(map_.clone() if step in self._overwritten else map_)
            if step == taps[-1]:
                break
        return maps

    def unused(self, levels: Sequence[int]) -> Iterator[str]:
        last = self._steps.index(self.feature_info[levels[-1]].name)
        yield from _paths_except(self, self._steps[: last + 1])


def _with_norms(
    model: nn.Module, steps: Sequence[str], levels: Sequence[FeatureInfo]
) -> tuple[tuple[str | None, str], ...]:
    """Pairs of a batch norm and the convolution before it, if that is not a level, and of None and any other step."""
    taps, runs = {level.name for level in levels}, list[tuple[str | None, str]]()
    for step in steps:
        previous = runs[-1][1] if runs else step
        follows_conv = previous not in taps and last_conv(model.get_submodule(previous)) is not None
        if follows_conv and isinstance(model.get_submodule(step), nn.BatchNorm2d):
            runs[-1] = previous, step
        else:
            runs.append((None, step))
    return tuple(runs)


def _paths_except(module: nn.Module, steps: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Paths of the outermost modules that neither are a step nor contain one."""
    for name, child in module._modules.items():
        path = prefix + name
        if child is not None and any(step.startswith(path + ".") for step in steps):
            yield from _paths_except(child, steps, path + ".")
        elif path not in steps:
            yield path
