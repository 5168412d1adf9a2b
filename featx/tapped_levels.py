"""`tap`: an extractor of the outputs of any modules of any model."""

from collections.abc import Sequence

from torch import Tensor, nn

from .arguments import require_module, require_strings
from .errors import ArgumentError
from .level_discovery import Proposal
from .tracing.map_layout import Tap as Tap
from .tracing.survey import survey_model
from .wrappers import FeatureExtractWrapper
from .wrappers.extractor import Output
from .wrappers.hooked import HookedPyramid

PATHS = "paths of modules"


def tap(
    model: nn.Module,
    names: Sequence[str | Tap] | Proposal,
    example: Tensor | None = None,
    *,
    argument: str | None = None,
    output: Output = "list",
) -> FeatureExtractWrapper:
    """An extractor whose maps are the outputs of the given modules, in this order.

    Maps (N, C, H, W), (N, H, W, C) and sequences of tokens (N, prefix + h * w, C) are returned as (N, C, H, W). The
    layout and the number of prefix tokens are inferred from the shapes at two image sizes, if the model accepts two.
    `model` does not change; the extractor shares its parameters, under the same names.

    The model's own forward runs. Modules that no map depends on are replaced by placeholders if the forward still works
    with them; `extractor.excess` lists the parameters that are kept although no map needs them. Operations between
    modules still run.

    Args:
        model: the model.
        names: paths of modules, or the result of `discover`. A `Tap` instead of a path specifies the entry of a tuple
            or dictionary, the layout, or the number of prefix tokens.
        example: images (N, C, H, W) for the model. Only their shape is used, unless the model does not run on the meta
            device. By default they have the size and channels that the model declares, or 3 x 224 x 224.
        argument: name of the keyword argument for images, if they are not the model's first argument.
        output: as for FeatureExtractWrapper.

    Raises:
        ArgumentError: a path does not exist.
        ContractError: a module does not return a map, or is not called exactly once.
    """
    require_module(model)
    if isinstance(names, str):
        raise ArgumentError(f"names={names!r}: expected a list of paths, such as [{names!r}]")
    places = names.taps if isinstance(names, Proposal) else require_strings(names, "names", (str, Tap), PATHS)
    taps = [place if isinstance(place, Tap) else Tap(place) for place in places]
    if not taps:
        raise ArgumentError("names: expected at least one path of a module")
    pyramid = HookedPyramid(model, taps, survey_model(model, example, argument))
    return FeatureExtractWrapper(pyramid, [pyramid.level_of(tap) for tap in taps], output=output)
