"""What ATen operations are in ONNX that move, cut, reduce, pool and resize, written as in `onnx_operations`."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch

from .graph import Length, OnnxGraph, Target, Value
from .operations import Numbers, Scalar, Translation, as_dtype, pair, require

END = 2**63 - 1  # of a slice that goes on to the end
Size = int | Length


def _reshape(graph: OnnxGraph, made: list[Value], x: Value, *given: Any) -> str:
    """The target is known from both recordings: numbers, axes that stay where they are, and one that takes the rest.

    Where more axes than one take the rest, they are as long as an axis of x, or as the operation was given.
    """
    asked = dict(enumerate(given[0])) if given and isinstance(given[0], list) else {}
    target: list[Size] = []
    for axis, lengths in enumerate(made[0].axes):
        if lengths[0] == lengths[1]:
            target.append(lengths[0])
        elif axis < x.ndim and x.axes[axis] == lengths:
            target.append(0)  # as it is
        elif -1 not in target:
            target.append(-1)
        elif isinstance(length := asked.get(axis), Length):
            target.append(length)
        else:
            require(lengths in x.axes, "a view whose sizes are computed")
            target.append(graph.length(x, x.axes.index(lengths)))
    if any(isinstance(size, Length) for size in target):
        target = [graph.length(x, axis) if size == 0 else size for axis, size in enumerate(target)]
    return graph.add("Reshape", x, graph.ints(target))


def _permute(graph: OnnxGraph, _: list[Value], x: Value, order: Numbers) -> str:
    return graph.add("Transpose", x, perm=[axis % x.ndim for axis in order])


def _transpose(graph: OnnxGraph, _: list[Value], x: Value, one: int, other: int) -> str:
    order = list(range(x.ndim))
    order[one], order[other] = order[other], order[one]
    return graph.add("Transpose", x, perm=order)


def _turn(graph: OnnxGraph, _: list[Value], x: Value) -> str:
    return graph.add("Transpose", x, perm=list(range(x.ndim))[::-1])


def _unsqueeze(graph: OnnxGraph, _: list[Value], x: Value, axis: int) -> str:
    return graph.add("Unsqueeze", x, graph.ints([axis]))


def _squeeze(graph: OnnxGraph, _: list[Value], x: Value, axes: Numbers | int | None = None) -> str:
    asked = range(x.ndim) if axes is None else pair(axes, 1)
    single = [axis for axis in asked if x.axes[axis] == (1, 1)]
    return graph.add("Squeeze", x, graph.ints(single)) if single else x.name


def _expand(graph: OnnxGraph, _: list[Value], x: Value, sizes: Target, *, implicit: bool = False) -> str:
    return graph.add(
        "Expand", x, graph.ints([1 if size == -1 and not isinstance(size, Length) else size for size in sizes])
    )


def _filled(value: float, graph: OnnxGraph, made: list[Value], sizes: Target, *_: Any, **__: Any) -> str:
    return graph.add("Expand", graph.scalar(value, made[0].dtype), graph.ints(sizes))


def _new_filled(
    value: float, graph: OnnxGraph, made: list[Value], _: Value, sizes: Target, *__: Any, **___: Any
) -> str:
    return _filled(value, graph, made, sizes)


def _expand_as(graph: OnnxGraph, _: list[Value], x: Value, other: Value) -> str:
    return graph.add("Expand", x, graph.add("Shape", other))


def _view_as(graph: OnnxGraph, _: list[Value], x: Value, other: Value) -> str:
    return graph.add("Reshape", x, graph.add("Shape", other))


def _arange(graph: OnnxGraph, made: list[Value], *bounds: Any, **__: Any) -> str:
    start, end, step = {1: (0, *bounds, 1), 2: (*bounds, 1), 3: bounds}[len(bounds)]
    return graph.add("Range", *(as_dtype(graph, bound, made[0].dtype) for bound in (start, end, step)))


def _select(graph: OnnxGraph, _: list[Value], x: Value, axis: int, index: int) -> str:
    return graph.add("Gather", x, graph.constant(torch.tensor(index)), axis=axis)


def _unbind(graph: OnnxGraph, made: list[Value], x: Value, axis: int = 0) -> list[str]:
    return [_select(graph, made, x, axis, index) for index in range(len(made))]


def _slice(
    graph: OnnxGraph,
    _: list[Value],
    x: Value,
    axis: int = 0,
    start: Size | None = None,
    end: Size | None = None,
    step: int = 1,
) -> str:
    bounds = [graph.ints([bound]) for bound in (0 if start is None else start, END if end is None else end)]
    return graph.add("Slice", x, *bounds, graph.ints([axis]), graph.ints([step]))


def _cat(graph: OnnxGraph, made: list[Value], tensors: Sequence[Value], axis: int = 0) -> str:
    kept = [tensor for tensor in tensors if tensor.shape != (0,)]  # which PyTorch ignores
    return graph.add("Concat", *(as_dtype(graph, one, made[0].dtype) for one in kept), axis=axis)


def _stack(graph: OnnxGraph, made: list[Value], tensors: Sequence[Value], axis: int = 0) -> str:
    parts = [graph.add("Unsqueeze", tensor, graph.ints([axis])) for tensor in tensors]
    return graph.add("Concat", *parts, axis=axis)


def _split(graph: OnnxGraph, made: list[Value], x: Value, _: Any, axis: int = 0) -> list[str]:
    require(all(part.axes[axis][0] == part.axes[axis][1] for part in made), "a split of an axis of any length")
    if len(made) == 1:
        return [x.name]
    sizes = graph.ints([part.shape[axis] for part in made])
    return graph.names("Split", x, sizes, outputs=len(made), axis=axis)


def _cumsum(graph: OnnxGraph, made: list[Value], x: Value, axis: int, *, dtype: torch.dtype | None = None) -> str:
    return graph.add("CumSum", as_dtype(graph, x, made[0].dtype), graph.constant(torch.tensor(axis % x.ndim)))


def _roll(graph: OnnxGraph, made: list[Value], x: Value, shifts: Numbers, axes: Numbers = ()) -> str:
    require(len(axes) > 0, "a roll of all elements")
    rolled = x.name
    for shift, axis in zip(pair(shifts, 1), axes, strict=True):
        parts = (graph.ints([-shift]), graph.ints([END])), (graph.ints([0]), graph.ints([-shift]))
        cut = [graph.add("Slice", rolled, *bounds, graph.ints([axis])) for bounds in parts]
        rolled = rolled if shift == 0 else graph.add("Concat", *cut, axis=axis)
    return rolled


def _flip(graph: OnnxGraph, _: list[Value], x: Value, axes: Numbers) -> str:
    count = len(axes)
    bounds = [graph.ints([value] * count) for value in (-1, -END)]
    return graph.add("Slice", x, *bounds, graph.ints(axes), graph.ints([-1] * count))


def _repeat(graph: OnnxGraph, _: list[Value], x: Value, repeats: Target) -> str:
    more = len(repeats) - x.ndim
    given = graph.add("Unsqueeze", x, graph.ints(range(more))) if more else x
    return graph.add("Tile", given, graph.ints(repeats))


def _pixel_shuffle(graph: OnnxGraph, _: list[Value], x: Value, factor: int) -> str:
    return graph.add("DepthToSpace", x, blocksize=factor, mode="CRD")


def _index_select(graph: OnnxGraph, _: list[Value], x: Value, axis: int, index: Value) -> str:
    return graph.add("Gather", x, index, axis=axis)


def _index(graph: OnnxGraph, _: list[Value], x: Value, indices: Sequence[Value | None]) -> str:
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    require(len(given) == 1 and given[0][1].dtype in (torch.int64, torch.int32), "an index of several axes")
    (axis, index) = given[0]
    return graph.add("Gather", x, index, axis=axis)


def _embedding(graph: OnnxGraph, _: list[Value], weight: Value, index: Value, *__: Any) -> str:
    return graph.add("Gather", weight, index, axis=0)


def _gather(graph: OnnxGraph, _: list[Value], x: Value, axis: int, index: Value, *, sparse_grad: bool = False) -> str:
    return graph.add("GatherElements", x, index, axis=axis)


def _unfold(graph: OnnxGraph, made: list[Value], x: Value, axis: int, size: int, step: int) -> str:
    """Windows along an axis, as a new last axis."""
    axis %= x.ndim
    require(x.axes[axis][0] == x.axes[axis][1], "windows along an axis of any length")
    starts = torch.arange(made[0].shape[axis]) * step
    windows = graph.add("Gather", x, graph.constant(starts[:, None] + torch.arange(size)), axis=axis)
    order = [one for one in range(x.ndim + 1) if one != axis + 1]
    return graph.add("Transpose", windows, perm=[*order, axis + 1])


def _pads(x: Value, padding: Numbers) -> list[int]:
    """ONNX's order of paddings: the beginnings of all axes, then the ends."""
    count = len(padding) // 2
    begin = [0] * (x.ndim - count) + list(padding[::2])[::-1]
    end = [0] * (x.ndim - count) + list(padding[1::2])[::-1]
    return begin + end


def _constant_pad(graph: OnnxGraph, _: list[Value], x: Value, padding: Numbers, value: float = 0) -> str:
    return graph.add("Pad", x, graph.ints(_pads(x, padding)), graph.scalar(value, x.dtype))


def _reflection_pad(graph: OnnxGraph, _: list[Value], x: Value, padding: Numbers) -> str:
    return graph.add("Pad", x, graph.ints(_pads(x, padding)), mode="reflect")


def _replication_pad(graph: OnnxGraph, _: list[Value], x: Value, padding: Numbers) -> str:
    return graph.add("Pad", x, graph.ints(_pads(x, padding)), mode="edge")


def _max_pool(
    graph: OnnxGraph,
    _: list[Value],
    x: Value,
    kernel: Numbers,
    stride: Numbers = (),
    padding: Numbers = (0,),
    dilation: Numbers = (1,),
    ceil_mode: bool = False,
) -> list[str]:
    sizes = pair(kernel)
    stated: dict[str, Any] = {"strides": pair(stride) or sizes, "pads": pair(padding) * 2, "dilations": pair(dilation)}
    return [graph.add("MaxPool", x, kernel_shape=sizes, ceil_mode=int(ceil_mode), **stated)]


def _avg_pool(
    graph: OnnxGraph,
    _: list[Value],
    x: Value,
    kernel: Numbers,
    stride: Numbers = (),
    padding: Numbers = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> str:
    require(divisor is None, "an average with a divisor of its own")
    sizes = pair(kernel)
    stated: dict[str, Any] = {"strides": pair(stride) or sizes, "pads": pair(padding) * 2, "ceil_mode": int(ceil_mode)}
    return graph.add("AveragePool", x, kernel_shape=sizes, count_include_pad=int(count_include_pad), **stated)


def _adaptive_pool(graph: OnnxGraph, _: list[Value], x: Value, sizes: Numbers) -> str:
    if pair(sizes) == [1, 1]:
        return graph.add("GlobalAveragePool", x)
    sides = x.axes[2:]
    even = all(a == b and a % size == 0 for (a, b), size in zip(sides, pair(sizes), strict=True))
    require(even, "an adaptive pool whose cells differ in size")
    kernel = [a // size for (a, _), size in zip(sides, pair(sizes), strict=True)]
    return graph.add("AveragePool", x, kernel_shape=kernel, strides=kernel)


def _reduce(
    kind: str,
    graph: OnnxGraph,
    made: list[Value],
    x: Value,
    dims: Numbers | int | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> str:
    given = x if dtype in (None, x.dtype) else graph.cast(x, dtype or x.dtype)
    axes = None if dims is None or dims == [] else graph.ints([dims] if isinstance(dims, int) else dims)
    return graph.add(kind, given, axes, keepdims=int(keepdim))


def _norm(
    graph: OnnxGraph, made: list[Value], x: Value, order: Scalar | None = 2, *rest: Any, dtype: Any = None
) -> str:
    kinds = {1: "ReduceL1", 2: "ReduceL2", None: "ReduceL2"}
    require(order in kinds and dtype in (None, x.dtype), f"a norm of order {order}")
    return _reduce(kinds[order], graph, made, x, *rest)


def _variance(
    graph: OnnxGraph, made: list[Value], x: Value, dims: Any = None, *, correction: Any = None, keepdim: bool = False
) -> str:
    over = list(range(x.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    require(all(x.axes[axis][0] == x.axes[axis][1] for axis in over), "a variance over axes of any length")
    count, axes = prod(x.shape[axis] for axis in over), graph.ints(over)
    apart = graph.add("Sub", x, graph.add("ReduceMean", x, axes))
    mean = graph.add("ReduceMean", graph.add("Mul", apart, apart), axes, keepdims=int(keepdim))
    return graph.add("Mul", mean, graph.scalar(count / (count - (1 if correction is None else correction)), x.dtype))


def _resize(graph: OnnxGraph, x: Value, sizes: Target | None, scales: Sequence[float] | None, **how: Any) -> str:
    """By factors, or to a size."""
    if sizes is None:
        assert scales is not None
        factors = graph.constant(torch.tensor([1.0, 1.0, *scales]))
        return graph.add("Resize", x, None, factors, **how)
    kept = Length(graph.add("Shape", x, start=0, end=2))
    return graph.add("Resize", x, None, None, graph.ints([kept, *sizes]), **how)


def _nearest(graph: OnnxGraph, _: list[Value], x: Value, sizes: Target | None, *scales: Any) -> str:
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _resize(graph, x, sizes, scales[0] if sizes is None else None, **how)


def _interpolated(mode: str, antialias: bool) -> Translation:
    def translate(
        graph: OnnxGraph, _: list[Value], x: Value, sizes: Target | None, align_corners: bool, *scales: Any
    ) -> str:
        transform = "align_corners" if align_corners else "half_pixel"
        how = {"mode": mode, "coordinate_transformation_mode": transform, "antialias": int(antialias)}
        cubic = {"cubic_coeff_a": -0.5 if antialias else -0.75} if mode == "cubic" else {}
        return _resize(graph, x, sizes, scales[0] if sizes is None else None, **how, **cubic)

    return translate


REDUCTIONS = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin"}
SHAPES: dict[str, Translation] = {
    **{name: partial(_reduce, kind) for name, kind in REDUCTIONS.items()},
    "linalg_vector_norm": _norm,
    "norm": _norm,
    "var": _variance,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "flatten", "unflatten"), _reshape),
    "permute": _permute,
    "transpose": _transpose,
    "t": _turn,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    **{name: partial(_filled, value) for name, value in (("zeros", 0), ("empty", 0), ("ones", 1))},
    **{name: partial(_new_filled, value) for name, value in (("new_zeros", 0), ("new_empty", 0), ("new_ones", 1))},
    "expand_as": _expand_as,
    "view_as": _view_as,
    "arange": _arange,
    "select": _select,
    "unbind": _unbind,
    "slice": _slice,
    "cat": _cat,
    "stack": _stack,
    "split": _split,
    "split_with_sizes": _split,
    "cumsum": _cumsum,
    "roll": _roll,
    "flip": _flip,
    "repeat": _repeat,
    "pixel_shuffle": _pixel_shuffle,
    "index_select": _index_select,
    "index": _index,
    "embedding": _embedding,
    "gather": _gather,
    "unfold": _unfold,
    "constant_pad_nd": _constant_pad,
    "reflection_pad2d": _reflection_pad,
    "replication_pad2d": _replication_pad,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _avg_pool,
    **dict.fromkeys(("adaptive_avg_pool2d", "_adaptive_avg_pool2d"), _adaptive_pool),
    "upsample_nearest2d": _nearest,
    "upsample_bilinear2d": _interpolated("linear", False),
    "_upsample_bilinear2d_aa": _interpolated("linear", True),
    "upsample_bicubic2d": _interpolated("cubic", False),
    "_upsample_bicubic2d_aa": _interpolated("cubic", True),
}
