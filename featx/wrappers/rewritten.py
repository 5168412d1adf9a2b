"""Maps of a model that returns them from `forward_features`, as in MindCV."""

from collections.abc import Sequence
from typing import Any

import torch.fx
from torch import Tensor, nn

from ..backbone import Pyramid
from ..errors import ContractError
from ..features import as_levels
from ..sequence import require_map
from .transparent import Transparent

torch.fx.wrap("require_map")  # a symbolic tracer wraps names module by module


class Rewritten(Transparent[nn.Module], Pyramid):
    """Wraps a model with `is_rewritten = True`, whose `forward_features` returns a map per row of `feature_info`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.feature_info = as_levels(model.feature_info, type(model).__name__)
        if not callable(getattr(model, "forward_features", None)):
            raise ContractError(f"{type(model).__name__} is_rewritten, but has no forward_features that returns maps")

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        model: Any = self._inner
        maps = model.forward_features(x)
        if not isinstance(maps, list | tuple) or len(maps) != len(self.feature_info):
            what = f"{len(maps)} maps" if isinstance(maps, list | tuple) else f"a {type(maps).__name__}"
            raise ContractError(
                f"{type(self._inner).__name__}.forward_features returned {what}; expected a list with one map for each "
                f"of the {len(self.feature_info)} rows of feature_info"
            )
        return [require_map(maps[level], self.feature_info[level].name) for level in levels]
