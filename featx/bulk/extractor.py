"""The extractor for a recipe, from the name of a model, a classifier or an extractor."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..backbone import Backbone, Pyramid
from ..errors import ArgumentError, ContractError
from ..factory import create_model
from ..features import FeatureInfo, Levels, OutIndices
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import as_pyramid, pyramid_of
from ..wrappers.transparent import Transparent
from .config import Recipe

Create = Callable[..., nn.Module]  # `create_model` with a name and weights


def extractor_for(
    model: str | nn.Module, out_indices: OutIndices | None, recipe: Recipe
) -> tuple[FeatureExtractWrapper, str]:
    """The extractor for a recipe, and the name of the model.

    Args:
        model: a name, which loads its published weights; a classifier, which is wrapped; or an extractor.
        out_indices: levels; not allowed for an extractor.
        recipe: determines the norm, the tokens and the pre-logits.

    Raises:
        ArgumentError: the model is none of these, is an extractor without a module that the recipe needs, or is an
            extractor and `out_indices` was passed.
        ContractError: the module returns no maps.
    """
    if isinstance(model, str):
        return create_extractor(partial(create_model, model, True), out_indices, recipe), model
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model={model!r}: expected the name of a model, an extractor, such as "
            "create_model(name, features_only=True), or a classifier, which is wrapped"
        )
    if not isinstance(model, FeatureExtractWrapper):
        extractor = wrap_classifier(model, out_indices, recipe)
        return extractor, type(model if isinstance(pyramid_of(extractor), PreLogits) else extractor.source).__name__
    if out_indices is not None:
        raise ArgumentError("out_indices chooses levels of a model given by name; this extractor has its own")
    _require_modules(model, recipe)
    return model, type(model.source).__name__


def create_extractor(create: Create, out_indices: OutIndices | None, recipe: Recipe) -> FeatureExtractWrapper:
    """Create a model with its weights, and return its extractor in eval mode."""
    if recipe.pooling == "pre_logits" or recipe.is_normed:  # an extractor does not contain these modules
        return wrap_classifier(create(num_classes=0).eval(), out_indices, recipe)
    output = "tokens" if recipe.takes_tokens else "list"
    extractor: Any = create(features_only=True, out_indices=out_indices, output=output)
    return extractor.eval()


def wrap_classifier(model: nn.Module, out_indices: OutIndices | None, recipe: Recipe) -> FeatureExtractWrapper:
    """The extractor of a classifier; ArgumentError if the recipe needs a last norm or pre-logits that it lacks."""
    try:
        pyramid: nn.Module = as_pyramid(model) if recipe.is_normed else model
        if recipe.pooling == "pre_logits":
            if out_indices is not None:
                raise ArgumentError("out_indices chooses levels, and pooling 'pre_logits' is of the whole model")
            return FeatureExtractWrapper(PreLogits(model))
        if isinstance(pyramid, Pyramid) and recipe.is_normed:
            pyramid = _normed(pyramid, recipe)
        return FeatureExtractWrapper(pyramid, out_indices, output="tokens" if recipe.takes_tokens else "list")
    except ContractError as error:
        raise ContractError(
            f"{error}; featx.extract takes an extractor, such as create_model(name, features_only=True) or "
            "featx.tap(model, names), a model that can be made one, or the name of a model"
        ) from error


def _normed(pyramid: Pyramid, recipe: Recipe) -> Pyramid:
    try:
        return pyramid.normed()
    except ArgumentError as error:
        if recipe.norm:
            raise ArgumentError(f"norm=True: {error}") from error
        raise ArgumentError(
            "pooling 'cls' takes a transformer's class token as its last norm gives it to the classifier: "
            f"{error}; choose 'mean', or norm=False for the token as it is before"
        ) from error


def _require_modules(extractor: FeatureExtractWrapper, recipe: Recipe) -> None:
    """Raise ArgumentError if the extractor does not contain a module that the recipe needs."""
    if recipe.pooling == "pre_logits" and not isinstance(pyramid_of(extractor), PreLogits):
        raise ArgumentError(
            "pooling 'pre_logits' reads a classifier's head, which an extractor does not have: pass the model that "
            "create_model(name) returns without features_only=True, or its name"
        )
    if recipe.is_normed and not pyramid_of(extractor).maps_are_normed:
        option = "norm=True" if recipe.norm else "pooling 'cls' takes the class token as the classifier sees it and"
        raise ArgumentError(
            f"{option} needs the last norm, which this extractor does not have: pass the model that create_model(name) "
            "returns without features_only=True, or its name; norm=False takes maps and tokens as they are"
        )


class PreLogits(Transparent[nn.Module], Pyramid):
    """A classifier without its last linear layer, as a pyramid of one map with one cell: (N, head_hidden_size, 1, 1).

    Raises:
        ArgumentError: the model has no pre-logits.
    """

    def __init__(self, model: nn.Module) -> None:
        extractor = FeatureExtractWrapper(model)
        if not all(callable(getattr(model, name, None)) for name in ("forward_features", "forward_head")):
            raise ArgumentError(
                f"pooling 'pre_logits': {type(model).__name__} has no forward_features and forward_head(features, "
                "pre_logits=True): choose a model of featx or of timm, or another pooling"
            )
        super().__init__(model)
        classifier: Any = model
        reduction = extractor.feature_info[-1].reduction
        self.feature_info = Levels([FeatureInfo(classifier.head_hidden_size, reduction, "pre_logits")])
        self.size_rule, self.fixed_size, self.smallest = _one_cell, extractor.fixed_size, extractor._smallest
        if extractor.in_chans is not None:
            self.in_chans = extractor.in_chans
        if extractor.data_config is not None:
            self.data_config = extractor.data_config
        self._extractors = (extractor,)  # in a tuple, so that nn.Module does not register it

    @property
    def size_divisor(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The divisor of the height and width of images; 1 allows any size."""
        return self._extractors[0].size_divisor

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        del levels
        model: Any = self._inner
        vectors = model.forward_head(model.forward_features(x), pre_logits=True)
        if vectors.ndim != 2:
            raise ContractError(
                f"forward_head(pre_logits=True) of {type(model).__name__} gives {tuple(vectors.shape)}, not a vector "
                "per image: build the model with a global_pool"
            )
        return [vectors[:, :, None, None]]

    def unused(self, levels: Sequence[int]) -> Iterable[str]:
        del levels
        return (self._inner.last_linear,) if isinstance(self._inner, Backbone) else ()


def _one_cell(side: int, reduction: int) -> int:
    del side, reduction
    return 1
