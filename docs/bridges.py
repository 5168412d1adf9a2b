"""Write the tables at the end of docs/bridges.md: the support of every model of the bridged packages.

Run as `python docs/bridges.py`; `make bridges` runs the same check for every row.
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
MAX_CORRECTIONS, MAX_REASON = 6, 100  # rows per model, characters

# This script writes the page after this line; the text before it is written by hand.
MARK = "<!-- written by docs/bridges.py -->\n"


@dataclass(frozen=True, slots=True)
class ArchitectureSupport:
    """The support of one architecture.

    Attributes:
        corrections: differences between the package's declaration and the measured levels.
        refused: the reason why the model is rejected; empty if it is supported.
        size: "any" if it accepts images of OTHER_SIZE by default, "built" if it can be built for them, else the
            reason why it does not.
    """

    name: str
    corrections: tuple[str, ...] = ()
    refused: str = ""
    size: str = "any"


def timm_row(name: str) -> ArchitectureSupport:
    """Check one architecture of timm on the meta device; AssertionError if it breaks the contract."""
    from featx.bridges import timm

    with torch.device("meta"):
        model = timm.build(name)
    try:
        pyramid = timm.pyramid(model)
    except ContractError as error:
        if "build it on another device" not in str(error):
            return ArchitectureSupport(name, refused=str(error))
        model = timm.build(name, image_size=96)  # its forward reads values; a small image is enough
        pyramid = timm.pyramid(model)
    check_names(model, pyramid)
    extractor = FeatureExtractWrapper(pyramid, [1, 0])
    check_pruning(model, extractor)
    try:
        check_maps(extractor, OTHER_SIZE)
        return ArchitectureSupport(name, pyramid.corrections)
    except InputError:
        return ArchitectureSupport(name, pyramid.corrections, size=other_size(name))


def other_size(name: str) -> str:
    """Return "built" if an architecture of timm can be built for another size, else the reason why not."""
    from featx.bridges import timm

    try:
        timm.arguments_for(OTHER_SIZE, name, {}, timm.create)
    except ArgumentError as error:
        return str(error).splitlines()[-2]  # the error of the last attempt
    return "built"


def check_names(model: nn.Module, pyramid: Pyramid) -> None:
    """Check that level names are unique, and are paths of modules or stages of a transformers backbone."""
    names, paths = pyramid.feature_info.names(), {path for path, _ in model.named_modules()}
    stages = {*getattr(model, "stage_names", ()), *(f"hidden_states.{i}" for i in range(len(paths)))}
    assert len({*names}) == len(names), names
    assert {name.partition("[")[0] for name in names} <= paths | stages, names


def check_pruning(model: nn.Module, extractor: FeatureExtractWrapper) -> None:
    """Check an extractor of two shallow levels in reverse order: names, shapes, and no unused parameters."""
    parameters = dict(extractor.named_parameters())
    assert parameters.keys() < dict(model.named_parameters()).keys()
    assert extractor.state_dict().keys() < model.state_dict().keys()
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    size = extractor._inner.fixed_size or (extractor.data_config.size if extractor.data_config else OTHER_SIZE)
    maps = check_maps(extractor, size)
    torch.autograd.backward([map_.sum() for map_ in maps if map_.requires_grad])  # a map may be the image itself
    unused = {key for key, parameter in parameters.items() if parameter.grad is None}
    assert unused == {*extractor.excess}, unused


def check_maps(extractor: FeatureExtractWrapper, size: Size) -> list[torch.Tensor]:
    """Check that maps are (N, C, H, W), contiguous, and agree with feature_info; return them."""
    from featx.bridges.timm_levels import fits

    device, rule = next(extractor.parameters()).device, extractor._inner.size_rule
    maps = maps_in(extractor.eval()(torch.zeros(1, extractor.in_chans or 3, *size, device=device)))
    for level, map_ in zip(extractor.feature_info, maps, strict=True):
        assert map_.shape[1] == level.chs, (level, map_.shape)
        unpadded = not fits(size, map_.shape, level.reduction)  # the size rule needs many runs: use it only if needed
        assert not unpadded or [*map_.shape[2:]] == [rule(side, level.reduction) for side in size], (level, map_.shape)
        assert map_.is_contiguous()
    return maps


def torchvision_row(name: str) -> ArchitectureSupport:
    """Check one classification model of torchvision on the meta device; AssertionError if it breaks the contract."""
    from featx.bridges import torchvision

    with torch.device("meta"):
        model = torchvision.build(name)
    return plain_row(name, model, torchvision.pyramid(model))


def transformers_row(name: str) -> ArchitectureSupport:
    """Check one model type of transformers in its default configuration on the meta device."""
    from featx.bridges import transformers

    if name in transformers.REFUSED:
        return ArchitectureSupport(name, refused=transformers.REFUSED[name])
    with torch.device("meta"):
        model = transformers.build(name).to("meta")  # some types create parameters on the CPU
    return plain_row(name, model, transformers.pyramid(model))


def plain_row(name: str, model: nn.Module, pyramid: Pyramid) -> ArchitectureSupport:
    """Check an architecture that has no argument for the image size; AssertionError if it breaks the contract."""
    check_names(model, pyramid)
    extractor = FeatureExtractWrapper(pyramid, [1, 0] if len(pyramid.feature_info) > 1 else None)
    check_pruning(model, extractor)
    try:
        check_maps(extractor, OTHER_SIZE)
        return ArchitectureSupport(name, pyramid.corrections)
    except InputError as error:
        return ArchitectureSupport(name, pyramid.corrections, size=str(error.__cause__ or error))


def timm_names() -> list[str]:
    from featx.bridges import timm

    return timm.names()


def torchvision_names() -> list[str]:
    from featx.bridges import torchvision

    return torchvision.names()


def transformers_names() -> list[str]:
    from featx.bridges import transformers

    return sorted({*transformers.names(), *transformers.REFUSED})


# Package, unit of the counts, function that lists the names, function that checks one.
SECTIONS: Sequence[tuple[str, str, Callable[[], list[str]], Callable[[str], ArchitectureSupport]]] = (
    ("timm", "architectures", timm_names, timm_row),
    ("torchvision", "classification models", torchvision_names, torchvision_row),
    ("transformers", "types of model", transformers_names, transformers_row),
)


def section(package: str, counted: str, rows: Sequence[ArchitectureSupport]) -> Iterable[str]:
    """The counts of a package, and tables of corrections, rejections and unsupported sizes with the model names."""
    height, width = OTHER_SIZE
    supported = [row for row in rows if not row.refused]
    sizes = Counter(row.size if row.size in ("any", "built") else "own" for row in supported)
    yield f"### {package} {version(package)}\n"
    yield f"| {counted} | count |\n| --- | ---: |"
    yield f"| all | {len(rows)} |"
    yield f"| supported | {len(supported)} |"
    yield f"| … whose declaration by the package was corrected | {sum(bool(row.corrections) for row in supported)} |"
    yield f"| … that accept {height}x{width} images by default | {sizes['any']} |"
    yield f"| … that accept them if built with `image_size=({height}, {width})` | {sizes['built']} |"
    yield f"| … that accept only other sizes | {sizes['own']} |"
    yield f"| rejected | {len(rows) - len(supported)} |\n"
    yield from table("Corrected declarations", supported, lambda row: "<br>".join(shortened(row.corrections)))
    yield from table("Rejected", rows, lambda row: row.refused)
    fixed = [row for row in supported if row.size not in ("any", "built")]
    yield from table(f"Without {height}x{width} images", fixed, lambda row: row.size.strip()[:MAX_REASON])


def shortened(corrections: Sequence[str]) -> list[str]:
    rest = len(corrections) - MAX_CORRECTIONS
    return [*corrections[:MAX_CORRECTIONS], f"and {rest} more"] if rest > 1 else [*corrections]


def table(
    title: str, rows: Iterable[ArchitectureSupport], reason: Callable[[ArchitectureSupport], str]
) -> Iterable[str]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if reason(row):
            by_reason[reason(row)].append(row.name)
    if by_reason:
        yield f"#### {title}\n\n| names | count | reason |\n| --- | ---: | --- |"
        for cause, names in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            yield f"| {', '.join(f'`{name}`' for name in names)} | {len(names)} | {cause.replace('|', '/')} |"
        yield ""


def main() -> None:
    warnings.simplefilter("ignore")
    lines: list[str] = []
    for package, counted, names, row in SECTIONS:
        with ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            lines += section(package, counted, list(pool.map(row, names(), chunksize=8)))
    page = Path(__file__).with_suffix(".md")
    introduction = page.read_text().partition(MARK)[0]
    page.write_text(introduction + MARK + "\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
