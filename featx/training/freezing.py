"""Parts of a model that training leaves as they are.

A frozen module ignores `train()`. To that end it has an attribute of that name, a partial of a function of this file:
it is pickled and copied with the module, and no name in the state dict changes. Code that replaces modules, such as
`nn.SyncBatchNorm.convert_sync_batchnorm`, replaces frozen ones too: convert first, then freeze.
"""

from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..arguments import require_module
from .parts import backbone_in


def freeze(model: nn.Module, upto: int | str | None = None) -> None:
    """Train nothing that a level is computed with, in place: no gradients, and always in eval mode.

    model: a backbone, an extractor, or anything around one, such as a Pipeline or a detector.
    upto: a level of the backbone: its name, or its index among all levels of the full backbone, as in `out_indices`
        (negatives count from the deepest). None freezes all of `model`, not only the backbone in it.

    Raises OutIndicesError for a level that is not there.
    """
    require_module(model)
    if upto is None:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        _stay_in_eval(model)
        return
    part = backbone_in(model)
    position = part.position(upto, "upto")
    names = part.names(position)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in names:
            parameter.requires_grad_(False)
    inside = {path for path, _ in part.needed(position).named_modules()}
    for path, module in part.module.named_modules():
        if path in inside and not any(p.requires_grad for p in module.parameters()):
            _stay_in_eval(module)


def freeze_norms(model: nn.Module, *, affine: bool = True) -> None:
    """Let norms that keep running statistics (BatchNorm) use these and not change them, in place.

    affine: their scales and shifts are not trained either. Norms without statistics do not depend on the batch, and
    stay as they are.
    """
    for module in require_module(model).modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            _stay_in_eval(module)
            for parameter in module.parameters() if affine else ():
                parameter.requires_grad_(False)


def unfreeze(model: nn.Module) -> None:
    """Train all parameters again, in place, whoever froze them; modules are as `model.training` says, and follow it."""
    for parameter in require_module(model).parameters():
        parameter.requires_grad_(True)
    for module in model.modules():
        vars(module).pop("train", None)
    model.train(model.training)


def _stay_in_eval(module: nn.Module) -> None:
    for part in module.modules():
        vars(part).pop("train", None)  # what was frozen before would not follow
    module.eval()
    for part in module.modules():
        vars(part)["train"] = partial(_unchanged, part)


def _unchanged(module: nn.Module, mode: bool = True) -> nn.Module:
    """In the place of a frozen module's `train`, which returns the module, too."""
    del mode
    return module
