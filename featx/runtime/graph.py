"""The graph of an extractor for given images, and the description that makes it one again."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ContractError
from ..wrappers import FeatureExtractWrapper
from ..wrappers.refusals import REFUSED
from .capture import MapsOf, exported, first_line, module_of, sizeless
from .constants import compute_constants, has_constants
from .description import Description, describe
from .layout import layout_name
from .taken import InexpressibleError, Taken, taken
from .watch import Seen

Dynamic = Literal["auto", "size", "batch", "none"]
FREE: dict[Dynamic, tuple[int, ...]] = {"size": (0, 2, 3), "batch": (0,), "none": ()}


@dataclass(frozen=True)
class Wish:
    """What a graph should be.

    computes: the dtype, torch.int8 included. layout: of images and maps. example: images as will be given, or None.
    portable: for ONNX, where weights stay in float32 and a runtime computes in what it is told.
    dynamic: which images it takes beside those: "batch" any number of them, "size" of other sizes, too, "none" no
        others; "auto" as many as are found quickly and do not make it slower.
    """

    computes: torch.dtype
    layout: torch.memory_format
    example: Tensor | None
    portable: bool
    dynamic: Dynamic = "auto"

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and images."""
        return torch.float32 if self.portable else self.computes

    @property
    def maps(self) -> torch.dtype:
        """Of the maps that a user gets."""
        return torch.float32 if self.computes is torch.int8 else self.computes


@dataclass(frozen=True)
class Graph:
    """torch.export's program from images to all tensors of the extractor, and what is said of it."""

    program: Any
    said: Description


def graph_of(extractor: FeatureExtractWrapper, seen: Seen, wish: Wish) -> Graph:
    """The graph of the extractor, whose tensors get the dtype and layout that are wished for.

    Raises ContractError for a model that torch.export cannot capture, or not for such images.
    """
    convert(extractor, wish)
    problems: list[str] = []
    for axes in _choices(wish, seen):
        images = like(seen, wish, 2 if 0 in axes else None)
        if 2 in axes and not wish.portable:
            images = _odd(images, max(extractor.feature_info.reduction()))
        made = _tried(extractor, images, axes, problems)
        if made is not None and (wish.dynamic == "auto" or set(axes) <= set(made[1].free)):
            program, right_for = made
            said = describe(extractor, right_for, (wish.maps, wish.computes), layout_name(wish.layout))
            fallbacks = tuple(f"torch.export: {problem}" for problem in problems)
            return Graph(program, replace(said, capture="torch.export", fallbacks=fallbacks))
        if made is not None:
            problems.append(f"it depends on the lengths of other axes than {sorted(made[1].free)}")
    kind = type(extractor._source).__name__
    raise ContractError(
        f"{kind} cannot be captured by torch.export with dynamic={wish.dynamic!r} ({problems[0]}): "
        + ("use runtime='eager'" if wish.dynamic in ("auto", "none") else "choose dynamic='auto' or 'none'")
    )


def convert(extractor: FeatureExtractWrapper, wish: Wish) -> None:
    """Give its tensors the dtype and the layout, in place."""
    to: Any = extractor.to  # whose types do not know of memory formats beside a dtype
    to(dtype=wish.dtype, memory_format=_layout(wish))


def like(seen: Seen, wish: Wish, batch: int | None) -> Tensor:
    """So many images of the size that the graph is for; None is as many as the example has, or one."""
    number = batch or (1 if wish.example is None else len(wish.example))
    image = seen.images[:1].to(wish.dtype)
    return image.expand(number, -1, -1, -1).contiguous(memory_format=_layout(wish))


def _odd(images: Tensor, reduction: int) -> Tensor:
    """Larger images, of which maps of every reduction have odd sides.

    Where they are even, PyTorch's compiler takes a pool that rounds up for one that need not, and its code is wrong for
    odd sides.
    """
    more = [-side % reduction + 1 for side in images.shape[2:]]
    return F.pad(images, (0, more[1], 0, more[0]))


def _layout(wish: Wish) -> torch.memory_format:
    return torch.contiguous_format if wish.portable else wish.layout


def _choices(wish: Wish, seen: Seen) -> list[tuple[int, ...]]:
    """The free axes to try. Compiled code for any size takes longer than for one, by a sixth for resnet18."""
    if wish.dynamic != "auto":
        return [FREE[wish.dynamic]]
    some = [FREE["batch"], FREE["none"]]
    return [FREE["size"], *some] if wish.portable and sizeless(seen) else some


def _tried(
    extractor: FeatureExtractWrapper, images: Tensor, axes: tuple[int, ...], problems: list[str]
) -> tuple[Any, Taken] | None:
    """The program and what it is right for; None, and the reason in `problems`, if there is none."""
    free = {"x": dict.fromkeys(axes, torch.export.Dim.AUTO)} if axes else None
    try:
        program = exported(MapsOf(extractor), images, free)
        if has_constants(program):
            module = module_of(program)
            compute_constants(module)
            program = exported(module, images, free)
        return program, taken(program, images.shape)
    except (*REFUSED, InexpressibleError) as error:
        problems.append(first_line(error))
        return None
