"""The base classes of image models: Backbone, whose children run in order, and Pyramid, which computes maps itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn

import torch
import torch.fx
from torch import Tensor, nn

from .errors import ArgumentError
from .features import FeatureInfo, Levels, OutIndices
from .image_checks import check_images, dtypes_of
from .load_report import LoadReport
from .meta_init import init_empty_weights
from .preprocessing import DataConfig
from .pretrained_cfg import pretrained_cfg
from .sequence import run_steps, steps_to
from .tracing.execution_order import prove_order

torch.fx.wrap("check_images")  # symbolic tracers record the call, because it needs real images

FORMATS = ("NCHW", "NLC")

TokensAndMap = tuple[Tensor, Tensor]  # prefix tokens (N, tokens, chs) and map (N, chs, h, w)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """The fields that all families' configurations have.

    Attributes:
        in_chans: channels of the images.
        num_classes: number of classes; 0 for pooled features.
        global_pool: pool of the last map: "avg", "max", "avgmax" (their mean), "catavgmax" (concatenated, twice
            the channels), or "" for none, with logits per cell.
        drop_rate: dropout before the classifier.
    """

    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = "avg"
    drop_rate: float = 0.0

    def stated_by(self, names: Collection[str]) -> dict[str, Any]:
        """Fields that follow from a checkpoint's tensor names, unless `create_model` is called with them."""
        del names
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class StridedConfig(BackboneConfig):
    """The configuration of families whose strides can be replaced by dilation.

    Attributes:
        output_stride: the deepest reduction: 8, 16 or 32.
        drop_path_rate: stochastic depth rate of the last block.
    """

    output_stride: int = 32
    drop_path_rate: float = 0.0


class Backbone(nn.Module):
    """An image model whose children, run in the order of registration, turn images into logits.

    A family sets `feature_info`, `in_chans` and the other attributes. `forward_features` ends with the child that holds
    the deepest level, unless `last_feature` names a later one; the children after it are the head.

    Attributes:
        size_divisor: pixels that the sides of images must be multiples of; 1 for any size.
        last_linear: path of the layer that depends on the number of classes.
        last_feature: path of the module whose output `forward_features` returns; "" for the deepest level.
        pool_layers: paths of the layers without parameters that depend on the kind of global pool.
        first_convs: paths of the convolutions whose input is the images, if there are several.
        gives_tokens: whether `forward_features` returns tokens (N, L, num_features) instead of a map.
        dense_level: position of the level for dense prediction: the deepest, unless that is an expansion for the
            classifier.
        num_features: channels of the output of `forward_features`.
        head_hidden_size: input channels of the last linear layer.
        config: the configuration that it was built from.
        architecture: the name that `create_model` built it from.
        tag: the tag of its published weights.
        label_names: names of the classes, if the weights' `config.json` has them.
        load_report: what loading its weights did.
    """

    size_divisor: ClassVar[int] = 1
    last_linear: ClassVar[str]
    pool_layers: ClassVar[tuple[str, ...]] = ()
    gives_tokens: ClassVar[bool] = False
    first_convs: ClassVar[tuple[str, ...]] = ()
    dense_level: ClassVar[int] = -1

    feature_info: Levels
    last_feature: str = ""
    data_config: DataConfig
    architecture: str
    tag: str = ""
    config: BackboneConfig
    label_names: tuple[str, ...] = ()
    load_report: LoadReport | None = None
    in_chans: int
    num_features: int
    head_hidden_size: int

    @staticmethod
    def size_rule(side: int, reduction: int) -> int:
        """Cells of a map along a side of `side` pixels, rounded up. Families with another rule override it."""
        return -(-side // reduction)

    @staticmethod
    def initialize(module: nn.Module, /) -> None:
        """Initialize a part of the model in place as the family does. By default PyTorch's initialization is kept."""

    @property
    def num_classes(self) -> int:
        """Number of logits per image; 0 for a model that returns pooled features."""
        return getattr(dict(self.named_modules()).get(self.last_linear), "out_features", 0)

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """The weights' preprocessing and other metadata with timm's keys, as a read-only mapping."""
        return pretrained_cfg(self)

    @property
    def default_cfg(self) -> Mapping[str, Any]:
        """`pretrained_cfg` under timm's older name."""
        return self.pretrained_cfg

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, the input of the head: (N, in_chans, H, W) to (N, num_features, H / r, W / r)."""
        last = self._last_feature.partition(".")[0]
        for name, child in self.named_children():
            x = child(x)
            if name == last:
                break
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (N, num_classes) from the output of `forward_features`; pooled features without classes.

        Args:
            x: the output of `forward_features`.
            pre_logits: return the input (N, head_hidden_size) of the last linear layer instead.
        """
        names = [name for name, _ in self.named_children()]
        behind = names.index(self._last_feature.partition(".")[0]) + 1
        classifier, _, inside = self.last_linear.partition(".")
        for name, child in list(self.named_children())[behind:]:
            if pre_logits and name == classifier:
                return child(x, pre_logits=True) if inside else x
            x = child(x)
        return x

    def __prepare_scriptable__(self) -> NoReturn:
        """Called first by torch.jit.script."""
        refuse_scripting()

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) to logits (N, num_classes), or to pooled features without classes."""
        deepest = self.feature_info[-1].reduction
        smallest = 1 if self.size_rule(1, deepest) else deepest
        check_images(x, self.in_chans, smallest, dtypes_of(self))
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: OutIndices | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The output of `forward_features`, and the maps of some levels, with timm's interface.

        An extractor (`features_only=True`) returns the same maps without computing other modules.

        Args:
            x: images (N, in_chans, H, W).
            indices: levels in the order of the maps, as `out_indices` of `create_model`.
            return_prefix_tokens: return pairs of map and prefix tokens (N, tokens, chs) instead of maps.
            norm: apply the last norm of a transformer to its maps.
            stop_early: stop at the deepest of the levels, whose map is then the first output.
            output_fmt: "NCHW" for maps (N, chs, h, w), "NLC" for sequences of cells (N, h * w, chs).
            intermediates_only: return the maps only.

        Returns:
            (features, maps), or maps.

        Raises:
            ArgumentError: `output_fmt` is invalid.
            InputError: the model does not accept the images.
            OutIndicesError: a level does not exist.
        """
        check_images(x, self.in_chans, max(self.feature_info.reduction()), dtypes_of(self))
        if output_fmt not in FORMATS:
            raise ArgumentError(f"output_fmt={output_fmt!r}: choose one of {FORMATS}")
        asked = self.feature_info.select(indices).out_indices
        levels = sorted(asked)
        if stop_early or intermediates_only:
            pairs = self.forward_tokens(x, levels)
            features = pairs[-1][1]
        else:
            features, pairs = self.forward_features_and_maps(x, levels)
        pairs = [self.normed_tokens(*pair) for pair in pairs] if norm else pairs
        outputs = [_formatted(*pairs[levels.index(level)], return_prefix_tokens, output_fmt) for level in asked]
        return outputs if intermediates_only else (features, outputs)

    def forward_features_and_maps(self, x: Tensor, levels: Sequence[int]) -> tuple[Tensor, list[TokensAndMap]]:
        """The output of `forward_features`, and prefix tokens and map of each of the ascending `levels`."""
        rows = [self.feature_info[level] for level in levels]
        last = FeatureInfo(self.num_features, self.feature_info[-1].reduction, self._last_feature)
        maps = self._in_order(x, rows if rows[-1].name == last.name else [*rows, last])
        return maps[-1], [_without_tokens(map_) for map_ in maps[: len(rows)]]

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[TokensAndMap]:
        """Prefix tokens and map of each of the ascending `levels`: ((N, prefix tokens, chs), (N, chs, h, w)).

        For a model without prefix tokens they are (N, 0, chs).
        """
        return [_without_tokens(map_) for map_ in self._in_order(x, [self.feature_info[level] for level in levels])]

    def _in_order(self, x: Tensor, rows: Sequence[FeatureInfo]) -> list[Tensor]:
        steps = steps_to(self, rows)
        overwritten = frozenset() if self.runs_in_order(steps) else prove_order(self, steps, rows)
        return run_steps(self, x, steps, rows, overwritten)

    def runs_in_order(self, steps: Sequence[str]) -> bool:
        """Whether the class alone guarantees that the modules at `steps` are what the model runs, one after another."""
        containers = {step.rpartition(".")[0] for step in steps} - {""}
        inherited = type(self).forward is Backbone.forward, type(self).forward_features is Backbone.forward_features
        return all(inherited) and all(type(self.get_submodule(path)) is nn.Sequential for path in containers)

    def normed_tokens(self, prefix: Tensor, map_: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the last norm of a transformer to prefix tokens and map; unchanged for a model without one."""
        return prefix, map_

    def get_classifier(self) -> nn.Module:
        """The layer that returns the logits, or nn.Identity without classes."""
        return self.get_submodule(self.last_linear)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer by a newly initialized one, in place.

        Args:
            num_classes: number of logits; 0 for pooled features.
            global_pool: kind of pool, as in `BackboneConfig`; None keeps the current kind.

        Raises:
            ArgumentError: the number of classes is negative, the family does not have this kind of pool, or the pool
                changes the shapes of layers between pool and classifier.
        """
        kind = self.config.global_pool if global_pool is None else global_pool
        config = replace(self.config, num_classes=num_classes, global_pool=kind)
        with init_empty_weights():
            fresh = type(self)(config)
        _require_same_head(self, fresh, kind)
        for path in self.pool_layers:
            self.set_submodule(path, fresh.get_submodule(path).train(self.training))
        like = next(self.parameters())
        last = fresh.get_classifier() if like.is_meta else _drawn(fresh.get_classifier(), self.initialize)
        last = last.to(like.device, like.dtype)
        self.set_submodule(self.last_linear, last.train(self.training))
        self.config, self.head_hidden_size = config, fresh.head_hidden_size

    @property
    def _last_feature(self) -> str:
        return self.last_feature or self.feature_info[-1].name


class Pyramid(Backbone, ABC):
    """A model that computes its maps itself, because running its children in order would not.

    Attributes:
        excess: names of parameters that no map depends on, but that its forward needs.
        corrections: facts in which `feature_info` differs from the model's own, incorrect declaration.
        fixed_size: the only accepted (height, width) of images in pixels; None if others are accepted.
        smallest: shortest accepted side of images in pixels; None for one cell of the deepest requested map.
        maps_are_normed: whether maps and prefix tokens pass through the last norm of a transformer.
    """

    maps_are_normed: bool = False
    excess: tuple[str, ...] = ()
    corrections: tuple[str, ...] = ()
    fixed_size: tuple[int, int] | None = None
    smallest: int | None = None

    @abstractmethod
    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        """The maps (N, chs, H / reduction, W / reduction) of the ascending `levels`."""

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[TokensAndMap]:
        return [_without_tokens(map_) for map_ in self.forward_maps(x, levels)]

    def normed(self) -> "Pyramid":
        """This model with its last norm applied to maps and prefix tokens. Parameters are shared.

        Raises:
            ArgumentError: the model has no such norm.
        """
        raise ArgumentError("this model has no last norm of tokens to send its maps through")

    def raw(self) -> "Pyramid":
        """This model with maps and prefix tokens as they are before its last norm. Parameters are shared.

        Raises:
            ArgumentError: the model returns them after the norm only.
        """
        if self.maps_are_normed:
            raise ArgumentError("this model returns its maps after its last norm only")
        return self

    def cut(self, levels: Sequence[int]) -> "Pyramid":
        """This model, or a copy that ends at the last of the ascending `levels`, if removing modules is not enough.

        A copy shares all tensors. It may still hold modules that are `unused`.
        """
        del levels
        return self

    def unused(self, levels: Sequence[int]) -> Iterable[str]:
        """Paths of the modules that can be deleted because no map of the ascending `levels` needs them.

        By default there are none.
        """
        del levels
        return ()


class CellLinear(nn.Linear):
    """A linear layer over axis 1: (N, in_features[, H, W]) to (N, out_features[, H, W])."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def classifier(chs: int, num_classes: int, pool: str = "avg") -> nn.Module:
    """The last layer: (N, chs) to logits (N, num_classes), or the identity without classes.

    pool: the kind of global pool before it; "" for logits per cell, (N, chs, h, w) to (N, num_classes, h, w).
    """
    if not isinstance(num_classes, int) or num_classes < 0:
        raise ArgumentError(f"num_classes={num_classes}: expected 0 (pooled features) or more")
    if not num_classes:
        return nn.Identity()
    return nn.Linear(chs, num_classes) if pool else CellLinear(chs, num_classes)


def _formatted(prefix: Tensor, map_: Tensor, return_prefix_tokens: bool, output_fmt: str) -> Any:
    """A map in the requested format, in a pair with its prefix tokens if these are requested."""
    output = map_ if output_fmt == "NCHW" else map_.flatten(2).transpose(1, 2)
    return (output, prefix) if return_prefix_tokens else output


def _without_tokens(map_: Tensor) -> TokensAndMap:
    return map_.new_empty(map_.shape[0], 0, map_.shape[1]), map_


def _drawn(layer: nn.Module, initialize: Callable[[nn.Module], None]) -> nn.Module:
    """Allocate a layer of the meta device on the CPU, and initialize it."""
    layer = layer.to_empty(device="cpu")
    if isinstance(layer, nn.Linear):
        layer.reset_parameters()
    initialize(layer)
    return layer


def _require_same_head(model: Backbone, fresh: Backbone, pool: str) -> None:
    """ArgumentError if `fresh`, the model with another pool, has layers of other shapes after the pool."""
    if pool != model.config.global_pool and not model.pool_layers:
        raise ArgumentError(f"global_pool={pool!r}: {type(model).__name__} has no pool_layers to replace")
    own, children = model.state_dict(), [name for name, _ in fresh.named_children()]
    first = children.index(model.pool_layers[0].partition(".")[0]) if model.pool_layers else len(children)
    behind = tuple(f"{name}." for name in children[first:])
    changed = [
        name
        for name, tensor in fresh.state_dict().items()
        if name.startswith(behind) and not name.startswith(f"{model.last_linear}.")
        if name not in own or own[name].shape != tensor.shape
    ]
    if changed:
        raise ArgumentError(
            f"global_pool={pool!r} gives {changed[0]} another shape, and its weights would be lost: build the model "
            f"with create_model({model.architecture!r}, global_pool={pool!r})"
        )


def refuse_scripting() -> NoReturn:
    """ArgumentError for torch.jit.script, which supports only a subset of Python."""
    raise ArgumentError(
        "torch.jit.script cannot compile this model: use torch.jit.trace(model, images), torch.export.export or "
        "featx.export instead"
    )
