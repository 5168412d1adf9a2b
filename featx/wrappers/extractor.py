"""FeatureExtractWrapper: images in, maps out."""

from collections.abc import Mapping, Sequence
from inspect import getattr_static
from typing import Any, Literal, NoReturn, get_args

import torch
import torch.fx
from torch import Tensor, nn

from ..arguments import require_module
from ..backbone import Backbone, Pyramid, refuse_scripting
from ..bridge_registry import bridge_to
from ..errors import ArgumentError, ContractError
from ..features import FeatureInfo, Levels, OutIndices
from ..image_checks import check_images, dtypes_of
from ..load_report import LoadReport
from ..preprocessing import DataConfig
from .chain import Chain
from .rewritten import Rewritten
from .transparent import Transparent, innermost, without

# what a symbolic tracer calls as a whole
torch.fx.wrap("check_images")
torch.fx.wrap("layout_of")

Output = Literal["list", "dict", "tokens"]
Maps = list[Tensor] | dict[str, Tensor] | list[tuple[Tensor, Tensor]]


class FeatureExtractWrapper(Transparent[Pyramid]):
    """Returns a model's maps instead of its prediction.

    `model` is a Backbone, a Pyramid, or any module with `feature_info` whose children run in order, or which says
    `is_rewritten = True` and returns its maps from `forward_features`. It stays as it is; the extractor shares its
    parameters, under the same names, and holds nothing that the asked levels do not need. It has a list of children of
    its own: replace modules in the model before it is wrapped, or in the extractor.

    Args:
        model: see above.
        out_indices: the levels to return, in this order; see `create_model`.
        out_names: the levels to return, by name.
        output: "list", "dict" keyed by level name, or "tokens": a list of pairs of prefix tokens (N, tokens, chs) and
            map; a convolutional model has 0 tokens.

    Raises:
        ContractError: the model has no `feature_info`, or does not return the maps that it describes.
        OutIndicesError: a level does not exist.
        InputError: when called, the model does not support the batch.
    """

    feature_info: Levels

    def __init__(
        self,
        model: nn.Module,
        out_indices: OutIndices | None = None,
        *,
        out_names: Sequence[str] | None = None,
        output: Output = "list",
    ) -> None:
        if output not in get_args(Output):
            raise ArgumentError(f"output={output!r}: choose one of {get_args(Output)}")
        pyramid = as_pyramid(require_module(model))
        chosen = pyramid.feature_info.select(out_indices, out_names)
        ascending = sorted(chosen.out_indices)
        pyramid = pyramid.cut(ascending)
        super().__init__(without(pyramid, pyramid.unused(ascending)))
        self.feature_info = chosen
        self._ascending, self._order = ascending, [ascending.index(level) for level in chosen.out_indices]
        self._output = output
        self._smallest = pyramid.smallest or max(chosen.reduction())
        self._has_known_code = isinstance(self.source, Backbone) or bridge_to(self.source) is not None
        self._left_out = frozenset(model.state_dict()) - frozenset(self.state_dict())

    @property
    def in_chans(self) -> int | None:
        """Channels of the images, None if the model does not say."""
        return self._fact("in_chans")

    @property
    def data_config(self) -> DataConfig | None:
        """Preprocessing that the weights expect, None if the model does not say."""
        return self._fact("data_config")

    @property
    def pretrained_cfg(self) -> Mapping[str, Any] | None:
        """The model's own, under timm's keys; None if it has none."""
        return getattr(innermost(self._inner), "pretrained_cfg", None)

    @property
    def default_cfg(self) -> Mapping[str, Any] | None:
        """The same as `pretrained_cfg`, under timm's older name."""
        return self.pretrained_cfg

    @property
    def size_divisor(self) -> int:
        """The sides of an image must be multiples of it; 1 takes any size."""
        return getattr(self.source, "size_divisor", 1)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """The only (height, width) of images that it takes, in pixels; None if it takes others."""
        return self._inner.fixed_size

    @property
    def corrections(self) -> tuple[str, ...]:
        """Where `feature_info` tells the truth and the model's own declaration does not."""
        return self._inner.corrections

    @property
    def excess(self) -> tuple[str, ...]:
        """Names of parameters it holds although no map depends on them, because the model's forward expects them."""
        return self._inner.excess

    @property
    def load_report(self) -> LoadReport | None:
        """What loading the weights did, None for a model that `create_model` did not load."""
        return self._fact("load_report")

    def _fact(self, name: str) -> Any:
        """What the pyramid says of images and weights, or the model that it wraps."""
        own = getattr(self._inner, name, None)
        return getattr(self.source, name, None) if own is None else own

    def _check(self, x: Tensor) -> None:
        """Raise InputError unless `x` is a batch of images that this extractor takes."""
        check_images(x, self.in_chans, self._smallest, self._dtypes())

    def _dtypes(self) -> tuple[torch.dtype, ...]:
        """Those that the images may have; none where a user's own model may convert any."""
        return dtypes_of(self) if self._has_known_code else ()

    def __prepare_scriptable__(self) -> NoReturn:
        """What torch.jit.script calls first."""
        refuse_scripting()

    @property
    def source(self) -> nn.Module:
        """The model that gives the maps, of the class that was wrapped, and without what the levels do not need.

        It shares its parameters with the extractor. A native model has its `config` here; in the place of another
        package's model may be a Pyramid that knows the sizes of its maps.
        """
        pyramid = self._inner
        if isinstance(pyramid, Transparent) and "size_rule" not in vars(pyramid):
            return pyramid._inner
        return pyramid

    def feature_at(self, stride: int) -> FeatureInfo:
        """The deepest of the returned levels with this reduction; OutIndicesError if there is none."""
        return self.feature_info.feature_at(stride)

    def forward(self, x: Tensor) -> Maps:
        """(N, in_chans, H, W) to one map per level (N, chs, H / reduction, W / reduction), in the order asked for.

        Maps are contiguous in the memory format of the images.
        """
        self._check(x)
        layout = layout_of(x)
        if self._output == "tokens":
            pairs = self._inner.forward_tokens(x, self._ascending)
            return [(pairs[i][0], pairs[i][1].contiguous(memory_format=layout)) for i in self._order]
        ascending = self._inner.forward_maps(x, self._ascending)
        maps = [ascending[i].contiguous(memory_format=layout) for i in self._order]
        return maps if self._output == "list" else dict(zip(self.feature_info.names(), maps, strict=True))


def source_of(model: nn.Module) -> nn.Module:
    """The model that gives the maps of an extractor; any other model itself."""
    return model.source if isinstance(model, FeatureExtractWrapper) else model


def pyramid_of(model: nn.Module) -> Pyramid:
    """The pyramid in an extractor, or any other model as a source of maps; ContractError if it is none."""
    return model._inner if isinstance(model, FeatureExtractWrapper) else as_pyramid(model)


def maps_in(returned: Maps) -> list[Tensor]:
    """The maps in what an extractor returned, whatever `output` it was asked for."""
    if isinstance(returned, dict):
        return list(returned.values())
    return [item[1] if isinstance(item, tuple) else item for item in returned]


def layout_of(x: Tensor) -> torch.memory_format:
    """Channels last if the tensor is that and nothing else, the default otherwise."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def as_pyramid(model: nn.Module) -> Pyramid:
    """The model as a source of maps; ContractError if it is none."""
    if isinstance(model, FeatureExtractWrapper):
        raise ContractError("this is a feature extractor already; wrap the model it was made from")
    if isinstance(model, Pyramid):
        return model
    _refuse_wrapped(model)
    if (bridge := bridge_to(model)) is not None:
        return bridge.pyramid(model)
    if not hasattr(model, "feature_info"):
        raise ContractError(
            f"{type(model).__name__} has no feature_info: list the levels as dictionaries with chs, reduction and name "
            "(path of the module whose output is the map) in self.feature_info"
        )
    return Rewritten(model) if getattr(model, "is_rewritten", False) else Chain(model)


def _refuse_wrapped(model: nn.Module) -> None:
    """Raise ContractError for a module of another kind that holds a Backbone and has no levels of its own.

    What it does around the backbone, such as a normalisation, would be left out without a word.
    """
    if isinstance(model, Backbone) or getattr_static(model, "feature_info", None) is not None:
        return
    path = next((path for path, part in model.named_modules() if isinstance(part, Backbone)), None)
    if path is not None:
        raise ContractError(
            f"{type(model).__name__} has no levels of its own, its part {path!r} has: wrap that, as in "
            f"FeatureExtractWrapper(model.get_submodule({path!r}))"
        )
