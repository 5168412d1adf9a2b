"""Fuses the parallel branches of blocks that are trained with several and run with one."""

from typing import Any

from torch import nn

from ...models.repvgg import RepVGGBlock


def reparameterise(model: nn.Module) -> None:
    """Fuse the branches of every such block, featx's own and timm's, in place; the model is in eval mode."""
    for module in list(model.modules()):
        if isinstance(module, RepVGGBlock) or (type(module).__module__.startswith("timm.") and _fuses(module)):
            fusing: Any = module
            fusing.reparameterize()
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _fuses(module: nn.Module) -> bool:
    return callable(getattr(module, "reparameterize", None))
