"""Maps of a model whose modules run one after another: the sequential and the flattened case."""

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
    """Runs the children of `model` in order, opening a container only where a level lies inside it.

    Args:
        levels: in place of the model's own.
        forms: how what the module of each of these levels returns becomes a map; by default it is one.
        images: on the meta device, of a size that `model` takes; by default as it states.

    Raises ContractError, naming the module, if a level is no module or if running its children in order is not what
    `model` itself does. A Backbone that keeps its inherited forward does so by definition; of any other model it is
    proven with tensors that have shapes but no values.
    """

    def __init__(
        self,
        model: nn.Module,
        levels: Levels | None = None,
        forms: Sequence[MapLayout] = (),
        images: Tensor | None = None,
    ) -> None:
        super().__init__(model)
        self.feature_info = as_levels(model.feature_info if levels is None else levels, type(model).__name__)
        self._steps = steps_to(model, self.feature_info)
        self._runs = with_norms(model, self._steps, self.feature_info)
        self._forms = dict(zip(self.feature_info.names(), forms, strict=True)) if forms else {}
        is_certain = isinstance(model, Backbone) and model.runs_in_order(self._steps)
        proven = frozenset[str]() if is_certain else prove_order(model, self._steps, self.feature_info, images)
        self._overwritten = proven

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        check_size(x, self.fixed_size)
        taps, size = [self.feature_info[level].name for level in levels], (x.shape[2], x.shape[3])
        maps = []
        for conv, step in self._runs:
            module = self.get_submodule(step)
            x = module(x) if conv is None else normed(self.get_submodule(conv), module, x)
            if step in taps:
                tap = self._forms[step].map(x, size, step) if self._forms else require_map(x, step)
                maps.append(tap.clone() if step in self._overwritten else tap)
            if step == taps[-1]:
                break
        return maps

    def unused(self, levels: Sequence[int]) -> Iterator[str]:
        last = self._steps.index(self.feature_info[levels[-1]].name)
        yield from _beside(self, self._steps[: last + 1])


def with_norms(
    model: nn.Module, steps: Sequence[str], levels: Sequence[FeatureInfo]
) -> tuple[tuple[str | None, str], ...]:
    """The steps, a batch norm with the convolution before it that nothing else reads, others with None."""
    taken, runs = {level.name for level in levels}, list[tuple[str | None, str]]()
    for step in steps:
        before = runs[-1][1] if runs else step
        reads_conv = before not in taken and last_conv(model.get_submodule(before)) is not None
        if reads_conv and isinstance(model.get_submodule(step), nn.BatchNorm2d):
            runs[-1] = before, step
        else:
            runs.append((None, step))
    return tuple(runs)


def _beside(module: nn.Module, steps: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Paths of the modules that are not on the way to a step."""
    for name, child in module._modules.items():
        path = prefix + name
        if child is not None and any(step.startswith(path + ".") for step in steps):
            yield from _beside(child, steps, path + ".")
        elif path not in steps:
            yield path
