"""The two base classes of image models: Backbone, whose children run in order, and Pyramid, which is asked for maps."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from .errors import ArgumentError, InputError
from .features import Levels
from .preprocessing import DataConfig
from .report import LoadReport


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """What every family's configuration has. drop_rate: dropout before the classifier."""

    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = "avg"
    drop_rate: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StridedConfig(BackboneConfig):
    """What the families add whose strides can be traded for dilation: the deepest reduction, 8, 16 or 32."""

    output_stride: int = 32
    drop_path_rate: float = 0.0


class Backbone(nn.Module):
    """An image model whose children, run in the order they are registered, turn images into logits.

    A family sets `feature_info`, `in_chans` and the rest beside the layers they describe. The child that holds the
    deepest level ends `forward_features`; the ones after it are the head.

    size_divisor: the sides of an image must be multiples of it; 1 takes any size.
    last_linear: path of the layer that depends on the number of classes.
    dense_level: position of the level that dense prediction starts from: the deepest, unless that is an expansion made
        for the classifier.
    num_features: channels of what `forward_features` returns.
    head_hidden_size: channels that enter the last linear layer.
    architecture, config: the name and the configuration `create_model` built it from.
    label_names: of the classes, where the weights' `config.json` has them.
    load_report: what loading its weights did.
    """

    size_divisor: ClassVar[int] = 1
    last_linear: ClassVar[str]
    dense_level: ClassVar[int] = -1

    feature_info: Levels
    data_config: DataConfig
    architecture: str
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

    def forward_features(self, x: Tensor) -> Tensor:
        """The deepest map, which the head turns into logits: (N, in_chans, H, W) to (N, chs, H / r, W / r)."""
        deepest = self.feature_info[-1].name.split(".")[0]
        for name, child in self.named_children():
            x = child(x)
            if name == deepest:
                break
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        """Logits of the deepest map: (N, chs, h, w) to (N, num_classes), or pooled features if there are no classes."""
        deepest = self.feature_info[-1].name.split(".")[0]
        names = [name for name, _ in self.named_children()]
        for child in list(self.children())[names.index(deepest) + 1 :]:
            x = child(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) to logits (N, num_classes), or pooled features if there are no classes."""
        deepest = self.feature_info[-1].reduction
        check_images(x, self.in_chans, smallest=1 if self.size_rule(1, deepest) else deepest)
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last linear layer by a fresh one, in place; 0 classes leave the pooled features."""
        head = classifier(self.head_hidden_size, num_classes)
        self.initialise(head)
        self.set_submodule(self.last_linear, head.to(next(self.parameters()).device))


class Pyramid(Backbone, ABC):
    """A model that returns its own maps, because no order of its children would.

    excess: names of parameters it holds although no map depends on them, because its forward expects them.
    corrections: where `feature_info` tells the truth and the model's own declaration does not.
    fixed_size: the only (height, width) of images it takes; None if it takes others.
    smallest: the shortest side of images it takes, in pixels; None if that is one cell of the deepest map asked for.
    """

    excess: tuple[str, ...] = ()
    corrections: tuple[str, ...] = ()
    fixed_size: tuple[int, int] | None = None
    smallest: int | None = None

    @abstractmethod
    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        """The maps of `levels`, which ascend; each is (N, chs, H / reduction, W / reduction)."""

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Each map with the prefix tokens that went beside it: ((N, prefix tokens, chs), (N, chs, h, w)).

        A model without prefix tokens gives none of them: (N, 0, chs).
        """
        return [(map_.new_empty(map_.shape[0], 0, map_.shape[1]), map_) for map_ in self.forward_maps(x, levels)]

    def cut(self, levels: Sequence[int]) -> "Pyramid":
        """This model, or a copy made for `levels`, which ascend, if leaving modules out is not enough to end there.

        The copy shares all tensors, and modules that it does not need may still be `unused`.
        """
        del levels
        return self

    @abstractmethod
    def unused(self, levels: Sequence[int]) -> Iterable[str]:
        """Paths of the modules that no map of `levels`, which ascend, needs."""


def classifier(chs: int, num_classes: int) -> nn.Module:
    """(N, chs) to logits (N, num_classes), or the features themselves if there are no classes."""
    if num_classes < 0:
        raise ArgumentError(f"num_classes={num_classes}: expected 0 (pooled features) or more")
    return nn.Linear(chs, num_classes) if num_classes else nn.Identity()


def check_images(x: Tensor, in_chans: int | None, smallest: int = 1) -> None:
    """Raise InputError unless `x` is (N, in_chans, H, W) with sides of at least `smallest` pixels."""
    if not isinstance(x, Tensor):
        raise InputError(f"expected a tensor (N, C, H, W), got {type(x).__name__}: see featx.transform for images")
    shape = tuple(x.shape)
    if x.ndim != 4:
        hint = "add the batch axis with x.unsqueeze(0)" if x.ndim == 3 else "stack images of one size"
        raise InputError(f"expected images (N, C, H, W), got shape {shape}: {hint}")
    if in_chans is not None and shape[1] != in_chans:
        channels_last = shape[3] == in_chans
        hint = "use x.permute(0, 3, 1, 2)" if channels_last else f"or build the model with in_chans={shape[1]}"
        raise InputError(f"expected {in_chans} channels on axis 1, got shape {shape}: {hint}")
    if min(shape[2:]) < smallest:
        raise InputError(
            f"images of {shape[2]}x{shape[3]} pixels are smaller than one cell of the deepest map ({smallest} pixels): "
            "enlarge them, or ask for shallower levels with out_indices"
        )


def check_size(x: Tensor, fixed_size: tuple[int, int] | None) -> None:
    """Raise InputError unless the images have the only (height, width) that the model takes, if there is only one."""
    height, width = x.shape[2:]
    if fixed_size is not None and (height, width) != fixed_size:
        raise InputError(f"expected images of {fixed_size[0]}x{fixed_size[1]} pixels, got {height}x{width}")
