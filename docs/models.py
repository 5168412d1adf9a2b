"""Write the table at the end of docs/models.md: every registered variant.

Run `python docs/models.py` after a change of the families; `tests/docs/test_pages.py` compares the rows.
"""

import re
from pathlib import Path

import featx
from featx.backbone import Backbone, Pyramid
from featx.features import Levels
from featx.meta_init import init_empty_weights
from featx.registry import Variant, lookup

# This script writes the page after this line; the text before it is written by hand.
MARK = "<!-- written by docs/models.py -->\n"
PAGE = Path(__file__).with_suffix(".md")
HEADER = (
    "| model | case | parameters | channels of the levels | strides | image | default weights |\n"
    "| --- | --- | ---: | --- | --- | ---: | --- |\n"
)


def row(name: str) -> str:
    """Return the table row of a variant."""
    variant = lookup(name)
    assert isinstance(variant, Variant), f"{name} is registered as a function, not by a family"
    with init_empty_weights():
        model = featx.create_model(name)
    assert isinstance(model, Backbone)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    height, width = variant.data.size
    weights = next(iter(variant.weights), "none")
    facts = (f"`{name}`", case(model), f"{millions:.1f} M", *levels(model.feature_info), f"{height}×{width}", weights)
    return f"| {' | '.join(facts)} |\n"


def case(model: Backbone) -> str:
    """Return the model's case in docs/adding.md: sequential, flattened or rewritten."""
    if isinstance(model, Pyramid):
        return "rewritten"
    return "flattened" if any("." in level.name for level in model.feature_info) else "sequential"


def levels(info: Levels) -> tuple[str, str]:
    """Return the channels and strides of the levels, from shallow to deep; equal levels (ViT) are written once."""
    if len({(level.chs, level.reduction) for level in info}) == 1:
        return f"{len(info)} × {info[0].chs}", f"{info[0].reduction}"
    return ", ".join(map(str, info.channels())), ", ".join(map(str, info.reduction()))


def natural_key(name: str) -> list[tuple[str, int]]:
    """Return a sort key for natural order: `resnet50` before `resnet101`."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D+)(\d*)", name)]


def main() -> None:
    introduction = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    rows = map(row, sorted(featx.list_models(), key=natural_key))
    PAGE.write_text(introduction + MARK + "\n" + HEADER + "".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
