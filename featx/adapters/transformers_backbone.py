"""The classes that `adapters.transformers.register` registers; importing this file imports transformers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from ..errors import ArgumentError, ContractError
from ..factory import create_model
from ..wrappers import FeatureExtractWrapper
from .source import enlarges, maps_of, resized_to_strides, simple_pyramid


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
