"""tap: maps from any modules of any model."""

from collections.abc import Sequence

from torch import Tensor, nn

from .arguments import require_module, require_strings
from .errors import ArgumentError
from .level_discovery import Proposal
from .tracing.map_layout import Tap as Tap
from .tracing.survey import survey
from .wrappers import FeatureExtractWrapper
from .wrappers.extractor import Output
from .wrappers.tapped import Tapped

PATHS = "paths of modules"


def tap(
    model: nn.Module,
    names: Sequence[str | Tap] | Proposal,
    example: Tensor | None = None,
    *,
    argument: str | None = None,
    output: Output = "list",
) -> FeatureExtractWrapper:
    """An extractor whose maps are the outputs of the modules at these paths, in this order.

    names: paths, or what `discover` proposed; a `Tap` where more must be said: which entry of a tuple or dictionary,
        the layout, prefix tokens.
    example: images (N, C, H, W) that the model takes; only their shape matters, unless the model does not run without
        values. By default of the size and channels that the model states, or 3 x 224 x 224.
    argument: the keyword argument under which the model takes images, if that is not its first.
    output: as in FeatureExtractWrapper.

    Maps (N, C, H, W), (N, H, W, C) and sequences of tokens (N, prefix + h * w, C) come out as (N, C, H, W); which one
    it is, and how many prefix tokens there are, is found out from the shapes at two sizes if the model takes those.
    `model` stays untouched; the extractor shares its parameters, under the same names.

    The model's own forward runs, but modules whose results no map depends on are replaced by ones that compute
    nothing, if the forward still works then; `extractor.excess` names the parameters that are kept although no map
    needs them, and is empty where all of the rest could be left out. Operations between modules still run.

    Raises ArgumentError for a path that does not exist, ContractError, saying what the module returned, for what is no
    map, and for a module that is called more than once or not at all.
    """
    require_module(model)
    if isinstance(names, str):
        raise ArgumentError(f"names={names!r}: expected a list of paths, such as [{names!r}]")
    places = names.taps if isinstance(names, Proposal) else require_strings(names, "names", (str, Tap), PATHS)
    taps = [place if isinstance(place, Tap) else Tap(place) for place in places]
    if not taps:
        raise ArgumentError("names: expected at least one path of a module")
    tapped = Tapped(model, taps, survey(model, example, argument))
    return FeatureExtractWrapper(tapped, [tapped.level_of(tap) for tap in taps], output=output)
