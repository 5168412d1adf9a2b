"""Freeze parts of a model for training.

A frozen module ignores `train()`: an instance attribute of that name, a partial of a function of this file, overrides
the method. It is pickled and copied with the module, and state dict keys do not change. Code that replaces modules,
such as `nn.SyncBatchNorm.convert_sync_batchnorm`, also replaces frozen ones: convert first, then freeze.
"""

from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..arguments import require_module
from .backbone_part import backbone_in


def freeze(model: nn.Module, upto: int | str | None = None) -> None:
    """Freeze in place everything that a level is computed from: no gradients, and always in evaluation mode.

    Args:
        model: a backbone, an extractor, or a model that contains one, such as a Pipeline or a detector.
        upto: a level of the backbone: its name, or its index among all levels of the full backbone, as in `out_indices`
            (negative indices count from the deepest level). None freezes all of `model`, not only its backbone.

    Raises:
        ArgumentError: `model` contains several extractors.
        ContractError: `model` has neither levels nor an extractor.
        OutIndicesError: the level does not exist.
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
    """Keep norms with running statistics (BatchNorm) in evaluation mode, in place, so that statistics do not change.

    Norms without running statistics do not depend on the batch and are left unchanged.

    Args:
        model: the model.
        affine: also freeze their scales and shifts.
    """
    for module in require_module(model).modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            _stay_in_eval(module)
            for parameter in module.parameters() if affine else ():
                parameter.requires_grad_(False)


def unfreeze(model: nn.Module) -> None:
    """Undo freezing in place: all parameters require gradients, and all modules follow `model.training` again."""
    for parameter in require_module(model).parameters():
        parameter.requires_grad_(True)
    for module in model.modules():
        vars(module).pop("train", None)
    model.train(model.training)


def _stay_in_eval(module: nn.Module) -> None:
    for submodule in module.modules():
        vars(submodule).pop("train", None)  # modules that are frozen already would ignore eval()
    module.eval()
    for submodule in module.modules():
        vars(submodule)["train"] = partial(_ignore_train, submodule)


def _ignore_train(module: nn.Module, mode: bool = True) -> nn.Module:
    """Replacement for `train` of a frozen module. It returns the module, as `train` does."""
    del mode
    return module
