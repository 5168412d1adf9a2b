"""The two base classes of image models: Backbone, whose children run in order, and Pyramid, which is asked for maps."""

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

torch.fx.wrap("check_images")  # a symbolic tracer records the call: what it looks at is known when images come

FORMATS = ("NCHW", "NLC")

TokensAndMap = tuple[Tensor, Tensor]  # prefix tokens (N, tokens, chs) and map (N, chs, h, w)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """What every family's configuration has.

    global_pool: from the last map to one vector: "avg", "max", "avgmax" (their mean), "catavgmax" (one after the other:
    twice the channels) or "" for none, which gives logits per cell. drop_rate: dropout before the classifier.
    """

    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = "avg"
    drop_rate: float = 0.0

    def stated_by(self, names: Collection[str]) -> dict[str, Any]:
        """Fields that the names of a checkpoint's tensors decide, where the caller of `create_model` does not."""
        del names
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class StridedConfig(BackboneConfig):
    """What the families add whose strides can be traded for dilation: the deepest reduction, 8, 16 or 32."""

    output_stride: int = 32
    drop_path_rate: float = 0.0


class Backbone(nn.Module):
    """An image model whose children, run in the order they are registered, turn images into logits.

    A family sets `feature_info`, `in_chans` and the rest beside the layers they describe. The child that holds the
    deepest level ends `forward_features` unless `last_feature` names a later one; the ones after it are the head.

    size_divisor: the sides of an image must be multiples of it; 1 takes any size.
    last_linear: path of the layer that depends on the number of classes.
    last_feature: path of the module whose output `forward_features` returns; "" for the deepest level.
    pool_layers: paths of the layers without parameters that depend on the kind of global pool.
    first_convs: paths of the convolutions that read the images, where there are several.
    gives_tokens: whether `forward_features` returns tokens (N, L, num_features) instead of a map.
    dense_level: position of the level that dense prediction starts from: the deepest, unless that is an expansion made
        for the classifier.
    num_features: channels of what `forward_features` returns.
    head_hidden_size: channels that enter the last linear layer.
    config: the configuration it was built from.
    architecture, tag: the name `create_model` built it from, and the tag of its published weights.
    label_names: of the classes, where the weights' `config.json` has them.
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
        """Cells of a map along a side of so many pixels: a cell that is only partly covered counts.

        It holds for every size the family takes; a family whose sizes follow another rule overrides it.
        """
        return -(-side // reduction)

    @staticmethod
    def initialise(module: nn.Module, /) -> None:
        """Give a part of the model the family's random values, in place; layers PyTorch initialises well keep its."""

    @property
    def num_classes(self) -> int:
        """Logits per image; 0 for a model that ends with pooled features."""
        return getattr(dict(self.named_modules()).get(self.last_linear), "out_features", 0)

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """What the weights expect, under the keys that timm gives it; a view that cannot be changed."""
        return pretrained_cfg(self)

    @property
    def default_cfg(self) -> Mapping[str, Any]:
        """The same as `pretrained_cfg`, under timm's older name."""
        return self.pretrained_cfg

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, which the head turns into logits: (N, in_chans, H, W) to (N, num_features, H / r, W / r)."""
        last = self._last_feature.partition(".")[0]
        for name, child in self.named_children():
            x = child(x)
            if name == last:
                break
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (N, num_classes) of what `forward_features` returns, or pooled features if there are no classes.

        pre_logits: stop before the last linear layer, at the features (N, head_hidden_size) that enter it.
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
        """What torch.jit.script calls first."""
        refuse_scripting()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) to logits (N, num_classes), or pooled features if there are no classes."""
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
        """What `forward_features` returns, and the maps of some levels, as timm's models give them.

        An extractor (`features_only=True`) gives the same maps and leaves out what they do not need.

        Args:
            x: images (N, in_chans, H, W).
            indices: levels, in the order of the maps; see `create_model`.
            return_prefix_tokens: give pairs of map and prefix tokens (N, tokens, chs) instead of maps.
            norm: send the maps of a transformer through its last norm.
            stop_early: end at the deepest of the levels; what is returned first is then that.
            output_fmt: "NCHW" for maps (N, chs, h, w), "NLC" for their cells in rows (N, h * w, chs).
            intermediates_only: return the maps alone.

        Returns:
            (features, maps), or maps.

        Raises:
            OutIndicesError: for levels that do not exist.
            ArgumentError: for another `output_fmt`.
            InputError: for a batch the model cannot take.
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
        given = [_given(*pairs[levels.index(level)], return_prefix_tokens, output_fmt) for level in asked]
        return given if intermediates_only else (features, given)

    def forward_features_and_maps(self, x: Tensor, levels: Sequence[int]) -> tuple[Tensor, list[TokensAndMap]]:
        """What `forward_features` returns, and prefix tokens and map of each of `levels`, which ascend."""
        rows = [self.feature_info[level] for level in levels]
        last = FeatureInfo(self.num_features, self.feature_info[-1].reduction, self._last_feature)
        maps = self._in_order(x, rows if rows[-1].name == last.name else [*rows, last])
        return maps[-1], [_without_tokens(map_) for map_ in maps[: len(rows)]]

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[TokensAndMap]:
        """Each map of `levels`, which ascend, with the prefix tokens that went beside it.

        That is ((N, prefix tokens, chs), (N, chs, h, w)), and without prefix tokens ((N, 0, chs), (N, chs, h, w)).
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
        """Prefix tokens and map through the last norm of a transformer; unchanged where there is none."""
        return prefix, map_

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits, or nn.Identity if there are no classes."""
        return self.get_submodule(self.last_linear)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer by a fresh one, in place.

        Args:
            num_classes: logits of the new layer; 0 leaves the pooled features.
            global_pool: the new kind of pool, see `BackboneConfig`; None keeps the kind there is.

        Raises:
            ArgumentError: for a negative number of classes, for a kind of pool that the family does not have, and for
                one that changes the shapes of the layers between pool and classifier.
        """
        kind = self.config.global_pool if global_pool is None else global_pool
        config = replace(self.config, num_classes=num_classes, global_pool=kind)
        with init_empty_weights():
            fresh = type(self)(config)
        _require_same_head(self, fresh, kind)
        for path in self.pool_layers:
            self.set_submodule(path, fresh.get_submodule(path).train(self.training))
        like = next(self.parameters())
        last = fresh.get_classifier() if like.is_meta else _drawn(fresh.get_classifier(), self.initialise)
        last = last.to(like.device, like.dtype)
        self.set_submodule(self.last_linear, last.train(self.training))
        self.config, self.head_hidden_size = config, fresh.head_hidden_size

    @property
    def _last_feature(self) -> str:
        return self.last_feature or self.feature_info[-1].name


class Pyramid(Backbone, ABC):
    """A model that returns its own maps, because no order of its children would.

    excess: names of parameters it holds although no map depends on them, because its forward expects them.
    corrections: where `feature_info` tells the truth and the model's own declaration does not.
    fixed_size: the only (height, width) of images it takes; None if it takes others.
    smallest: the shortest side of images it takes, in pixels; None if that is one cell of the deepest map asked for.
    maps_are_normed: whether maps and prefix tokens have gone through the last norm of a transformer.
    """

    maps_are_normed: bool = False
    excess: tuple[str, ...] = ()
    corrections: tuple[str, ...] = ()
    fixed_size: tuple[int, int] | None = None
    smallest: int | None = None

    @abstractmethod
    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        """The maps of `levels`, which ascend; each is (N, chs, H / reduction, W / reduction)."""

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[TokensAndMap]:
        return [_without_tokens(map_) for map_ in self.forward_maps(x, levels)]

    def normed(self) -> "Pyramid":
        """This model with maps and prefix tokens sent through its last norm; the parameters are shared.

        Raises ArgumentError if there is no such norm.
        """
        raise ArgumentError("this model has no last norm of tokens to send its maps through")

    def cut(self, levels: Sequence[int]) -> "Pyramid":
        """This model, or a copy made for `levels`, which ascend, if leaving modules out is not enough to end there.

        The copy shares all tensors, and modules that it does not need may still be `unused`.
        """
        del levels
        return self

    def unused(self, levels: Sequence[int]) -> Iterable[str]:
        """Paths of the modules that can be deleted because no map of `levels`, which ascend, needs them: here none."""
        del levels
        return ()


class CellLinear(nn.Linear):
    """A linear layer over axis 1: (N, in_features) or (N, in_features, H, W) to the same with out_features."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def classifier(chs: int, num_classes: int, pool: str = "avg") -> nn.Module:
    """(N, chs) to logits (N, num_classes), or the features themselves if there are no classes.

    pool: the kind of global pool before it; "" gives logits per cell, (N, chs, h, w) to (N, num_classes, h, w).
    """
    if not isinstance(num_classes, int) or num_classes < 0:
        raise ArgumentError(f"num_classes={num_classes}: expected 0 (pooled features) or more")
    if not num_classes:
        return nn.Identity()
    return nn.Linear(chs, num_classes) if pool else CellLinear(chs, num_classes)


def _given(prefix: Tensor, map_: Tensor, return_prefix_tokens: bool, output_fmt: str) -> Any:
    """A map in the format asked for, in a pair with its prefix tokens if these are."""
    shaped = map_ if output_fmt == "NCHW" else map_.flatten(2).transpose(1, 2)
    return (shaped, prefix) if return_prefix_tokens else shaped


def _without_tokens(map_: Tensor) -> TokensAndMap:
    return map_.new_empty(map_.shape[0], 0, map_.shape[1]), map_


def _drawn(layer: nn.Module, initialise: Callable[[nn.Module], None]) -> nn.Module:
    """A layer without values, with random ones."""
    layer = layer.to_empty(device="cpu")
    if isinstance(layer, nn.Linear):
        layer.reset_parameters()
    initialise(layer)
    return layer


def _require_same_head(model: Backbone, fresh: Backbone, pool: str) -> None:
    """Raise ArgumentError if the pool of `fresh`, the same model with another pool, needs other layers behind it."""
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
    """Raise ArgumentError for torch.jit.script, which takes a part of Python only."""
    raise ArgumentError(
        "torch.jit.script cannot compile this model: use torch.jit.trace(model, images), torch.export.export or "
        "featx.export instead"
    )
