"""The classes that `adapters.transformers.register` registers. Importing this file imports transformers.

The levels that the models of transformers need are checked when their configuration is created: each row of NEEDS maps
the `model_type` of a configuration to a function that selects the levels.
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
from .requirements import enlarges, maps_of, resized_to_strides, simple_pyramid

Indices = Sequence[int]


class FeatxConfig(BackboneConfigMixin, PreTrainedConfig):
    """The configuration of a featx backbone. transformers makes a dataclass of it, so fields must be annotated.

    Args:
        backbone: a name for `create_model`.
        arguments: further arguments of `create_model`.
        num_channels: channels of the images.
        pretrained: load published weights, unless a checkpoint of transformers is loaded.
        return_tokens: return sequences (N, 1 + h * w, chs), class token first, which DPT and similar models need.
        pyramid_channels: channels of a SimpleFeaturePyramid whose maps are the stages, which detectors need for ViTs; 0
            for the backbone's own levels.
        out_indices: ascending positions of stages. By default those that the surrounding model needs. Without one, the
            deepest stage of each stride from 4 pixels; for a plain transformer the last stage; with `return_tokens`
            four evenly spaced stages.
        out_features: names of stages, instead of `out_indices`.
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
        self.hidden_size, self.patch_size = levels[-1].chs, levels[-1].reduction  # DPT reads these from a ViT's config
        outputs = {"out_features": kwargs.pop("out_features", None), "out_indices": kwargs.pop("out_indices", None)}
        self.hidden_sizes = levels.channels()  # TVP reads this
        derived = ("stage_names", "stage_channels", "stage_strides", "hidden_size", "patch_size", "hidden_sizes")
        super().__post_init__(**{key: value for key, value in kwargs.items() if key not in derived})
        self.set_output_features_output_indices(**outputs)

    def set_output_features_output_indices(
        self, out_features: list[str] | None, out_indices: Sequence[int] | None
    ) -> None:
        """Select stages by name or position; the default stages if both are None."""
        self.is_chosen = out_features is not None or out_indices is not None
        indices = list(self._usable() if not self.is_chosen else out_indices or ()) or None
        super().set_output_features_output_indices(out_features=out_features, out_indices=indices)

    @property
    def chosen(self) -> list[int]:
        """Positions of the selected stages: `out_indices` as a list."""
        return list(self.out_indices or ())

    def to_dict(self) -> dict[str, Any]:
        """The fields, with default stages resolved."""
        return {name: value for name, value in super().to_dict().items() if name != "is_chosen"}

    def deepest_of(self, strides: Sequence[int]) -> list[int] | None:
        """Position of the deepest stage of each stride; None if a stride is missing."""
        deepest = {stride: position for position, stride in enumerate(self.stage_strides)}
        return [deepest[stride] for stride in strides] if {*strides} <= {*deepest} else None

    def spread(self, count: int) -> list[int]:
        """Positions of `count` stages, evenly spaced up to the last one."""
        return [len(self.stage_names) * (i + 1) // count - 1 for i in range(count)]

    def _usable(self) -> list[int]:
        strides = sorted({*self.stage_strides})
        if self.return_tokens:
            return self.spread(min(4, len(self.stage_names)))
        usable = self.deepest_of([stride for stride in strides if stride >= 4 or len(strides) == 1])
        return usable or [len(self.stage_names) - 1]

    def source(self, stages: Sequence[int] | None, *, pretrained: bool = False) -> FeatureExtractWrapper:
        """The extractor of the stages; None for all."""
        name, arguments = self.backbone, {"in_chans": self.num_channels, **(self.arguments or {})}
        if not self.pyramid_channels:
            output = "tokens" if self.return_tokens else "list"
            return create_model(name, pretrained, features_only=True, out_indices=stages, output=output, **arguments)
        plain = create_model(name, pretrained, features_only=True, out_indices=[-1], **arguments)
        return simple_pyramid(plain, self.pyramid_channels, stages)


class FeatxBackbone(BackboneMixin, PreTrainedModel):
    """Images (N, C, H, W) to a BackboneOutput, whose `feature_maps` are (N, chs, H / reduction, W / reduction) each.

    With `return_tokens` they are sequences (N, 1 + h * w, chs). `hidden_states`, if requested, are equal to
    `feature_maps`, because an extractor computes no others.

    Raises:
        ArgumentError: when called with `output_attentions`.
        ContractError: when called with `return_tokens` and a model without a class token.
    """

    config: FeatxConfig
    config_class = FeatxConfig
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: FeatxConfig) -> None:
        super().__init__(config)
        self._without_values = torch.empty(0).is_meta  # from_pretrained builds on the meta device
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
        """Token sequences of the image cropped to whole patches, which models in transformers assume."""
        height, width = (side - side % self.config.patch_size for side in pixel_values.shape[2:])
        return [_sequence(*pair) for pair in self.body(pixel_values[..., :height, :width])]

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """Initialize in place what a checkpoint lacks, including buffers that are not part of any checkpoint.

        transformers calls it with each module, and with this one last. Nothing is done for a model that was built with
        values.
        """
        del is_custom_code
        if module is not self or not self._without_values:
            return
        tensors = {**dict(self.body.named_parameters()), **dict(self.body.named_buffers())}
        missing = [name for name, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)]
        if not missing:
            return
        stored = not self.body.state_dict().keys().isdisjoint(missing)
        with torch.device("cpu"):
            fresh = self.config.source(self.config.out_indices, pretrained=self.config.pretrained and stored)
        values = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
        for name in missing:
            tensors[name].copy_(values[name])


def _sequence(prefix: Tensor, map_: Tensor) -> Tensor:
    """Class token (N, 1, chs) and map (N, chs, h, w) to a sequence (N, 1 + h * w, chs), without register tokens."""
    if not prefix.shape[1]:
        raise ContractError("return_tokens=True needs a backbone with a class token, and this one has none")
    return torch.cat([prefix[:, :1], map_.flatten(2).transpose(1, 2)], dim=1)


def exact_strides(required: str | tuple[int, ...]) -> Callable[[Any, FeatxConfig], Indices]:
    """Select maps of exactly these strides in pixels, or of those in a field of the configuration."""

    def select(config: Any, backbone: FeatxConfig) -> Indices:
        strides = list(getattr(config, required) if isinstance(required, str) else required)
        indices = backbone.chosen if backbone.is_chosen else backbone.deepest_of(strides)
        if indices is None or [backbone.stage_strides[index] for index in indices] != strides:
            source = f" ({required})" if isinstance(required, str) else ""
            raise _mismatch(config, backbone, f"{len(strides)} maps of strides {strides}{source}", strides)
        return indices

    return select


def up_to_num_levels(config: Any, backbone: FeatxConfig) -> Indices:
    """Select at most `num_feature_levels` maps, by default strides 8, 16 and 32; the model adds coarser ones."""
    if not backbone.is_chosen:
        default = backbone.deepest_of([8, 16, 32]) if config.num_feature_levels >= 3 else None
        return default or [len(backbone.stage_names) - 1]
    if len(backbone.chosen) > config.num_feature_levels:
        wanted = f"at most {config.num_feature_levels} maps (num_feature_levels)"
        raise _mismatch(config, backbone, wanted, [8, 16, 32][-config.num_feature_levels :])
    return backbone.chosen


def last_stage(config: Any, backbone: FeatxConfig) -> Indices:
    """Select the last map, the only one that the model uses."""
    del config
    return backbone.chosen if backbone.is_chosen else [len(backbone.stage_names) - 1]


def segmentation_stages(config: Any, backbone: FeatxConfig) -> Indices:
    """Any number of maps; an auxiliary head needs at least three, and uses the third."""
    if getattr(config, "use_auxiliary_head", False) and len(backbone.chosen) < 3:
        raise _mismatch(config, backbone, "three maps or more, or use_auxiliary_head=False", [4, 8, 16, 32])
    return backbone.chosen


def token_stages(config: Any, backbone: FeatxConfig) -> Indices:
    """Select one sequence of tokens per entry of `neck_hidden_sizes`."""
    count, kind = len(config.neck_hidden_sizes), type(config).__name__
    if not backbone.return_tokens:
        raise ArgumentError(
            f"{kind} takes the tokens of a plain transformer: build FeatxConfig with return_tokens=True"
        )
    indices = backbone.chosen if backbone.is_chosen else backbone.spread(count)
    if len(indices) != count:
        raise OutIndicesError(
            f"{kind} takes {count} levels, as many as neck_hidden_sizes, and FeatxConfig has {len(indices)}: leave "
            f"out_indices out, or pass {backbone.spread(count)}"
        )
    actual = {name: getattr(config, name, None) for name in ("patch_size", "reassemble_hidden_size")}
    required = {"patch_size": backbone.patch_size, "reassemble_hidden_size": backbone.hidden_size}
    wrong = [name for name in required if hasattr(config, "reassemble_hidden_size") and actual[name] != required[name]]
    if wrong:
        raise ArgumentError(
            f"{kind} has {', '.join(f'{name}={actual[name]}' for name in wrong)}, but {backbone.backbone} needs "
            f"{', '.join(f'{name}={required[name]}' for name in wrong)}"
        )
    return indices


NEEDS: dict[str, Callable[[Any, FeatxConfig], Indices]] = {
    **dict.fromkeys(("rt_detr", "rt_detr_v2", "d_fine", "deimv2"), exact_strides("feat_strides")),
    "mask2former": exact_strides("feature_strides"),
    "oneformer": exact_strides("strides"),
    **dict.fromkeys(("deformable_detr", "grounding-dino", "mm-grounding-dino"), up_to_num_levels),
    **dict.fromkeys(("detr", "conditional_detr", "dab-detr", "table-transformer", "tvp"), last_stage),
    "omdet-turbo": exact_strides((8, 16, 32)),
    "vitmatte": exact_strides((16,)),
    **dict.fromkeys(("upernet", "maskformer"), segmentation_stages),
    **dict.fromkeys(("dpt", "depth_anything", "prompt_depth_anything", "zoedepth"), token_stages),
}


def check_backbones() -> None:
    """Make the configurations in NEEDS check and select the levels of a featx backbone on creation.

    Other backbones are not affected. A configuration holds a copy of the FeatxConfig that was passed.
    """
    for model_type in NEEDS.keys() & CONFIG_MAPPING.keys():
        kind = CONFIG_MAPPING[model_type]
        if not getattr(kind.__post_init__, "checks_featx", False):
            kind.__post_init__ = _with_check(kind.__post_init__, NEEDS[model_type])


def _with_check(post_init: Callable[..., None], select: Callable[[Any, FeatxConfig], Indices]) -> Callable[..., None]:
    @wraps(post_init)
    def checked(self: Any, **kwargs: Any) -> None:
        post_init(self, **kwargs)
        backbone = getattr(self, "backbone_config", None)
        if isinstance(backbone, FeatxConfig):
            indices = list(select(self, backbone))
            self.backbone_config = copy.deepcopy(backbone)
            self.backbone_config.out_indices = indices

    vars(checked)["checks_featx"] = True
    return checked


def _mismatch(config: Any, backbone: FeatxConfig, wanted: str, strides: Sequence[int]) -> OutIndicesError:
    fitting = backbone.deepest_of(strides)
    single = len(set(backbone.stage_strides)) == 1
    advice = "pass pyramid_channels=256" if single else f"choose among strides {backbone.stage_strides}"
    if fitting is not None:
        advice = f"pass out_indices={fitting}, or leave them out"
    strides = [backbone.stage_strides[index] for index in backbone.chosen]
    return OutIndicesError(
        f"{type(config).__name__} takes {wanted}; FeatxConfig(backbone={backbone.backbone!r}) with out_indices="
        f"{backbone.chosen} gives strides {strides}: {advice}"
    )
