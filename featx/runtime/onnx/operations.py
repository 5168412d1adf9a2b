"""Translations of ATen operations to ONNX: layers and arithmetic; `shapes` has indexing, reductions and resizing.

The arguments of a translation are the graph, the recorded results of the operation, all positional arguments of the
operation in ATen's order, with defaults, and the keyword-only arguments that were passed. It adds nodes to the graph,
and returns the name of the result, or a list of names for several results.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from .graph import Length, OnnxGraph, Value

Scalar = int | float | bool
Numbers = Sequence[int]
Translation = Callable[..., str | list[str]]


class UntranslatedError(Exception):
    """An operation, or one of its options, has no translation to ONNX."""


def pair(values: Numbers | int, count: int = 2) -> list[int]:
    """One number per axis; a single number is repeated `count` times."""
    numbers = [values] if isinstance(values, int) else list(values)
    return numbers * count if len(numbers) == 1 else numbers


def require(is_supported: bool, option: str) -> None:
    """Raise UntranslatedError that names an option of an operation, unless the option is supported."""
    if not is_supported:
        raise UntranslatedError(option)


def promoted(graph: OnnxGraph, x: Any, other: Any, *numbers: Scalar) -> list[str]:
    """Names of two operands and of numbers, converted to the dtype to which PyTorch promotes the operands."""
    dtype = torch.result_type(_sample(x), _sample(other))
    return [as_dtype(graph, operand, dtype) for operand in (x, other, *numbers)]


def _sample(operand: Any) -> Any:
    """A tensor or number with the type promotion of the operand."""
    return torch.empty((1,) * operand.ndim, dtype=operand.dtype) if isinstance(operand, Value) else operand


def as_dtype(graph: OnnxGraph, operand: Any, dtype: torch.dtype) -> str:
    """Name of a tensor, a length or a number, converted to the dtype."""
    if isinstance(operand, Length):
        return graph.cast(graph.add("Squeeze", operand), dtype)
    if not isinstance(operand, Value):
        return graph.scalar(operand, dtype)
    return operand.name if operand.dtype == dtype else graph.cast(operand, dtype)


def _unary(op: str, graph: OnnxGraph, _: list[Value], x: Value, **attributes: Any) -> str:
    return graph.add(op, x, **attributes)


def _binary(op: str, graph: OnnxGraph, _: list[Value], x: Value, other: Any) -> str:
    return graph.add(op, *promoted(graph, x, other))


def _add_or_sub(op: str, graph: OnnxGraph, _: list[Value], x: Value, other: Any, alpha: Scalar = 1) -> str:
    if alpha == 1:
        return graph.add(op, *promoted(graph, x, other))
    first, second, factor = promoted(graph, x, other, alpha)
    return graph.add(op, first, graph.add("Mul", second, factor))


def _div(graph: OnnxGraph, results: list[Value], x: Value, other: Any, *, rounding_mode: str | None = None) -> str:
    require(rounding_mode in (None, "floor"), f"rounding_mode={rounding_mode!r}")
    if not results[0].dtype.is_floating_point:
        require(rounding_mode == "floor", "a quotient of integers")
        return graph.add("Div", *promoted(graph, x, other))
    quotient = graph.add("Div", *promoted(graph, x, other))
    return quotient if rounding_mode is None else graph.add("Floor", quotient)


def _rsub(graph: OnnxGraph, results: list[Value], x: Value, other: Any, alpha: Scalar = 1) -> str:
    first, second, factor = promoted(graph, x, other, alpha)
    return graph.add("Sub", second, first if alpha == 1 else graph.add("Mul", first, factor))


def _pow(graph: OnnxGraph, _: list[Value], x: Value, exponent: Any) -> str:
    return graph.add("Mul", x, x) if exponent == 2 else graph.add("Pow", *promoted(graph, x, exponent))


def _rsqrt(graph: OnnxGraph, _: list[Value], x: Value) -> str:
    return graph.add("Reciprocal", graph.add("Sqrt", x))


def _silu(graph: OnnxGraph, _: list[Value], x: Value) -> str:
    return graph.add("Mul", x, graph.add("Sigmoid", x))


def _hardswish(graph: OnnxGraph, results: list[Value], x: Value) -> str:
    return graph.add("Mul", x, _hardsigmoid(graph, results, x))


def _hardsigmoid(graph: OnnxGraph, _: list[Value], x: Value) -> str:
    return graph.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)


def _clip(graph: OnnxGraph, _: list[Value], x: Value, minimum: Any = None, maximum: Any = None) -> str:
    bounds = [None if bound is None else as_dtype(graph, bound, x.dtype) for bound in (minimum, maximum)]
    return graph.add("Clip", x, *bounds)


def _leaky_relu(graph: OnnxGraph, _: list[Value], x: Value, slope: float = 0.01) -> str:
    return graph.add("LeakyRelu", x, alpha=slope)


def _elu(
    graph: OnnxGraph, _: list[Value], x: Value, alpha: Scalar = 1, scale: Scalar = 1, input_scale: Scalar = 1
) -> str:
    require(input_scale == 1, "elu with input_scale")
    y = graph.add("Elu", x, alpha=float(alpha))
    return y if scale == 1 else graph.add("Mul", y, graph.scalar(scale, x.dtype))


def _softplus(graph: OnnxGraph, _: list[Value], x: Value, beta: Scalar = 1, threshold: Scalar = 20) -> str:
    require((beta, threshold) == (1, 20), "softplus with a beta other than 1 or a threshold other than 20")
    return graph.add("Softplus", x)


def _prelu(graph: OnnxGraph, _: list[Value], x: Value, slope: Value) -> str:
    shape = [-1, *[1] * (x.ndim - 2)] if x.ndim > 1 else [-1]
    return graph.add("PRelu", x, graph.add("Reshape", slope, graph.ints(shape)))


def _convolution(
    graph: OnnxGraph,
    _: list[Value],
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Numbers,
    padding: Numbers,
    dilation: Numbers,
    transposed: bool,
    output_padding: Numbers,
    groups: int,
) -> str:
    axes = x.ndim - 2
    attributes: dict[str, Any] = {"strides": pair(stride, axes), "pads": pair(padding, axes) * 2}
    attributes |= {"dilations": pair(dilation, axes), "group": groups, "kernel_shape": list(weight.shape[2:])}
    if not transposed:
        return graph.add("Conv", x, weight, bias, **attributes)
    return graph.add("ConvTranspose", x, weight, bias, output_padding=pair(output_padding, axes), **attributes)


def _conv(graph: OnnxGraph, results: list[Value], *args: Any) -> str:
    """`conv2d(x, weight, bias, stride, padding, dilation, groups)` and those of other dimensions."""
    *shared, groups = args
    return _convolution(graph, results, *shared, transposed=False, output_padding=(0,), groups=groups)


def _linear(graph: OnnxGraph, results: list[Value], x: Value, weight: Value, bias: Value | None = None) -> str:
    require(weight.ndim == 2, "a linear layer whose weight is not a matrix")
    if weight.tensor is None:
        transposed = graph.add("Transpose", weight, perm=[1, 0])
    else:
        transposed = graph.constant(weight.tensor.t(), f"{weight.name}.transposed")
    y = graph.add("MatMul", x, transposed)
    return y if bias is None else graph.add("Add", y, bias)


def _addmm(
    graph: OnnxGraph, _: list[Value], bias: Value, a: Value, b: Value, *, beta: Scalar = 1, alpha: Scalar = 1
) -> str:
    return graph.add("Gemm", a, b, bias, alpha=float(alpha), beta=float(beta))


def _addcmul(graph: OnnxGraph, results: list[Value], x: Value, a: Value, b: Value, *, value: Scalar = 1) -> str:
    return graph.add("Add", x, _scaled(graph, graph.add("Mul", a, b), value, results[0].dtype))


def _baddbmm(
    graph: OnnxGraph, results: list[Value], bias: Value, a: Value, b: Value, *, beta: Scalar = 1, alpha: Scalar = 1
) -> str:
    product = _scaled(graph, graph.add("MatMul", a, b), alpha, results[0].dtype)
    return graph.add("Add", _scaled(graph, bias.name, beta, results[0].dtype), product)


def _scaled(graph: OnnxGraph, x: str, factor: Scalar, dtype: torch.dtype) -> str:
    return x if factor == 1 else graph.add("Mul", x, graph.scalar(factor, dtype))


def _batch_norm(
    graph: OnnxGraph,
    _: list[Value],
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    *rest: Any,
) -> list[str]:
    training, eps = (rest[0], rest[2]) if isinstance(rest[0], bool) else (False, rest[1])
    require(not training and mean is not None and variance is not None, "a batch norm with the statistics of the batch")
    ones, zeros = torch.ones(x.shape[1]), torch.zeros(x.shape[1])
    scale, shift = weight or graph.constant(ones), bias or graph.constant(zeros)
    return [graph.add("BatchNormalization", x, scale, shift, mean, variance, epsilon=eps)]


def _layer_norm(
    graph: OnnxGraph, _: list[Value], x: Value, shape: Numbers, weight: Value | None, bias: Value | None, eps: float
) -> list[str]:
    scale, shift = weight or graph.constant(torch.ones(shape)), bias or graph.constant(torch.zeros(shape))
    return [graph.add("LayerNormalization", x, scale, shift, axis=-len(shape), epsilon=eps)]


def _group_norm(
    graph: OnnxGraph,
    _: list[Value],
    x: Value,
    groups: int,
    weight: Value | None,
    bias: Value | None,
    eps: float,
    cudnn_enabled: bool,
) -> str:
    ones, zeros = graph.constant(torch.ones(groups)), graph.constant(torch.zeros(groups))
    grouped = graph.add("Reshape", x, graph.ints([0, groups, -1]))
    normed = graph.add("InstanceNormalization", grouped, ones, zeros, epsilon=eps)
    y = graph.add("Reshape", normed, graph.add("Shape", x))
    for op, factor in (("Mul", weight), ("Add", bias)):
        if factor is not None:
            y = graph.add(op, y, graph.add("Reshape", factor, graph.ints([-1, *[1] * (x.ndim - 2)])))
    return y


def _rms_norm(
    graph: OnnxGraph, results: list[Value], x: Value, shape: Numbers, weight: Value | None, eps: float | None = None
) -> list[str]:
    axes = graph.ints(range(-len(shape), 0))
    mean = graph.add("ReduceMean", graph.add("Mul", x, x), axes)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = graph.add("Div", x, graph.add("Sqrt", graph.add("Add", mean, graph.scalar(eps, x.dtype))))
    return [y if weight is None else graph.add("Mul", y, weight)]


def _softmax(graph: OnnxGraph, _: list[Value], x: Value, axis: int, half_to_float: bool = False) -> str:
    return graph.add("Softmax", x, axis=axis)


def _attention(
    graph: OnnxGraph,
    _: list[Value],
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> str:
    require(not is_causal and not enable_gqa, "causal or grouped attention")
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    axes = list(range(key.ndim))
    transposed = graph.add("Transpose", key, perm=[*axes[:-2], axes[-1], axes[-2]])
    scores = graph.add("MatMul", graph.add("Mul", query, graph.scalar(factor, query.dtype)), transposed)
    if mask is not None and mask.dtype == torch.bool:
        scores = graph.add("Where", mask, scores, graph.scalar(-torch.inf, query.dtype))
    elif mask is not None:
        scores = graph.add("Add", scores, mask)
    return graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)


def _where(graph: OnnxGraph, results: list[Value], condition: Value, x: Any, other: Any) -> str:
    return graph.add("Where", condition, *(as_dtype(graph, branch, results[0].dtype) for branch in (x, other)))


def _masked_fill(graph: OnnxGraph, _: list[Value], x: Value, mask: Value, value: Any) -> str:
    return graph.add("Where", mask, as_dtype(graph, value, x.dtype), x)


def _to(graph: OnnxGraph, results: list[Value], x: Value, *_: Any, **__: Any) -> str:
    return x.name if x.dtype == results[0].dtype else graph.cast(x, results[0].dtype)


def _identity(graph: OnnxGraph, _: list[Value], x: Value, *__: Any, **___: Any) -> str:
    return x.name


UNARY = {
    **{name: name.capitalize() for name in ("relu", "sigmoid", "tanh", "exp", "sqrt", "erf", "abs", "neg", "floor")},
    **{name: name.capitalize() for name in ("ceil", "round", "log", "sin", "cos", "reciprocal", "mish", "sign")},
    "gelu": "Gelu",  # with its keyword `approximate` as an attribute
    "logical_not": "Not",
    "bitwise_not": "Not",
}
BINARY = {
    "mul": "Mul",
    "maximum": "Max",
    "minimum": "Min",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "logical_and": "And",
    "bitwise_and": "And",
    "logical_or": "Or",
    "bitwise_or": "Or",
    "matmul": "MatMul",
    "bmm": "MatMul",
    "mm": "MatMul",
}
# By name of the operation; in-place operations, which end with an underscore, use the translation without it.
OPERATIONS: dict[str, Translation] = {
    **{name: partial(_unary, op) for name, op in UNARY.items()},
    **{name: partial(_binary, op) for name, op in BINARY.items()},
    "add": partial(_add_or_sub, "Add"),
    "sub": partial(_add_or_sub, "Sub"),
    "rsub": _rsub,
    "floor_divide": partial(_div, rounding_mode="floor"),
    "div": _div,
    "pow": _pow,
    "rsqrt": _rsqrt,
    "silu": _silu,
    "hardswish": _hardswish,
    "hardsigmoid": _hardsigmoid,
    "hardtanh": _clip,
    "clamp": _clip,
    "clamp_min": _clip,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "softplus": _softplus,
    "_prelu_kernel": _prelu,
    "convolution": _convolution,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "linear": _linear,
    "addmm": _addmm,
    "addcmul": _addcmul,
    "baddbmm": _baddbmm,
    "native_batch_norm": _batch_norm,
    **dict.fromkeys(("_native_batch_norm_legit_no_training", "_native_batch_norm_legit"), _batch_norm),
    "native_layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "_fused_rms_norm": _rms_norm,
    "_softmax": _softmax,
    "scaled_dot_product_attention": _attention,
    "where": _where,
    "masked_fill": _masked_fill,
    "_to_copy": _to,
    **dict.fromkeys(("clone", "detach", "alias", "contiguous", "lift_fresh_copy", "dropout"), _identity),
}
