"""Translations of ATen operations to ONNX: views, indexing, reductions, padding, pooling and resizing.

Their arguments and results are those of the translations in `operations`.
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch

from .graph import Length, OnnxGraph, Target, Value
from .operations import Numbers, Scalar, Translation, as_dtype, pair, require

END = 2**63 - 1  # of a slice up to the end of an axis
Size = int | Length


def _reshape(graph: OnnxGraph, results: list[Value], x: Value, *args: Any) -> str:
    """Reshape to the shape that both recordings have: constants, axes of x at the same place, and one inferred axis.

    Every further variable axis has a length that the operation's arguments state, or that of some axis of x.
    """
    stated = dict(enumerate(args[0])) if args and isinstance(args[0], list) else {}
    target: list[Size] = []
    for axis, lengths in enumerate(results[0].axes):
        if lengths[0] == lengths[1]:
            target.append(lengths[0])
        elif axis < x.ndim and x.axes[axis] == lengths:
            target.append(0)  # ONNX copies the length of x
        elif -1 not in target:
            target.append(-1)
        elif isinstance(length := stated.get(axis), Length):
            target.append(length)
        else:
            require(lengths in x.axes, "a view whose sizes are computed")
            target.append(graph.length(x, x.axes.index(lengths)))
    if any(isinstance(size, Length) for size in target):
        target = [graph.length(x, axis) if size == 0 else size for axis, size in enumerate(target)]
    return graph.add("Reshape", x, graph.ints(target))


def _permute(graph: OnnxGraph, _: list[Value], x: Value, order: Numbers) -> str:
    return graph.add("Transpose", x, perm=[axis % x.ndim for axis in order])


def _transpose(graph: OnnxGraph, _: list[Value], x: Value, axis: int, other: int) -> str:
    order = list(range(x.ndim))
    order[axis], order[other] = order[other], order[axis]
    return graph.add("Transpose", x, perm=order)


def _transpose_all(graph: OnnxGraph, _: list[Value], x: Value) -> str:
    return graph.add("Transpose", x, perm=list(range(x.ndim))[::-1])


def _unsqueeze(graph: OnnxGraph, _: list[Value], x: Value, axis: int) -> str:
    return graph.add("Unsqueeze", x, graph.ints([axis]))


def _squeeze(graph: OnnxGraph, _: list[Value], x: Value, axes: Numbers | int | None = None) -> str:
    candidates = range(x.ndim) if axes is None else pair(axes, 1)
    removed = [axis for axis in candidates if x.axes[axis] == (1, 1)]
    return graph.add("Squeeze", x, graph.ints(removed)) if removed else x.name


def _expand(graph: OnnxGraph, _: list[Value], x: Value, sizes: Target, *, implicit: bool = False) -> str:
    return graph.add("Expand", x, graph.ints([1 if size == -1 else size for size in sizes]))


def _filled(value: float, graph: OnnxGraph, results: list[Value], *args: Any, **__: Any) -> str:
    """A constant tensor: `zeros(sizes)` and the like, and `new_zeros(x, sizes)` and the like."""
    return graph.add("Expand", graph.scalar(value, results[0].dtype), graph.ints(args[-1]))


def _to_shape_of(op: str, graph: OnnxGraph, _: list[Value], x: Value, other: Value) -> str:
    return graph.add(op, x, graph.add("Shape", other))


def _arange(graph: OnnxGraph, results: list[Value], *bounds: Any, **__: Any) -> str:
    start, end, step = {1: (0, *bounds, 1), 2: (*bounds, 1), 3: bounds}[len(bounds)]
    return graph.add("Range", *(as_dtype(graph, bound, results[0].dtype) for bound in (start, end, step)))


def _select(graph: OnnxGraph, _: list[Value], x: Value, axis: int, index: int) -> str:
    return graph.add("Gather", x, graph.constant(torch.tensor(index)), axis=axis)


def _unbind(graph: OnnxGraph, results: list[Value], x: Value, axis: int = 0) -> list[str]:
    return [_select(graph, results, x, axis, index) for index in range(len(results))]


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


def _cat(graph: OnnxGraph, results: list[Value], tensors: Sequence[Value], axis: int = 0) -> str:
    parts = [tensor for tensor in tensors if tensor.shape != (0,)]  # PyTorch ignores empty vectors
    return graph.add("Concat", *(as_dtype(graph, part, results[0].dtype) for part in parts), axis=axis)


def _stack(graph: OnnxGraph, results: list[Value], tensors: Sequence[Value], axis: int = 0) -> str:
    parts = [graph.add("Unsqueeze", tensor, graph.ints([axis])) for tensor in tensors]
    return graph.add("Concat", *parts, axis=axis)


def _split(graph: OnnxGraph, results: list[Value], x: Value, _: Any, axis: int = 0) -> list[str]:
    require(all(part.axes[axis][0] == part.axes[axis][1] for part in results), "a split of an axis of variable length")
    if len(results) == 1:
        return [x.name]
    sizes = graph.ints([part.shape[axis] for part in results])
    return graph.names("Split", x, sizes, outputs=len(results), axis=axis)


def _cumsum(graph: OnnxGraph, results: list[Value], x: Value, axis: int, *, dtype: torch.dtype | None = None) -> str:
    return graph.add("CumSum", as_dtype(graph, x, results[0].dtype), graph.constant(torch.tensor(axis % x.ndim)))


def _roll(graph: OnnxGraph, results: list[Value], x: Value, shifts: Numbers, axes: Numbers = ()) -> str:
    require(len(axes) > 0, "a roll of all elements")
    rolled = x.name
    for shift, axis in zip(pair(shifts, 1), axes, strict=True):
        parts = (graph.ints([-shift]), graph.ints([END])), (graph.ints([0]), graph.ints([-shift]))
        slices = [graph.add("Slice", rolled, *bounds, graph.ints([axis])) for bounds in parts]
        rolled = rolled if shift == 0 else graph.add("Concat", *slices, axis=axis)
    return rolled


def _flip(graph: OnnxGraph, _: list[Value], x: Value, axes: Numbers) -> str:
    count = len(axes)
    bounds = [graph.ints([value] * count) for value in (-1, -END)]
    return graph.add("Slice", x, *bounds, graph.ints(axes), graph.ints([-1] * count))


def _repeat(graph: OnnxGraph, _: list[Value], x: Value, repeats: Target) -> str:
    new_axes = len(repeats) - x.ndim
    unsqueezed = graph.add("Unsqueeze", x, graph.ints(range(new_axes))) if new_axes else x
    return graph.add("Tile", unsqueezed, graph.ints(repeats))


def _pixel_shuffle(graph: OnnxGraph, _: list[Value], x: Value, factor: int) -> str:
    return graph.add("DepthToSpace", x, blocksize=factor, mode="CRD")


def _index_select(graph: OnnxGraph, _: list[Value], x: Value, axis: int, index: Value) -> str:
    return graph.add("Gather", x, index, axis=axis)


def _index(graph: OnnxGraph, _: list[Value], x: Value, indices: Sequence[Value | None]) -> str:
    indexed = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    require(len(indexed) == 1 and indexed[0][1].dtype in (torch.int64, torch.int32), "an index of several axes")
    ((axis, index),) = indexed
    return graph.add("Gather", x, index, axis=axis)


def _embedding(graph: OnnxGraph, _: list[Value], weight: Value, index: Value, *__: Any) -> str:
    return graph.add("Gather", weight, index, axis=0)


def _gather(graph: OnnxGraph, _: list[Value], x: Value, axis: int, index: Value, *, sparse_grad: bool = False) -> str:
    return graph.add("GatherElements", x, index, axis=axis)


def _unfold(graph: OnnxGraph, results: list[Value], x: Value, axis: int, size: int, step: int) -> str:
    """Windows along an axis; their elements become a new last axis."""
    axis %= x.ndim
    require(x.axes[axis][0] == x.axes[axis][1], "windows along an axis of variable length")
    starts = torch.arange(results[0].shape[axis]) * step
    windows = graph.add("Gather", x, graph.constant(starts[:, None] + torch.arange(size)), axis=axis)
    order = [other for other in range(x.ndim + 1) if other != axis + 1]
    return graph.add("Transpose", windows, perm=[*order, axis + 1])


def _pads(x: Value, padding: Numbers) -> list[int]:
    """Paddings in ONNX's order: the beginnings of all axes, then the ends."""
    count = len(padding) // 2
    begin = [0] * (x.ndim - count) + list(padding[::2])[::-1]
    end = [0] * (x.ndim - count) + list(padding[1::2])[::-1]
    return begin + end


def _constant_pad(graph: OnnxGraph, _: list[Value], x: Value, padding: Numbers, value: float = 0) -> str:
    return graph.add("Pad", x, graph.ints(_pads(x, padding)), graph.scalar(value, x.dtype))


def _pad(mode: str, graph: OnnxGraph, _: list[Value], x: Value, padding: Numbers) -> str:
    return graph.add("Pad", x, graph.ints(_pads(x, padding)), mode=mode)


def _window(kernel: Numbers, stride: Numbers, padding: Numbers, ceil_mode: bool) -> dict[str, Any]:
    """ONNX's attributes of a pooling window."""
    sizes = pair(kernel)
    strides, pads = pair(stride) or sizes, pair(padding) * 2
    return {"kernel_shape": sizes, "strides": strides, "pads": pads, "ceil_mode": int(ceil_mode)}


def _max_pool(
    graph: OnnxGraph,
    _: list[Value],
    x: Value,
    kernel: Numbers,
    stride: Numbers,
    padding: Numbers,
    dilation: Numbers,
    ceil_mode: bool,
) -> list[str]:
    return [graph.add("MaxPool", x, dilations=pair(dilation), **_window(kernel, stride, padding, ceil_mode))]


def _avg_pool(
    graph: OnnxGraph,
    _: list[Value],
    x: Value,
    kernel: Numbers,
    stride: Numbers,
    padding: Numbers,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> str:
    require(divisor is None, "an average with divisor_override")
    window = _window(kernel, stride, padding, ceil_mode)
    return graph.add("AveragePool", x, count_include_pad=int(count_include_pad), **window)


def _adaptive_pool(graph: OnnxGraph, _: list[Value], x: Value, sizes: Numbers) -> str:
    if pair(sizes) == [1, 1]:
        return graph.add("GlobalAveragePool", x)
    sides = list(zip(x.axes[2:], pair(sizes), strict=True))
    are_divisible = all(first == second and first % size == 0 for (first, second), size in sides)
    require(are_divisible, "an adaptive pool whose cells differ in size")
    kernel = [first // size for (first, _), size in sides]
    return graph.add("AveragePool", x, kernel_shape=kernel, strides=kernel)


def _reduce(
    op: str,
    graph: OnnxGraph,
    results: list[Value],
    x: Value,
    dims: Numbers | int | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> str:
    converted = x if dtype in (None, x.dtype) else graph.cast(x, dtype or x.dtype)
    axes = None if dims is None or dims == [] else graph.ints([dims] if isinstance(dims, int) else dims)
    return graph.add(op, converted, axes, keepdims=int(keepdim))


def _norm(
    graph: OnnxGraph, results: list[Value], x: Value, order: Scalar | None = 2, *rest: Any, dtype: Any = None
) -> str:
    ops = {1: "ReduceL1", 2: "ReduceL2", None: "ReduceL2"}
    require(order in ops and dtype in (None, x.dtype), f"a norm of order {order}")
    return _reduce(ops[order], graph, results, x, *rest)


def _variance(
    graph: OnnxGraph, results: list[Value], x: Value, dims: Any = None, *, correction: Any = None, keepdim: bool = False
) -> str:
    reduced = list(range(x.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    require(all(x.axes[axis][0] == x.axes[axis][1] for axis in reduced), "a variance over axes of variable length")
    count, axes = prod(x.shape[axis] for axis in reduced), graph.ints(reduced)
    deviation = graph.add("Sub", x, graph.add("ReduceMean", x, axes))
    mean = graph.add("ReduceMean", graph.add("Mul", deviation, deviation), axes, keepdims=int(keepdim))
    return graph.add("Mul", mean, graph.scalar(count / (count - (1 if correction is None else correction)), x.dtype))


def _resize(graph: OnnxGraph, x: Value, sizes: Target | None, scales: Sequence[float] | None, **options: Any) -> str:
    """Resize to (height, width), or by factors if there is no size."""
    if sizes is None:
        assert scales is not None
        factors = graph.constant(torch.tensor([1.0, 1.0, *scales]))
        return graph.add("Resize", x, None, factors, **options)
    batch_and_chs = Length(graph.add("Shape", x, start=0, end=2))  # two elements
    return graph.add("Resize", x, None, None, graph.ints([batch_and_chs, *sizes]), **options)


def _nearest(graph: OnnxGraph, _: list[Value], x: Value, sizes: Target | None, *scales: Any) -> str:
    options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _resize(graph, x, sizes, scales[0] if sizes is None else None, **options)


def _interpolation(mode: str, antialias: bool) -> Translation:
    """The translation of `upsample_*` functions for a mode of ONNX's Resize."""

    def translate(
        graph: OnnxGraph, _: list[Value], x: Value, sizes: Target | None, align_corners: bool, *scales: Any
    ) -> str:
        transform = "align_corners" if align_corners else "half_pixel"
        options = {"mode": mode, "coordinate_transformation_mode": transform, "antialias": int(antialias)}
        cubic = {"cubic_coeff_a": -0.5 if antialias else -0.75} if mode == "cubic" else {}
        return _resize(graph, x, sizes, scales[0] if sizes is None else None, **options, **cubic)

    return translate


def _grid_sample(
    graph: OnnxGraph, _: list[Value], x: Value, grid: Value, mode: int, padding: int, align_corners: bool
) -> str:
    options: dict[str, Any] = {
        "mode": ("linear", "nearest", "cubic")[mode],
        "padding_mode": ("zeros", "border", "reflection")[padding],
    }
    return graph.add("GridSample", x, grid, align_corners=int(align_corners), **options)


REDUCTIONS = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin"}
SHAPES: dict[str, Translation] = {
    **{name: partial(_reduce, op) for name, op in REDUCTIONS.items()},
    "linalg_vector_norm": _norm,
    "norm": _norm,
    "var": _variance,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "flatten", "unflatten"), _reshape),
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose_all,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    **dict.fromkeys(("zeros", "new_zeros", "empty", "new_empty"), partial(_filled, 0)),
    **dict.fromkeys(("ones", "new_ones"), partial(_filled, 1)),
    "expand_as": partial(_to_shape_of, "Expand"),
    "view_as": partial(_to_shape_of, "Reshape"),
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
    "reflection_pad2d": partial(_pad, "reflect"),
    "replication_pad2d": partial(_pad, "edge"),
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _avg_pool,
    **dict.fromkeys(("adaptive_avg_pool2d", "_adaptive_avg_pool2d"), _adaptive_pool),
    "upsample_nearest2d": _nearest,
    "upsample_bilinear2d": _interpolation("linear", False),
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d"), _grid_sample),
    "_upsample_bilinear2d_aa": _interpolation("linear", True),
    "upsample_bicubic2d": _interpolation("cubic", False),
    "_upsample_bicubic2d_aa": _interpolation("cubic", True),
}
