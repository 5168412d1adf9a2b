"""Writes the table at the end of docs/models.md: every variant that is registered.

Run as `python docs/models.py` after a change of the families; `tests/test_docs.py` compares the rows.
"""

import re
from pathlib import Path

import featx
from featx.backbone import Backbone, Pyramid
from featx.features import Levels
from featx.meta_init import init_empty_weights
from featx.registry import Variant, lookup

# What is after it in the page is written here, what is before it by hand.
MARK = "<!-- written by docs/models.py -->\n"
PAGE = Path(__file__).with_suffix(".md")
HEADER = (
    "| model | case | parameters | channels of the levels | at strides | image | default weights |\n"
    "| --- | --- | ---: | --- | --- | ---: | --- |\n"
)


def row(name: str) -> str:
    """The line of one variant."""
    variant = lookup(name)
    assert isinstance(variant, Variant), f"{name} is registered by a function, not by a family"
    with init_empty_weights():
        model = featx.create_model(name)
    assert isinstance(model, Backbone)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    height, width = variant.data.size
    weights = next(iter(variant.weights), "none")
    facts = (f"`{name}`", case(model), f"{millions:.1f} M", *levels(model.feature_info), f"{height}×{width}", weights)
    return f"| {' | '.join(facts)} |\n"


def case(model: Backbone) -> str:
    """Which of the three cases of docs/adding.md it is."""
    if isinstance(model, Pyramid):
        return "rewritten"
    return "flattened" if any("." in level.name for level in model.feature_info) else "sequential"


def levels(info: Levels) -> tuple[str, str]:
    """Channels and strides, shallow to deep; those of a ViT's blocks, which are alike, once."""
    if len({(level.chs, level.reduction) for level in info}) == 1:
        return f"{len(info)} × {info[0].chs}", f"{info[0].reduction}"
    return ", ".join(map(str, info.channels())), ", ".join(map(str, info.reduction()))


def natural(name: str) -> list[tuple[str, int]]:
    """A key that sorts `resnet101` behind `resnet50`."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D+)(\d*)", name)]


def main() -> None:
    guide = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    rows = map(row, sorted(featx.list_models(), key=natural))
    PAGE.write_text(guide + MARK + "\n" + HEADER + "".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
