"""Encoders for segmentation_models_pytorch (https://smp.readthedocs.io), with any backbone.

Encoders return the images and a map per stride from 2 to 2 ** depth. For a stride that the backbone lacks, the map is
empty, without channels, as in the package's MiT encoders. DPT, which does not accept an encoder name, is in `smp_dpt`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..factory import create_model
from ..features import Levels
from ..wrappers import FeatureExtractWrapper
from .requirements import enlarges, maps_of, require_package, resized_to_strides, simple_pyramid

INSTALL = "pip install -U 'featx[smp]'"
RESERVED = ("in_chans", "output_stride", "features_only", "out_indices", "out_names", "output")


def register(name: str, *, pyramid_channels: int = 0, **arguments: Any) -> str:
    """Register a backbone with segmentation_models_pytorch. Registering a name again replaces its arguments.

    Weights are loaded by featx (`pretrained=True`): pass `encoder_weights=None` to the package's models.

    Args:
        name: a name for `create_model`.
        pyramid_channels: for a plain transformer, channels of a SimpleFeaturePyramid on its deepest map, with strides
            4, 8, 16 and 32, which most decoders need; 0 for the backbone's own levels.
        arguments: further arguments of `create_model`.

    Returns:
        The `encoder_name`: "featx/<name>".

    Raises:
        ArgumentError: an argument is chosen by the package's models.
        MissingPackageError: segmentation_models_pytorch is not installed.
    """
    encoders = require_package("segmentation_models_pytorch.encoders", INSTALL).encoders
    if reserved := [argument for argument in arguments if argument in RESERVED]:
        raise ArgumentError(f"{reserved}: the models of segmentation_models_pytorch choose these; pass them there")
    plan = Plan(name, pyramid_channels, arguments)
    encoders[f"featx/{name}"] = {"encoder": Encoder, "pretrained_settings": {}, "params": {"plan": plan}}
    return f"featx/{name}"


@dataclass(frozen=True)
class Plan:
    """The arguments that an encoder is built from, as for `register`."""

    name: str
    pyramid_channels: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)

    def source(self, out_indices: Sequence[int] | None, **arguments: Any) -> FeatureExtractWrapper:
        """The extractor of these levels, or of these levels of the simple pyramid."""
        merged = {**self.arguments, **arguments}
        if not self.pyramid_channels:
            return create_model(self.name, features_only=True, out_indices=out_indices, **merged)
        plain = create_model(self.name, features_only=True, out_indices=[-1], **merged)
        return simple_pyramid(plain, self.pyramid_channels, out_indices)

    def positions(self, depth: int) -> list[int | None]:
        """Position of the deepest level of each stride from 2 to 2 ** depth; None for a missing stride.

        ArgumentError if the last stride is missing, where decoders start.
        """
        weights = ("pretrained", "checkpoint_path")
        unloaded = Plan(self.name, self.pyramid_channels, {k: v for k, v in self.arguments.items() if k not in weights})
        with torch.device("meta"):
            levels = unloaded.source(None).feature_info
        deepest = {reduction: position for position, reduction in enumerate(levels.reduction())}
        if 2**depth not in deepest:
            raise ArgumentError(f"{self.name} has no map of stride {2**depth}, where decoders start: {_advice(levels)}")
        return [deepest.get(2**exponent) for exponent in range(1, depth + 1)]


def _advice(levels: Levels) -> str:
    strides = sorted(set(levels.reduction()))
    if len(strides) == 1:
        return f"all its maps have a stride of {strides[0]}; register it with pyramid_channels=256"
    return f"its strides are {strides}; pass an encoder_depth to match"


class Encoder(nn.Module):
    """An encoder: images (N, C, H, W) to a list of the images and a map per stride from 2 to 2 ** depth.

    Maps are (N, chs, H / stride, W / stride). Those of families that enlarge maps to whole patches are resized to these
    sizes, which decoders assume.

    Args:
        plan: the backbone.
        depth: number of strides.
        output_stride: of the last map, at most.

    Raises:
        ArgumentError: the backbone does not support `depth` or `output_stride`.
    """

    _is_torch_scriptable = False
    _is_torch_exportable = True
    _is_torch_compilable = True

    def __init__(self, plan: Plan, depth: int = 5, output_stride: int = 32) -> None:
        super().__init__()
        if not 1 <= depth <= 5:
            raise ArgumentError(f"encoder_depth={depth}: expected 1 to 5")
        self._plan, self._depth, self._output_stride = plan, depth, output_stride
        self._positions = plan.positions(depth)
        self._build(in_channels=3)

    def _build(self, in_channels: int) -> None:
        present = [position for position in self._positions if position is not None]
        dilation = {} if self._output_stride == 32 else {"output_stride": self._output_stride}
        self.body = self._plan.source(present, in_chans=in_channels, **dilation)
        channels = dict(zip(present, self.body.feature_info.channels(), strict=True))
        self._resizes = enlarges(self.body)
        self._out_channels = [in_channels, *(0 if p is None else channels[p] for p in self._positions)]

    @property
    def out_channels(self) -> list[int]:
        """Channels of the images, then of each map."""
        return list(self._out_channels)

    @property
    def output_stride(self) -> int:
        """Stride of the last map in pixels. The sides of images must be multiples of it."""
        return min(self._output_stride, 2**self._depth)

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Rebuild the backbone for images of `in_channels` channels. Loaded weights are adapted."""
        del pretrained
        if in_channels != self._out_channels[0]:
            self._build(in_channels)

    def make_dilated(self, output_stride: int) -> None:
        """Rebuild the backbone with at most that stride. Load weights afterwards."""
        if output_stride != self._output_stride:
            self._output_stride = output_stride
            self._build(self._out_channels[0])

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = maps_of(self.body, x)
        if self._resizes:
            maps = resized_to_strides(maps, self.body.feature_info, x)
        height, width = x.shape[2:]
        features, rest = [x], iter(maps)
        for exponent, position in enumerate(self._positions, start=1):
            empty = (-(-height >> exponent), -(-width >> exponent))
            features.append(x.new_empty(len(x), 0, *empty) if position is None else next(rest))
        return features
