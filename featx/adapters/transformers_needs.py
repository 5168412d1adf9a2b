"""Which levels the models of transformers take of a backbone, checked when their configuration is made.

Each row names a kind of model, by the `model_type` of its configuration, and where that states what it takes.
"""

import copy
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..errors import ArgumentError, OutIndicesError
from .transformers_backbone import FeatxConfig

Indices = Sequence[int]


def exactly(stated: str | tuple[int, ...]) -> Callable[[Any, FeatxConfig], Indices]:
    """Maps of exactly these strides, in pixels, or of those that a field of the configuration lists."""

    def choose(config: Any, backbone: FeatxConfig) -> Indices:
        strides = list(getattr(config, stated) if isinstance(stated, str) else stated)
        chosen = backbone.chosen if backbone.is_chosen else backbone.deepest_of(strides)
        if chosen is None or [backbone.stage_strides[index] for index in chosen] != strides:
            source = f" ({stated})" if isinstance(stated, str) else ""
            raise _refusal(config, backbone, f"{len(strides)} maps of strides {strides}{source}", strides)
        return chosen

    return choose


def at_most(config: Any, backbone: FeatxConfig) -> Indices:
    """Up to `num_feature_levels` maps, by default those of strides 8, 16 and 32, from which it makes coarser ones."""
    if not backbone.is_chosen:
        deformed = backbone.deepest_of([8, 16, 32]) if config.num_feature_levels >= 3 else None
        return deformed or [len(backbone.stage_names) - 1]
    if len(backbone.chosen) > config.num_feature_levels:
        wanted = f"at most {config.num_feature_levels} maps (num_feature_levels)"
        raise _refusal(config, backbone, wanted, [8, 16, 32][-config.num_feature_levels :])
    return backbone.chosen


def last(config: Any, backbone: FeatxConfig) -> Indices:
    """The last map alone is used."""
    del config
    return backbone.chosen if backbone.is_chosen else [len(backbone.stage_names) - 1]


def segmented(config: Any, backbone: FeatxConfig) -> Indices:
    """Maps of any number, the third of which an auxiliary head takes."""
    if getattr(config, "use_auxiliary_head", False) and len(backbone.chosen) < 3:
        raise _refusal(config, backbone, "three maps or more, or use_auxiliary_head=False", [4, 8, 16, 32])
    return backbone.chosen


def tokens(config: Any, backbone: FeatxConfig) -> Indices:
    """As many sequences of tokens as `neck_hidden_sizes`."""
    count, kind = len(config.neck_hidden_sizes), type(config).__name__
    if not backbone.return_tokens:
        raise ArgumentError(
            f"{kind} takes the tokens of a plain transformer: build FeatxConfig with return_tokens=True"
        )
    chosen = backbone.chosen if backbone.is_chosen else backbone.spread(count)
    if len(chosen) != count:
        raise OutIndicesError(
            f"{kind} takes {count} levels, as many as neck_hidden_sizes, and FeatxConfig has {len(chosen)}: leave "
            f"out_indices out, or pass {backbone.spread(count)}"
        )
    stated = {name: getattr(config, name, None) for name in ("patch_size", "reassemble_hidden_size")}
    truth = {"patch_size": backbone.patch_size, "reassemble_hidden_size": backbone.hidden_size}
    wrong = [name for name in truth if hasattr(config, "reassemble_hidden_size") and stated[name] != truth[name]]
    if wrong:
        raise ArgumentError(
            f"{kind} has {', '.join(f'{name}={stated[name]}' for name in wrong)}, but {backbone.backbone} needs "
            f"{', '.join(f'{name}={truth[name]}' for name in wrong)}"
        )
    return chosen


NEEDS: dict[str, Callable[[Any, FeatxConfig], Indices]] = {
    **dict.fromkeys(("rt_detr", "rt_detr_v2", "d_fine", "deimv2"), exactly("feat_strides")),
    "mask2former": exactly("feature_strides"),
    "oneformer": exactly("strides"),
    **dict.fromkeys(("deformable_detr", "grounding-dino", "mm-grounding-dino"), at_most),
    **dict.fromkeys(("detr", "conditional_detr", "dab-detr", "table-transformer", "tvp"), last),
    "omdet-turbo": exactly((8, 16, 32)),
    "vitmatte": exactly((16,)),
    **dict.fromkeys(("upernet", "maskformer"), segmented),
    **dict.fromkeys(("dpt", "depth_anything", "prompt_depth_anything", "zoedepth"), tokens),
}


def check_backbones() -> None:
    """Let the configurations in NEEDS check, when they are made, the levels of a backbone of featx, and choose them.

    Other backbones are left alone. A configuration holds a copy of the FeatxConfig it was given.
    """
    for model_type in NEEDS.keys() & CONFIG_MAPPING.keys():
        kind = CONFIG_MAPPING[model_type]
        if not getattr(kind.__post_init__, "checks_featx", False):
            kind.__post_init__ = _checked(kind.__post_init__, NEEDS[model_type])


def _checked(made: Callable[..., None], need: Callable[[Any, FeatxConfig], Indices]) -> Callable[..., None]:
    @wraps(made)
    def checked(self: Any, **kwargs: Any) -> None:
        made(self, **kwargs)
        backbone = getattr(self, "backbone_config", None)
        if isinstance(backbone, FeatxConfig):
            chosen = list(need(self, backbone))
            self.backbone_config = copy.deepcopy(backbone)
            self.backbone_config.out_indices = chosen

    vars(checked)["checks_featx"] = True
    return checked


def _refusal(config: Any, backbone: FeatxConfig, wanted: str, strides: Sequence[int]) -> OutIndicesError:
    fitting = backbone.deepest_of(strides)
    single = len(set(backbone.stage_strides)) == 1
    advice = "pass pyramid_channels=256" if single else f"choose among strides {backbone.stage_strides}"
    if fitting is not None:
        advice = f"pass out_indices={fitting}, or leave them out"
    given = [backbone.stage_strides[index] for index in backbone.chosen]
    return OutIndicesError(
        f"{type(config).__name__} takes {wanted}; FeatxConfig(backbone={backbone.backbone!r}) with out_indices="
        f"{backbone.chosen} gives strides {given}: {advice}"
    )
