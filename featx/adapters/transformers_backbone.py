"""The classes that `adapters.transformers.register` registers; importing this file imports transformers.

Which levels the models of transformers take of a backbone is checked when their configuration is made: each row names a
kind of model, by the `model_type` of its configuration, and where that states what it takes.
"""

import copy
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..errors import ArgumentError, ContractError, OutIndicesError
from ..factory import create_model
from ..wrappers import FeatureExtractWrapper
from .source import enlarges, maps_of, resized_to_strides, simple_pyramid

Indices = Sequence[int]


class FeatxConfig(BackboneConfigMixin, PreTrainedConfig):
    """A backbone of featx. Its fields must be annotated, because the package makes a dataclass of it.

    backbone: its name for `create_model`. arguments: further arguments of that. num_channels: of the images.
    pretrained: take the published weights where no checkpoint of transformers has others.
    return_tokens: give sequences (N, 1 + h * w, chs), class token first, which DPT and its like want of ViTs.
    pyramid_channels: the stages are a SimpleFeaturePyramid of so many channels, which detectors want of ViTs; 0 for
        the backbone's own levels.
    out_indices, out_features: positions or names among the stages, ascending; by default those that the model takes
        whose configuration this one becomes part of, and on its own the deepest stage of each stride from 4 pixels on,
        or, of a plain transformer, the last one, and with `return_tokens` four, evenly spaced.
    """

    model_type = "featx"

    backbone: str = "resnet50"
    arguments: dict | None = None
    num_channels: int = 3
    pretrained: bool = False
    return_tokens: bool = False
    pyramid_channels: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.return_tokens and self.pyramid_channels:
            raise ArgumentError("return_tokens and pyramid_channels exclude each other: a pyramid has no tokens")
        with torch.device("meta"):
            levels = self.source(None).feature_info
        self.stage_names, self.stage_channels = levels.names(), levels.channels()
        self.stage_strides = levels.reduction()
        self.hidden_size, self.patch_size = levels[-1].chs, levels[-1].reduction  # which DPT reads of a ViT's
        chosen = {"out_features": kwargs.pop("out_features", None), "out_indices": kwargs.pop("out_indices", None)}
        self.hidden_sizes = levels.channels()  # which TVP reads
        derived = ("stage_names", "stage_channels", "stage_strides", "hidden_size", "patch_size", "hidden_sizes")
        super().__post_init__(**{key: value for key, value in kwargs.items() if key not in derived})
        self.set_output_features_output_indices(**chosen)

    def set_output_features_output_indices(
        self, out_features: list[str] | None, out_indices: Sequence[int] | None
    ) -> None:
        """Choose the stages of these names or positions, where both are None those of the default."""
        self.is_chosen = out_features is not None or out_indices is not None
        chosen = list(self._usable() if not self.is_chosen else out_indices or ()) or None
        super().set_output_features_output_indices(out_features=out_features, out_indices=chosen)

    @property
    def chosen(self) -> list[int]:
        """The positions of the stages, `out_indices` as a list."""
        return list(self.out_indices or ())

    def to_dict(self) -> dict[str, Any]:
        """The fields, with the stages that the default has come to."""
        return {name: value for name, value in super().to_dict().items() if name != "is_chosen"}

    def deepest_of(self, strides: Sequence[int]) -> list[int] | None:
        """Positions of the deepest stage of each of these strides; None if there is none of one of them."""
        deepest = {stride: position for position, stride in enumerate(self.stage_strides)}
        return [deepest[stride] for stride in strides] if {*strides} <= {*deepest} else None

    def spread(self, count: int) -> list[int]:
        """Positions of so many stages, evenly spaced up to the last."""
        return [len(self.stage_names) * (part + 1) // count - 1 for part in range(count)]

    def _usable(self) -> list[int]:
        strides = sorted({*self.stage_strides})
        if self.return_tokens:
            return self.spread(min(4, len(self.stage_names)))
        usable = self.deepest_of([stride for stride in strides if stride >= 4 or len(strides) == 1])
        return usable or [len(self.stage_names) - 1]

    def source(self, stages: Sequence[int] | None, *, pretrained: bool = False) -> FeatureExtractWrapper:
        """The extractor of those stages, None for all."""
        name, given = self.backbone, {"in_chans": self.num_channels, **(self.arguments or {})}
        if not self.pyramid_channels:
            output = "tokens" if self.return_tokens else "list"
            return create_model(name, pretrained, features_only=True, out_indices=stages, output=output, **given)
        plain = create_model(name, pretrained, features_only=True, out_indices=[-1], **given)
        return simple_pyramid(plain, self.pyramid_channels, stages)


class FeatxBackbone(BackboneMixin, PreTrainedModel):
    """Images (N, C, H, W) to a BackboneOutput, whose `feature_maps` are (N, chs, H / reduction, W / reduction) each.

    With `return_tokens` they are (N, 1 + h * w, chs); ContractError if there is no class token. `hidden_states`, where
    they are asked for, are the same: an extractor holds no others. ArgumentError for attentions.
    """

    config: FeatxConfig
    config_class = FeatxConfig
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: FeatxConfig) -> None:
        super().__init__(config)
        self._without_values = torch.empty(0).is_meta  # as from_pretrained builds it
        self.body = config.source(config.out_indices, pretrained=config.pretrained and not self._without_values)
        self.num_features = list(config.stage_channels)
        self._resizes = not config.return_tokens and enlarges(self.body)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple[Any, ...]:
        if output_attentions:
            raise ArgumentError("a featx backbone gives maps and no attentions: leave output_attentions out")
        stages: Any = tuple(self._tokens(pixel_values) if self.config.return_tokens else self._maps(pixel_values))
        output = BackboneOutput(feature_maps=stages, hidden_states=stages if output_hidden_states else None)
        return output if return_dict is not False else output.to_tuple()

    def _maps(self, pixel_values: Tensor) -> list[Tensor]:
        maps = maps_of(self.body, pixel_values)
        return resized_to_strides(maps, self.body.feature_info, pixel_values) if self._resizes else maps

    def _tokens(self, pixel_values: Tensor) -> list[Tensor]:
        """Those of whole patches, which is how many models there count."""
        height, width = (side - side % self.config.patch_size for side in pixel_values.shape[2:])
        return [_sequence(*pair) for pair in self.body(pixel_values[..., :height, :width])]

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """Give values to what a checkpoint did not have, among it buffers that no checkpoint has, in place.

        It is called with each module, and with this one last. featx has initialised what was built with values.
        """
        del is_custom_code
        if module is not self or not self._without_values:
            return
        mine = {**dict(self.body.named_parameters()), **dict(self.body.named_buffers())}
        missing = [name for name, tensor in mine.items() if not getattr(tensor, "_is_hf_initialized", False)]
        if not missing:
            return
        stored = not self.body.state_dict().keys().isdisjoint(missing)
        with torch.device("cpu"):
            fresh = self.config.source(self.config.out_indices, pretrained=self.config.pretrained and stored)
        theirs = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
        for name in missing:
            mine[name].copy_(theirs[name])


def _sequence(prefix: Tensor, map_: Tensor) -> Tensor:
    """The class token (N, 1, chs) and a map (N, chs, h, w) as tokens (N, 1 + h * w, chs); registers are left out."""
    if not prefix.shape[1]:
        raise ContractError("return_tokens=True needs a backbone with a class token, and this one has none")
    return torch.cat([prefix[:, :1], map_.flatten(2).transpose(1, 2)], dim=1)


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
