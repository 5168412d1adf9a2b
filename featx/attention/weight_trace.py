"""Trace one module's forward pass, and prove which tensor holds its attention weights.

The inputs of `F.scaled_dot_product_attention` determine the weights in it (https://arxiv.org/abs/1706.03762), though
the kernel does not return them. In a module that computes attention step by step, the weights are the output of a
softmax over the last axis that multiplies the values, unchanged except by dropout and casts. Any operation in between
that mixes heads or changes weights ends the trace, and nothing is proven.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import ArgumentError

SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
SAME_WEIGHTS = (F.dropout, torch.dropout, Tensor.to, Tensor.type_as, Tensor.float, Tensor.contiguous)
MATRIX_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
PRODUCTS = (torch.mul, Tensor.mul, Tensor.__mul__)


@torch.no_grad()
def probabilities(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights inside `F.scaled_dot_product_attention` before dropout: softmax(query keyᵀ · scale + mask).

    Args:
        query: (..., heads, queries, dim), cast as the kernel does under autocast.
        key: (..., heads, keys, dim), cast likewise.
        attn_mask: a boolean mask of the allowed keys, or a mask that is added to the scores.
        is_causal: mask the keys after each query.
        scale: of the scores; None for 1 / sqrt(dim).
        enable_gqa: repeat the heads of `key` to those of `query`.

    Returns:
        (..., heads, queries, keys) in float32, or in the inputs' precision if that is higher. A query whose keys are
        all masked has zero weights.
    """
    query, key = as_computed(query), as_computed(key)
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    with torch.autocast(query.device.type, enabled=False):
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None:
            allowed = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if allowed else scores + as_computed(attn_mask)
        return scores.softmax(-1).masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0.0)


@torch.no_grad()
def gradient_of_weights(output: Tensor, value: Tensor, heads: int) -> Tensor:
    """Gradient with respect to the weights in `weights @ value`, from the gradient of the product: output valueᵀ.

    Args:
        output: the gradient of the product, (..., heads, queries, dim).
        value: (..., heads, keys, dim); fewer heads are repeated.
        heads: the number of heads.
    """
    value = value.repeat_interleave(heads // value.shape[-3], dim=-3)
    return precise(output) @ precise(value).transpose(-2, -1)


def as_computed(x: Tensor) -> Tensor:
    """The values that a kernel reads under the current autocast mode, in float32 or higher precision."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype == torch.float32:
        x = x.to(torch.get_autocast_dtype(device))
    return precise(x)


def precise(x: Tensor) -> Tensor:
    """Detach; cast float16 and bfloat16 to float32."""
    x = x.detach()
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """Attention weights (B, heads, queries, keys), detached, and the tensor that their gradient is computed from.

    Attributes:
        values: the weights.
        source: a tensor of the graph.
        to_gradient: maps the gradient of `source` to the gradient of the weights.
    """

    values: Tensor
    source: Tensor
    to_gradient: Callable[[Tensor], Tensor] = precise


class WeightTrace(TorchFunctionMode):
    """Traces the calls inside one module. Afterwards `proven` holds the weights that it used.

    Args:
        separable: the weights multiply keys elementwise, as in MobileViTv2, instead of values in a matrix product.
        grow: start the graph at the weights if nothing before them requires a gradient.
    """

    def __init__(self, separable: bool = False, grow: bool = False) -> None:
        super().__init__()
        self.products = PRODUCTS if separable else MATRIX_PRODUCTS
        self.grow = grow
        self.proven: list[AttentionWeights] = []
        self._weights: dict[int, tuple[Tensor, Tensor]] = {}  # by id: the tensor, and the softmax it came from
        self._states: dict[int, int | Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._record_fused(output, *args, **kwargs)
        if func in SOFTMAX and _over_last_axis(output, args, kwargs):
            output = self._begin(output)
            self._follow(output, output)
        elif func in SAME_WEIGHTS and (origin := self._origin(args[0] if args else kwargs.get("input"))) is not None:
            self._follow(output, origin)
        elif func in self.products:
            self._record_product(args)
        return output

    def unchanged(self) -> bool:
        """Whether the weights were not modified in place after they were proven."""
        return all(self._is_unchanged(weights.source) for weights in self.proven)

    def _is_unchanged(self, x: Tensor) -> bool:
        state = self._states.get(id(x))
        if isinstance(state, Tensor):
            return torch.equal(x, state)
        return state is None or state == x._version

    def _record_fused(
        self,
        output: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        output = self._begin(output)
        values = probabilities(query, key, attn_mask, is_causal, scale, enable_gqa)
        value, heads = value.detach(), query.shape[-3]

        def to_gradient(gradient: Tensor) -> Tensor:
            return gradient_of_weights(gradient, value, heads)

        if self.grow and dropout_p:
            raise ArgumentError(
                f"gradients=True with fused attention that drops weights (rate {dropout_p}): the kernel does not tell "
                "which it dropped; call eval() on the attention modules, or build the model with a rate of 0"
            )
        if self.grow:  # only then the gradient of the output is read
            self._states[id(output)] = _state(output)
        self.proven.append(AttentionWeights(values, output, to_gradient))
        return output

    def _begin(self, x: Tensor) -> Tensor:
        """The same values; with `grow`, as part of a graph."""
        if self.grow and not x.requires_grad and torch.is_grad_enabled():
            return x.requires_grad_().clone()  # a clone: in-place operations on a leaf of the graph raise
        return x

    def _follow(self, x: Tensor, origin: Tensor) -> None:
        self._weights[id(x)] = x, origin
        self._states.setdefault(id(x), _state(x))

    def _origin(self, x: object) -> Tensor | None:
        """The softmax output whose values `x` still holds, or None."""
        if id(x) not in self._weights:
            return None
        tensor, origin = self._weights[id(x)]
        return origin if self._is_unchanged(tensor) and self._is_unchanged(origin) else None

    def _record_product(self, factors: Any) -> None:
        weighing = factors[:1] if self.products is MATRIX_PRODUCTS else factors
        for factor in weighing:
            origin = self._origin(factor)
            if origin is not None and all(known.source is not origin for known in self.proven):
                self.proven.append(AttentionWeights(precise(origin), origin))


def _state(x: Tensor) -> int | Tensor:
    """State that shows in-place modification: the version counter, or a copy of an inference tensor, which has none."""
    return x.clone() if x.is_inference() else x._version


def _over_last_axis(output: Tensor, args: Any, kwargs: Any) -> bool:
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return axis in (-1, output.ndim - 1)
