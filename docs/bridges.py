"""Writes the tables at the end of docs/bridges.md: what every model of the bridged packages does.

Run as `python docs/bridges.py`; `make bridges` checks every row in the same way.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from featx import ArgumentError, ContractError, FeatureExtractWrapper, InputError
from featx.backbone import Pyramid
from featx.contract import Size
from featx.wrappers.extractor import maps_in

OTHER_SIZE: Size = (192, 256)
MOST, LONGEST = 6, 100  # of the corrections of a model, and letters of a reason

# What is after it in the page is written here, what is before it by hand.
MARK = "<!-- written by docs/bridges.py -->\n"


@dataclass(frozen=True, slots=True)
class Row:
    """What one architecture does under the contract.

    corrections: what its package declares otherwise.
    refused: why it gives no maps; nothing if it does.
    size: "any" where it takes images of OTHER_SIZE as it is, "built" where it is built for them, or why it cannot be.
    """

    name: str
    corrections: tuple[str, ...] = ()
    refused: str = ""
    size: str = "any"


def timm_row(name: str) -> Row:
    """One architecture of timm, run without computing; AssertionError if it breaks a promise."""
    from featx.bridges import timm

    with torch.device("meta"):
        model = timm.build(name)
    try:
        pyramid = timm.pyramid(model)
    except ContractError as error:
        if "build it on a real one" not in str(error):
            return Row(name, refused=str(error))
        model = timm.build(name, image_size=96)  # it looks at values; few pixels are enough
        pyramid = timm.pyramid(model)
    check_names(model, pyramid)
    taken = FeatureExtractWrapper(pyramid, [1, 0])
    check_cut(model, taken)
    try:
        check_maps(taken, OTHER_SIZE)
        return Row(name, pyramid.corrections)
    except InputError:
        return Row(name, pyramid.corrections, size=other_size(name))


def other_size(name: str) -> str:
    """Whether an architecture of timm can be built for another size: "built", or why not."""
    from featx.bridges import timm

    try:
        timm.arguments_for(OTHER_SIZE, name, {}, timm.create)
    except ArgumentError as error:
        return str(error).splitlines()[-2]  # of the last attempt
    return "built"


def check_names(model: nn.Module, pyramid: Pyramid) -> None:
    """Every level has a name of its own: the path of a module, or a stage of a backbone of transformers."""
    names, paths = pyramid.feature_info.names(), {path for path, _ in model.named_modules()}
    stages = {*getattr(model, "stage_names", ()), *(f"hidden_states.{i}" for i in range(len(paths)))}
    assert len({*names}) == len(names), names
    assert {name.partition("[")[0] for name in names} <= paths | stages, names


def check_cut(model: nn.Module, taken: FeatureExtractWrapper) -> None:
    """An extractor of two shallow levels, in reverse, keeps names and shapes, and nothing that it does not use."""
    held = dict(taken.named_parameters())
    assert held.keys() < dict(model.named_parameters()).keys()
    assert taken.state_dict().keys() < model.state_dict().keys()
    for parameter in held.values():
        parameter.requires_grad_(True)
    own = taken._inner.fixed_size or (taken.data_config.size if taken.data_config else OTHER_SIZE)
    maps = check_maps(taken, own)
    torch.autograd.backward([map_.sum() for map_ in maps if map_.requires_grad])  # one is the image itself
    unused = {key for key, parameter in held.items() if parameter.grad is None}
    assert unused == {*taken.excess}, unused


def check_maps(taken: FeatureExtractWrapper, size: Size) -> list[torch.Tensor]:
    """Maps are NCHW, contiguous, of the channels and, up to rounding, the reduction that feature_info says."""
    from featx.bridges.timm_levels import fits

    device, rule = next(taken.parameters()).device, taken._inner.size_rule
    maps = maps_in(taken.eval()(torch.zeros(1, taken.in_chans or 3, *size, device=device)))
    for level, map_ in zip(taken.feature_info, maps, strict=True):
        assert map_.shape[1] == level.chs, (level, map_.shape)
        unpadded = not fits(size, map_.shape, level.reduction)  # the rule is found by many runs, so not asked for each
        assert not unpadded or [*map_.shape[2:]] == [rule(side, level.reduction) for side in size], (level, map_.shape)
        assert map_.is_contiguous()
    return maps


def torchvision_row(name: str) -> Row:
    """One classification model of torchvision, run without computing; AssertionError if it breaks a promise."""
    from featx.bridges import torchvision

    with torch.device("meta"):
        model = torchvision.build(name)
    return plain_row(name, model, torchvision.pyramid(model))


def transformers_row(name: str) -> Row:
    """One type of model of transformers in its default configuration, run without computing."""
    from featx.bridges import transformers

    if name in transformers.REFUSED:
        return Row(name, refused=transformers.REFUSED[name])
    with torch.device("meta"):
        model = transformers.build(name).to("meta")  # some make parameters elsewhere
    return plain_row(name, model, transformers.pyramid(model))


def plain_row(name: str, model: nn.Module, pyramid: Pyramid) -> Row:
    """An architecture without sizes it could be built for; AssertionError if it breaks a promise."""
    check_names(model, pyramid)
    taken = FeatureExtractWrapper(pyramid, [1, 0] if len(pyramid.feature_info) > 1 else None)
    check_cut(model, taken)
    try:
        check_maps(taken, OTHER_SIZE)
        return Row(name, pyramid.corrections)
    except InputError as error:
        return Row(name, pyramid.corrections, size=str(error.__cause__ or error))


def timm_names() -> list[str]:
    from featx.bridges import timm

    return timm.names()


def torchvision_names() -> list[str]:
    from featx.bridges import torchvision

    return torchvision.names()


def transformers_names() -> list[str]:
    from featx.bridges import transformers

    return sorted({*transformers.names(), *transformers.REFUSED})


# Package, what is counted, its names, what one of them does.
SECTIONS: Sequence[tuple[str, str, Callable[[], list[str]], Callable[[str], Row]]] = (
    ("timm", "architectures", timm_names, timm_row),
    ("torchvision", "classification models", torchvision_names, torchvision_row),
    ("transformers", "types of model", transformers_names, transformers_row),
)


def section(package: str, counted: str, rows: Sequence[Row]) -> Iterable[str]:
    """The counts of a package, then every correction, refusal and size it cannot be built for, with the names."""
    height, width = OTHER_SIZE
    works = [row for row in rows if not row.refused]
    sizes = Counter(row.size if row.size in ("any", "built") else "own" for row in works)
    yield f"### {package} {version(package)}\n"
    yield f"| {counted} | |\n| --- | ---: |"
    yield f"| all | {len(rows)} |"
    yield f"| give true maps | {len(works)} |"
    yield f"| … of which the package's own declaration is false | {sum(bool(row.corrections) for row in works)} |"
    yield f"| … of which take {height}x{width} images as they are | {sizes['any']} |"
    yield f"| … of which do if built with `image_size=({height}, {width})` | {sizes['built']} |"
    yield f"| … of which take other sizes only | {sizes['own']} |"
    yield f"| refused | {len(rows) - len(works)} |\n"
    yield from table("Corrected declarations", works, lambda row: "<br>".join(shortened(row.corrections)))
    yield from table("Refused", rows, lambda row: row.refused)
    own = [row for row in works if row.size not in ("any", "built")]
    yield from table(f"Not for {height}x{width} images", own, lambda row: row.size.strip()[:LONGEST])


def shortened(corrections: Sequence[str]) -> list[str]:
    left = len(corrections) - MOST
    return [*corrections[:MOST], f"and {left} more"] if left > 1 else [*corrections]


def table(title: str, rows: Iterable[Row], why: Callable[[Row], str]) -> Iterable[str]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if why(row):
            by_reason[why(row)].append(row.name)
    if by_reason:
        yield f"#### {title}\n\n| names | | why |\n| --- | ---: | --- |"
        for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            yield f"| {', '.join(f'`{name}`' for name in names)} | {len(names)} | {reason.replace('|', '/')} |"
        yield ""


def main() -> None:
    warnings.simplefilter("ignore")
    lines: list[str] = []
    for package, counted, names, row in SECTIONS:
        with ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            lines += section(package, counted, list(pool.map(row, names(), chunksize=8)))
    page = Path(__file__).with_suffix(".md")
    guide = page.read_text().partition(MARK)[0]
    page.write_text(guide + MARK + "\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
