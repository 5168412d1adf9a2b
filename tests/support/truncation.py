"""What of a deep network has to be computed to prove all of it: of blocks alike, one."""

from itertools import pairwise
from typing import Any

from timm.models.eva import Eva
from timm.models.regnet import RegStage
from torch import nn

from featx import create_model
from featx.features import Levels
from featx.meta_init import init_empty_weights
from featx.models.regnet import RegNetConfig
from featx.models.vit_rotary import RotaryViT, RotaryViTConfig
from featx.registry import lookup

# Millions of parameters beyond which a network takes too much memory even if it is shallow, and what makes a narrow one
# of it: numbers alone, since one rule makes the widths of all RegNets.
LARGEST = 80
NARROW: dict[type, dict[str, Any]] = {
    RegNetConfig: {"w0": 64, "wa": 64.0, "wm": 2.2, "depth": 8, "group_size": 16},
    RotaryViTConfig: {"dim": 512, "heads": 4},
}
# What runs its children one after the other, whatever they are called.
SEQUENCES = (nn.Sequential, RegStage)
# What runs its list `blocks` one after the other.
WITH_BLOCKS = (Eva, RotaryViT)
INTERNALS = set(vars(nn.Module()))
# What a layer does to sizes, whatever its channels.
KERNELS = {"kernel_size", "stride", "padding", "dilation"}
# What whole networks say of themselves, and compute nothing with.
WORDS = {"architecture", "config", "data_config", "default_cfg", "feature_info", "pretrained_cfg"}


def alike(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules are of one type, with equal attributes and shapes of tensors, all the way down."""
    if type(a) is not type(b) or facts(a) != facts(b):
        return False
    children = dict(a.named_children()), dict(b.named_children())
    return list(children[0]) == list(children[1]) and all(map(alike, children[0].values(), children[1].values()))


def code_path(model: nn.Module) -> frozenset[tuple[str, ...]]:
    """What a model runs, whatever its widths and its depth: the kinds of its modules."""
    return frozenset(kind(module) for module in model.modules())


def kind(module: nn.Module) -> tuple[str, ...]:
    """Its class, flags and words, its kernel and stride, and whether its groups are channels."""
    kernels = {name: value for name, value in vars(module).items() if name in KERNELS}
    flags = {name: value for name, value in vars(module).items() if isinstance(value, bool | str | None)}
    groups, channels = getattr(module, "groups", None), getattr(module, "in_channels", None)
    said = {**kernels, **flags, "grouped": groups not in (None, 1), "depthwise": groups == channels}
    return (
        type(module).__qualname__,
        *(f"{name}={value}" for name, value in sorted(said.items()) if name not in WORDS | INTERNALS),
    )


class CodePaths:
    """The code paths for which promises were proven; of variants that differ in widths and depth alone, one is."""

    def __init__(self) -> None:
        self.proven: set[object] = set()

    def have(self, promise: str, model: nn.Module) -> bool:
        """Whether the promise was proven before for a variant of this one's code path; if not, it is now."""
        path = (promise, type(model), code_path(model))
        known = path in self.proven
        self.proven.add(path)
        return known


def facts(module: nn.Module) -> dict[str, object]:
    """Its own attributes, and the shapes of its own tensors."""
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    attributes = {name: value for name, value in vars(module).items() if name not in INTERNALS | WORDS}
    return attributes | {name: tensor.shape for name, tensor in tensors}


def strides(module: nn.Module) -> bool:
    steps = [getattr(part, "stride", 1) for part in module.modules()]
    return any(set(step if isinstance(step, tuple) else (step,)) != {1} for step in steps)


def leave_out_repeats(module: nn.Module, path: str = "", in_order: bool = False) -> list[str]:
    """Take every block that is like the one before it out of its sequence, in place; returns where they were.

    A block that differs from the one before it in any number, flag or shape stays, and so does one with a stride; what
    stays keeps its name. In lists of modules nothing is left out: there the position may mean something; `in_order`
    says that it does not.
    """
    left_out = []
    if in_order or isinstance(module, SEQUENCES):
        repeats = [name for (_, a), (name, b) in pairwise(module.named_children()) if alike(a, b) and not strides(b)]
        for name in repeats:
            delattr(module, name)
        left_out = [f"{path}{name}" for name in repeats]
    for name, child in module.named_children():
        left_out += leave_out_repeats(child, f"{path}{name}.", name == "blocks" and isinstance(module, WITH_BLOCKS))
    return left_out


def make_shallow(model: nn.Module) -> list[str]:
    """Leave repeated blocks out of a model of featx, in place, and the levels behind them; returns where they were."""
    left_out = leave_out_repeats(model)
    modules = dict(model.named_modules())
    model.feature_info = Levels([level for level in model.feature_info if level.name in modules])
    return left_out


def narrow(name: str) -> dict[str, Any]:
    """What makes a variant that takes too much memory even if it is shallow a narrow one; nothing for the others."""
    arguments = NARROW.get(type(lookup(name).config), {})
    if not arguments:
        return {}
    with init_empty_weights():
        model = create_model(name)
    leave_out_repeats(model)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return arguments if millions > LARGEST else {}
