"""What ATen operations are in ONNX: layers and arithmetic. Those that move or reduce are in `onnx_shapes`.

Every function takes the graph to add to, what the operation returned as it was recorded, and the operation's arguments
in ATen's order, and returns the name of the result, or the names where there are several.
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
    """An operation, or a use of one, that is not in ONNX or has no translation here."""


def pair(values: Numbers | int, count: int = 2) -> list[int]:
    """A number for each axis, of what may be one number for all."""
    listed = [values] if isinstance(values, int) else list(values)
    return listed * count if len(listed) == 1 else listed


def require(known: bool, what: str) -> None:
    """UntranslatedError that names a use of an operation, unless it is known."""
    if not known:
        raise UntranslatedError(what)


def alike(graph: OnnxGraph, x: Any, other: Any, *numbers: Scalar) -> list[str]:
    """Names of two operands, and of numbers, in the dtype that PyTorch computes them in."""
    dtype = torch.result_type(_sample(x), _sample(other))
    return [as_dtype(graph, one, dtype) for one in (x, other, *numbers)]


def _sample(operand: Any) -> Any:
    """A tensor that promotes as the operand does."""
    return torch.empty((1,) * operand.ndim, dtype=operand.dtype) if isinstance(operand, Value) else operand


def as_dtype(graph: OnnxGraph, operand: Any, dtype: torch.dtype) -> str:
    """The name of a tensor, a length or a number in that dtype."""
    if isinstance(operand, Length):
        return graph.cast(graph.add("Squeeze", operand), dtype)
    if not isinstance(operand, Value):
        return graph.scalar(operand, dtype)
    return operand.name if operand.dtype == dtype else graph.cast(operand, dtype)


def _unary(kind: str, graph: OnnxGraph, _: list[Value], x: Value, **attributes: Any) -> str:
    return graph.add(kind, x, **attributes)


def _binary(kind: str, graph: OnnxGraph, _: list[Value], x: Value, other: Any) -> str:
    return graph.add(kind, *alike(graph, x, other))


def _sum_of_two(kind: str, graph: OnnxGraph, _: list[Value], x: Value, other: Any, alpha: Scalar = 1) -> str:
    if alpha == 1:
        return graph.add(kind, *alike(graph, x, other))
    first, second, factor = alike(graph, x, other, alpha)
    return graph.add(kind, first, graph.add("Mul", second, factor))


def _div(graph: OnnxGraph, made: list[Value], x: Value, other: Any, *, rounding_mode: str | None = None) -> str:
    require(rounding_mode in (None, "floor"), f"rounding_mode={rounding_mode!r}")
    if not made[0].dtype.is_floating_point:
        require(rounding_mode == "floor", "a quotient of integers")
        return graph.add("Div", *alike(graph, x, other))
    quotient = graph.add("Div", *alike(graph, x, other))
    return quotient if rounding_mode is None else graph.add("Floor", quotient)


def _rsub(graph: OnnxGraph, made: list[Value], x: Value, other: Any, alpha: Scalar = 1) -> str:
    first, second, factor = alike(graph, x, other, alpha)
    return graph.add("Sub", second, first if alpha == 1 else graph.add("Mul", first, factor))


def _pow(graph: OnnxGraph, _: list[Value], x: Value, exponent: Any) -> str:
    return graph.add("Mul", x, x) if exponent == 2 else graph.add("Pow", *alike(graph, x, exponent))


def _rsqrt(graph: OnnxGraph, _: list[Value], x: Value) -> str:
    return graph.add("Reciprocal", graph.add("Sqrt", x))


def _silu(graph: OnnxGraph, _: list[Value], x: Value) -> str:
    return graph.add("Mul", x, graph.add("Sigmoid", x))


def _hardswish(graph: OnnxGraph, made: list[Value], x: Value) -> str:
    return graph.add("Mul", x, _hardsigmoid(graph, made, x))


def _hardsigmoid(graph: OnnxGraph, _: list[Value], x: Value) -> str:
    return graph.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)


def _gelu(graph: OnnxGraph, _: list[Value], x: Value, *, approximate: str = "none") -> str:
    return graph.add("Gelu", x, approximate=approximate)


def _clip(graph: OnnxGraph, _: list[Value], x: Value, least: Any = None, most: Any = None) -> str:
    bounds = [None if bound is None else as_dtype(graph, bound, x.dtype) for bound in (least, most)]
    return graph.add("Clip", x, *bounds)


def _leaky_relu(graph: OnnxGraph, _: list[Value], x: Value, slope: float = 0.01) -> str:
    return graph.add("LeakyRelu", x, alpha=slope)


def _elu(
    graph: OnnxGraph, _: list[Value], x: Value, alpha: Scalar = 1, scale: Scalar = 1, input_scale: Scalar = 1
) -> str:
    require(input_scale == 1, "elu with a scale of its input")
    y = graph.add("Elu", x, alpha=float(alpha))
    return y if scale == 1 else graph.add("Mul", y, graph.scalar(scale, x.dtype))


def _softplus(graph: OnnxGraph, _: list[Value], x: Value, beta: Scalar = 1, threshold: Scalar = 20) -> str:
    require((beta, threshold) == (1, 20), "softplus with other numbers than 1 and 20")
    return graph.add("Softplus", x)


def _prelu(graph: OnnxGraph, _: list[Value], x: Value, slope: Value) -> str:
    shape = [-1, *[1] * (x.ndim - 2)] if x.ndim > 1 else [-1]
    return graph.add("PRelu", x, graph.add("Reshape", slope, graph.ints(shape)))


def _convolution(
    graph: OnnxGraph,
    _: list[Value],
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Numbers = (1,),
    padding: Numbers = (0,),
    dilation: Numbers = (1,),
    transposed: bool = False,
    output_padding: Numbers = (0,),
    groups: int = 1,
) -> str:
    axes = x.ndim - 2
    pads = pair(padding, axes)
    stated = {"strides": pair(stride, axes), "pads": pads * 2, "dilations": pair(dilation, axes), "group": groups}
    kernel = list(weight.shape[2:])
    if not transposed:
        return graph.add("Conv", x, weight, bias, kernel_shape=kernel, **stated)
    more = pair(output_padding, axes)
    return graph.add("ConvTranspose", x, weight, bias, kernel_shape=kernel, output_padding=more, **stated)


def _conv(
    graph: OnnxGraph,
    made: list[Value],
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Numbers = (1,),
    padding: Numbers = (0,),
    dilation: Numbers = (1,),
    groups: int = 1,
) -> str:
    return _convolution(graph, made, x, weight, bias, stride, padding, dilation, groups=groups)


def _linear(graph: OnnxGraph, made: list[Value], x: Value, weight: Value, bias: Value | None = None) -> str:
    require(weight.ndim == 2, "a linear layer whose weight is no matrix")
    if weight.tensor is None:
        turned = graph.add("Transpose", weight, perm=[1, 0])
    else:
        turned = graph.constant(weight.tensor.t(), f"{weight.name}.transposed")
    y = graph.add("MatMul", x, turned)
    return y if bias is None else graph.add("Add", y, bias)


def _addmm(
    graph: OnnxGraph, _: list[Value], bias: Value, a: Value, b: Value, *, beta: Scalar = 1, alpha: Scalar = 1
) -> str:
    return graph.add("Gemm", a, b, bias, alpha=float(alpha), beta=float(beta))


def _addcmul(graph: OnnxGraph, made: list[Value], x: Value, a: Value, b: Value, *, value: Scalar = 1) -> str:
    return graph.add("Add", x, _scaled(graph, graph.add("Mul", a, b), value, made[0].dtype))


def _baddbmm(
    graph: OnnxGraph, made: list[Value], bias: Value, a: Value, b: Value, *, beta: Scalar = 1, alpha: Scalar = 1
) -> str:
    product = _scaled(graph, graph.add("MatMul", a, b), alpha, made[0].dtype)
    return graph.add("Add", _scaled(graph, bias.name, beta, made[0].dtype), product)


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
    require(not training and mean is not None and variance is not None, "a batch norm of the batch's own statistics")
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
    for kind, factor in (("Mul", weight), ("Add", bias)):
        if factor is not None:
            y = graph.add(kind, y, graph.add("Reshape", factor, graph.ints([-1, *[1] * (x.ndim - 2)])))
    return y


def _rms_norm(
    graph: OnnxGraph, made: list[Value], x: Value, shape: Numbers, weight: Value | None, eps: float | None = None
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
    turned = graph.add("Transpose", key, perm=[*axes[:-2], axes[-1], axes[-2]])
    scores = graph.add("MatMul", graph.add("Mul", query, graph.scalar(factor, query.dtype)), turned)
    if mask is not None and mask.dtype == torch.bool:
        scores = graph.add("Where", mask, scores, graph.scalar(-torch.inf, query.dtype))
    elif mask is not None:
        scores = graph.add("Add", scores, mask)
    return graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)


def _where(graph: OnnxGraph, made: list[Value], condition: Value, x: Any, other: Any) -> str:
    return graph.add("Where", condition, *(as_dtype(graph, one, made[0].dtype) for one in (x, other)))


def _masked_fill(graph: OnnxGraph, _: list[Value], x: Value, mask: Value, value: Any) -> str:
    return graph.add("Where", mask, as_dtype(graph, value, x.dtype), x)


def _to(graph: OnnxGraph, made: list[Value], x: Value, *_: Any, **__: Any) -> str:
    return x.name if x.dtype == made[0].dtype else graph.cast(x, made[0].dtype)


def _same(graph: OnnxGraph, _: list[Value], x: Value, *__: Any, **___: Any) -> str:
    return x.name


UNARY = {
    **{name: name.capitalize() for name in ("relu", "sigmoid", "tanh", "exp", "sqrt", "erf", "abs", "neg", "floor")},
    **{name: name.capitalize() for name in ("ceil", "round", "log", "sin", "cos", "reciprocal", "mish", "sign")},
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
# By the name of the operation, without the underscore at the end of those that write over what they are given.
OPERATIONS: dict[str, Translation] = {
    **{name: partial(_unary, kind) for name, kind in UNARY.items()},
    **{name: partial(_binary, kind) for name, kind in BINARY.items()},
    "add": partial(_sum_of_two, "Add"),
    "sub": partial(_sum_of_two, "Sub"),
    "rsub": _rsub,
    "floor_divide": partial(_div, rounding_mode="floor"),
    "div": _div,
    "pow": _pow,
    "rsqrt": _rsqrt,
    "silu": _silu,
    "hardswish": _hardswish,
    "hardsigmoid": _hardsigmoid,
    "gelu": _gelu,
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
    **dict.fromkeys(("clone", "detach", "alias", "contiguous", "lift_fresh_copy", "dropout"), _same),
}
