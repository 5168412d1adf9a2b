"""Models whose modules run one after another: the modules up to some levels, and maps from a pass through them."""

from collections.abc import Collection, Sequence

import torch.fx
from torch import Tensor, nn

from .errors import ContractError
from .features import FeatureInfo

torch.fx.wrap("require_map")  # a symbolic tracer calls it as a whole


def run_steps(
    model: nn.Module, x: Tensor, steps: Sequence[str], levels: Sequence[FeatureInfo], overwritten: Collection[str]
) -> list[Tensor]:
    """The maps of `levels`, which ascend, from the modules at `steps`, run one after another.

    overwritten: names of those whose map a later module overwrites in place, so that it is copied.
    """
    taps, maps = {level.name for level in levels}, list[Tensor]()
    for step in steps:
        x = model.get_submodule(step)(x)
        if step in taps:
            maps.append(require_map(x, step).clone() if step in overwritten else require_map(x, step))
    return maps


def steps_to(model: nn.Module, levels: Sequence[FeatureInfo]) -> tuple[str, ...]:
    """Paths of the modules to run, in order, up to the deepest level; ContractError if a level is not among them.

    A container is opened only where a level lies inside it.
    """
    names = [level.name for level in levels]
    todo, steps = set(names), list[str]()

    def visit(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            path = prefix + name
            if not todo:
                return
            if any(tap.startswith(path + ".") for tap in todo):
                visit(child, path + ".")
            else:
                steps.append(path)
                todo.discard(path)

    visit(model, "")
    if todo:
        raise ContractError(
            f"feature_info of {type(model).__name__} names {[name for name in names if name in todo]}, which no module "
            "it registers is called, or which lies inside another level; its children are "
            f"{[name for name, _ in model.named_children()]}"
        )
    order = [step for step in steps if step in names]
    if order != names:
        raise ContractError(
            f"feature_info of {type(model).__name__} lists {names}, but its modules are registered in the order "
            f"{order}: register modules and levels in the order they run"
        )
    return tuple(steps)


def require_map(value: object, name: str) -> Tensor:
    """The value itself if it is a map; ContractError saying what it is if not."""
    if isinstance(value, Tensor) and value.ndim == 4:
        return value
    what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise ContractError(f"module {name!r} returned {what}, not a map (N, C, H, W): make the model a Pyramid instead")
