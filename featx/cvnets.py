"""CVNets-compatible API: maps by the names `out_l1` to `out_l5`, and channels by `layer1` to `layer5`.

A layer is named after its stride without dilation: 2 for layer 1, 32 for layer 5. A level after layer 5 with the same
stride, as in MobileViT, is its expansion.
"""

from math import log2

from torch import Tensor, nn

from .errors import ContractError
from .features import Levels, as_levels
from .wrappers import FeatureExtractWrapper
from .wrappers.extractor import maps_in

DEEPEST, EXPANSION = 5, "l5_exp"


def endpoints(
    extractor: FeatureExtractWrapper, x: Tensor, *, use_l5: bool = True, use_l5_exp: bool = False
) -> dict[str, Tensor]:
    """Maps by the names `out_l1` … `out_l5`, `out_l5_exp`.

    Args:
        extractor: an extractor of all levels.
        x: images (N, in_chans, H, W).
        use_l5: include `out_l5`.
        use_l5_exp: include `out_l5_exp`, if the model has it; ignored without `use_l5`.

    Raises:
        ContractError: the model does not have one level per stride.
    """
    names = layers(extractor.feature_info)
    maps = maps_in(extractor(x))
    left_out = {EXPANSION} if use_l5 and not use_l5_exp else set() if use_l5 else {f"l{DEEPEST}", EXPANSION}
    return {f"out_{name}": map_ for name, map_ in zip(names, maps, strict=True) if name not in left_out}


def model_conf_dict(model: nn.Module) -> dict[str, dict[str, int]]:
    """Input and output channels of the first convolution (`conv1`), `layer1` … `layer5` and `exp_before_cls`.

    Args:
        model: a model with `feature_info`.

    Raises:
        ContractError: the model does not have one level per stride.
    """
    levels = as_levels(model.feature_info, type(model).__name__)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    conf, chs = {"conv1": {"in": first.in_channels, "out": first.out_channels}}, first.out_channels
    for name, level in zip(layers(levels), levels, strict=True):
        key = "exp_before_cls" if name == EXPANSION else name.replace("l", "layer")
        conf[key] = {"in": chs, "out": level.chs}
        chs = level.chs
    return conf


def layers(levels: Levels) -> list[str]:
    """`l1` … `l5`, `l5_exp` for all levels of a model, shallow to deep."""
    reductions = levels.reduction()
    first = int(log2(reductions[0]))
    names = [f"l{first + number}" for number in range(len(levels))]
    names = [EXPANSION if name == f"l{DEEPEST + 1}" else name for name in names]
    if list(levels.out_indices) != list(range(len(levels.info))):
        raise ContractError(f"endpoints need all levels of the model, shallow to deep; the extractor returns\n{levels}")
    if reductions[0] not in (1, 2, 4) or len(names) != len({*names}) or names[-1] not in (f"l{DEEPEST}", EXPANSION):
        raise ContractError(f"the levels are not one per stride, down to 1/32 without dilation:\n{levels}")
    return names
