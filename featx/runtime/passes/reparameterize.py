"""Fusion of the parallel branches of blocks such as RepVGG's, which inference replaces by one convolution."""

from typing import Any

from torch import nn

from ...models.repvgg import RepVGGBlock


def reparameterize(model: nn.Module) -> None:
    """Fuse the branches of all such blocks of featx and timm, in place; the model must be in eval mode."""
    for module in list(model.modules()):
        is_timm = type(module).__module__.startswith("timm.")
        if isinstance(module, RepVGGBlock) or (is_timm and callable(getattr(module, "reparameterize", None))):
            block: Any = module
            block.reparameterize()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
