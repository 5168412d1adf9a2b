"""FeatureExtractWrapper, the extractor of a model's maps."""

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

# symbolic tracers record these calls as a whole
torch.fx.wrap("check_images")
torch.fx.wrap("memory_format_of")

Output = Literal["list", "dict", "tokens"]
Maps = list[Tensor] | dict[str, Tensor] | list[tuple[Tensor, Tensor]]


class FeatureExtractWrapper(Transparent[Pyramid]):
    """Returns a model's maps instead of its prediction.

    `model` does not change. The extractor shares its parameters, under the same names, and holds only the modules that
    the levels need. It has its own registry of children: replace modules in the model before wrapping it, or in the
    extractor.

    Args:
        model: a Backbone, a Pyramid, or a module with `feature_info` whose children run in order, or that sets
            `is_rewritten = True` and returns its maps from `forward_features`.
        out_indices: the levels to return, in this order, as for `create_model`.
        out_names: the names of the levels to return, instead of `out_indices`.
        output: "list", "dict" with level names as keys, or "tokens" for a list of pairs of prefix tokens
            (N, tokens, chs) and map. Convolutional models have 0 prefix tokens.

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
        self._output: Output = output
        self._smallest = pyramid.smallest or max(chosen.reduction())
        self._has_known_code = isinstance(self.source, Backbone) or bridge_to(self.source) is not None
        self._left_out = frozenset(model.state_dict()) - frozenset(self.state_dict())

    @property
    def in_chans(self) -> int | None:
        """Channels of the images; None if the model does not declare them."""
        return self._attribute("in_chans")

    @property
    def data_config(self) -> DataConfig | None:
        """Preprocessing that the weights expect; None if the model does not declare it."""
        return self._attribute("data_config")

    @property
    def pretrained_cfg(self) -> Mapping[str, Any] | None:
        """The model's `pretrained_cfg`, with timm's keys; None if it has none."""
        return getattr(innermost(self._inner), "pretrained_cfg", None)

    @property
    def default_cfg(self) -> Mapping[str, Any] | None:
        """`pretrained_cfg` under timm's older name."""
        return self.pretrained_cfg

    @property
    def size_divisor(self) -> int:
        """Pixels that the sides of images must be multiples of; 1 for any size."""
        return getattr(self.source, "size_divisor", 1)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """The only accepted (height, width) of images in pixels; None if other sizes are accepted."""
        return self._inner.fixed_size

    @property
    def corrections(self) -> tuple[str, ...]:
        """A sentence for each fact in `feature_info` that the model's package declares differently."""
        return self._inner.corrections

    @property
    def excess(self) -> tuple[str, ...]:
        """Names of parameters that are kept although no map depends on them, because the model's forward needs them."""
        return self._inner.excess

    @property
    def load_report(self) -> LoadReport | None:
        """The report on loading the weights; None for a model that `create_model` did not load."""
        return self._attribute("load_report")

    def _attribute(self, name: str) -> Any:
        """The attribute of the pyramid or, if that is None, of the model that it wraps."""
        value = getattr(self._inner, name, None)
        return getattr(self.source, name, None) if value is None else value

    def _check(self, x: Tensor) -> None:
        """Raise InputError unless `x` is a batch of images that this extractor accepts."""
        check_images(x, self.in_chans, self._smallest, self._dtypes())

    def _dtypes(self) -> tuple[torch.dtype, ...]:
        """The accepted dtypes of images; none to accept all, for a user's own model."""
        return dtypes_of(self) if self._has_known_code else ()

    def __prepare_scriptable__(self) -> NoReturn:
        """Raise an error; torch.jit.script calls this first."""
        refuse_scripting()

    @property
    def source(self) -> nn.Module:
        """The wrapped model without what the levels do not need.

        It shares its parameters with the extractor. A native model has its `config` here. For another package's model
        this may be a Pyramid that knows the sizes of its maps.
        """
        model: nn.Module = self._inner
        while isinstance(model, Transparent) and "size_rule" not in vars(model):
            model = model._inner
        return model

    def feature_at(self, stride: int) -> FeatureInfo:
        """The deepest returned level with a reduction of `stride` pixels. OutIndicesError if there is none."""
        return self.feature_info.feature_at(stride)

    def with_pyramid(self, pyramid: Pyramid) -> "FeatureExtractWrapper":
        """An extractor of the same levels, with the same output, whose maps `pyramid` computes.

        Args:
            pyramid: computes other maps with the same parameters. It is not cut.
        """
        other = FeatureExtractWrapper(pyramid, self.feature_info.out_indices, output=self._output)
        other._left_out = self._left_out
        return other

    def forward(self, x: Tensor) -> Maps:
        """Images (N, in_chans, H, W) to a map (N, chs, H / reduction, W / reduction) per level, in the requested order.

        Maps are contiguous in the memory format of the images.
        """
        self._check(x)
        memory_format = memory_format_of(x)
        if self._output == "tokens":
            pairs = self._inner.forward_tokens(x, self._ascending)
            return [(pairs[i][0], pairs[i][1].contiguous(memory_format=memory_format)) for i in self._order]
        ascending = self._inner.forward_maps(x, self._ascending)
        maps = [ascending[i].contiguous(memory_format=memory_format) for i in self._order]
        return maps if self._output == "list" else dict(zip(self.feature_info.names(), maps, strict=True))


def source_of(model: nn.Module) -> nn.Module:
    """The model in an extractor; any other model itself."""
    return model.source if isinstance(model, FeatureExtractWrapper) else model


def pyramid_of(model: nn.Module) -> Pyramid:
    """The Pyramid in an extractor, or that of any other model. ContractError if the model has no maps."""
    return model._inner if isinstance(model, FeatureExtractWrapper) else as_pyramid(model)


def maps_in(returned: Maps) -> list[Tensor]:
    """The maps in the result of an extractor, for any `output`."""
    if isinstance(returned, dict):
        return list(returned.values())
    return [item[1] if isinstance(item, tuple) else item for item in returned]


def memory_format_of(x: Tensor) -> torch.memory_format:
    """`torch.channels_last` for a tensor that is contiguous in it only, or else `torch.contiguous_format`."""
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format


def as_pyramid(model: nn.Module) -> Pyramid:
    """A Pyramid that returns the model's maps. ContractError if the model has no maps, or is an extractor."""
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
    """Raise ContractError for a module without levels that contains a Backbone.

    Its operations around the backbone, such as a normalization, would be left out silently.
    """
    if isinstance(model, Backbone) or getattr_static(model, "feature_info", None) is not None:
        return
    path = next((path for path, part in model.named_modules() if isinstance(part, Backbone)), None)
    if path is not None:
        raise ContractError(
            f"{type(model).__name__} has no levels, but its submodule {path!r} has: wrap that, as in "
            f"FeatureExtractWrapper(model.get_submodule({path!r}))"
        )
