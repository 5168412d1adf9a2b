"""Writes docs/bridged.md: what the sweep over every model of the bridged packages found.

Run as `python docs/bridges.py`; the sweep tests check every row in the same way.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from featx import ArgumentError, ContractError, FeatureExtractWrapper, InputError

OTHER_SIZE = (192, 256)


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
        return str(error)
    return "built"


def check_names(model: nn.Module, pyramid: nn.Module) -> None:
    """Every level has a name of its own, which starts with the path of a module."""
    names, paths = pyramid.feature_info.names(), {path for path, _ in model.named_modules()}
    assert len({*names}) == len(names), names
    assert {name.partition("[")[0] for name in names} <= paths, names


def check_cut(model: nn.Module, taken: FeatureExtractWrapper) -> None:
    """An extractor of two shallow levels, in reverse, keeps names and shapes, and nothing that it does not use."""
    held = dict(taken.named_parameters())
    assert held.keys() < dict(model.named_parameters()).keys()
    assert taken.state_dict().keys() < model.state_dict().keys()
    for parameter in held.values():
        parameter.requires_grad_(True)
    maps = check_maps(taken, taken.data_config.size)
    torch.autograd.backward([map_.sum() for map_ in maps])
    unused = [key for key, parameter in held.items() if parameter.grad is None]
    assert not unused, unused


def check_maps(taken: FeatureExtractWrapper, size: Sequence[int]) -> list[torch.Tensor]:
    """Maps are NCHW, contiguous, of the channels and, up to rounding, the reduction that feature_info says."""
    from featx.bridges.timm_levels import fits

    device = next(taken.parameters()).device
    maps = taken.eval()(torch.zeros(1, taken.in_chans, *size, device=device))
    for level, map_ in zip(taken.feature_info, maps, strict=True):
        assert map_.shape[1] == level.chs, (level, map_.shape)
        rule = taken._source.size_rule  # found by many runs, so only asked where the usual roundings are not it
        unpadded = not fits(tuple(size), map_.shape, level.reduction)
        assert not unpadded or [*map_.shape[2:]] == [rule(side, level.reduction) for side in size], (level, map_.shape)
        assert map_.is_contiguous()
    return maps


def timm_names() -> list[str]:
    from featx.bridges import timm

    return timm.names()


# Title, names of all architectures, what one of them does.
SECTIONS: Sequence[tuple[str, Callable[[], list[str]], Callable[[str], Row]]] = (("timm", timm_names, timm_row),)


def section(title: str, rows: Sequence[Row]) -> Iterable[str]:
    """The counts of a package, then every correction, refusal and size it cannot be built for, with the names."""
    height, width = OTHER_SIZE
    works = [row for row in rows if not row.refused]
    sizes = Counter(row.size if row.size in ("any", "built") else "its own" for row in works)
    yield f"## {title}\n"
    yield "| architectures | |\n| --- | ---: |"
    yield f"| all | {len(rows)} |"
    yield f"| give true maps | {len(works)} |"
    yield f"| … of which the package's own declaration is false | {sum(bool(row.corrections) for row in works)} |"
    yield f"| … of which take {height}x{width} images as they are | {sizes['any']} |"
    yield f"| … of which do if built with `image_size=({height}, {width})` | {sizes['built']} |"
    yield f"| … of which cannot be built for them | {sizes['its own']} |"
    yield f"| refused | {len(rows) - len(works)} |\n"
    yield from table("Corrected declarations", works, lambda row: "<br>".join(row.corrections))
    yield from table("Refused", rows, lambda row: row.refused)
    own = [row for row in works if row.size not in ("any", "built")]
    yield from table(f"Not built for {height}x{width}", own, lambda row: row.size.split("\n")[-2].strip()[:120])


def table(title: str, rows: Iterable[Row], why: Callable[[Row], str]) -> Iterable[str]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if why(row):
            by_reason[why(row)].append(row.name)
    if by_reason:
        yield f"### {title}\n\n| architectures | | why |\n| --- | ---: | --- |"
        for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            yield f"| {', '.join(f'`{name}`' for name in names)} | {len(names)} | {reason.replace('|', '/')} |"
        yield ""


def main() -> None:
    warnings.simplefilter("ignore")
    lines = ["# Bridged models\n", "Written by `python docs/bridges.py`. How they are bridged: see [api](api.md).\n"]
    for title, names, row in SECTIONS:
        with ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            lines += section(title, list(pool.map(row, names(), chunksize=8)))
    Path(__file__).with_name("bridged.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
