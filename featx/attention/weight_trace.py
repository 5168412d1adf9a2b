"""Watches one module compute attention, and proves which tensor its weights are.

What goes into `F.scaled_dot_product_attention` defines the weights in it (https://arxiv.org/abs/1706.03762), though the
kernel never writes them down. A module that computes step by step is followed: its weights are what leaves a softmax
over the last axis and, unchanged but for dropout and precision, weighs values in a product. Whatever mixes heads or
changes weights in between breaks that chain, and nothing is proven.
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
# What gives the gradient of the weights to the one that asks, during a backward pass.
OnGradient = Callable[[Callable[[Tensor], None]], None]


@torch.no_grad()
def probabilities(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query keyᵀ · scale + mask), the weights inside `F.scaled_dot_product_attention`, before dropout.

    query, key: (..., heads, queries, dim), (..., heads, keys, dim), seen as the kernel does under autocast. Returns
    (..., heads, queries, keys), in float32 or the inputs' precision, whichever is higher. A query whose keys are all
    masked has zeros.
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
    """From the gradient of what attention puts out to that of its weights: of `weights @ value`, output valueᵀ.

    output: (..., heads, queries, dim); value: (..., heads, keys, dim), or fewer heads which are repeated.
    """
    value = value.repeat_interleave(heads // value.shape[-3], dim=-3)
    return precise(output) @ precise(value).transpose(-2, -1)


def as_computed(x: Tensor) -> Tensor:
    """The tensor with the values that a kernel under the present autocast reads, in float32 or more."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype == torch.float32:
        x = x.to(torch.get_autocast_dtype(device))
    return precise(x)


def precise(x: Tensor) -> Tensor:
    """In float32, or more if it is."""
    x = x.detach()
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights (B, heads, queries, keys), detached, and the tensor whose gradient tells theirs.

    to_gradient: from the gradient of `source` to that of the weights.
    """

    values: Tensor
    source: Tensor
    to_gradient: Callable[[Tensor], Tensor] = precise


class Watch(TorchFunctionMode):
    """Follows the calls inside one module; afterwards `proven` has the weights it used.

    separable: the weights multiply keys one by one, as in MobileViTv2, instead of values in a matrix product.
    grow: let the graph begin at the weights where nothing before them wants a gradient.
    """

    def __init__(self, separable: bool = False, grow: bool = False) -> None:
        super().__init__()
        self.products = PRODUCTS if separable else MATRIX_PRODUCTS
        self.grow = grow
        self.proven: list[Weights] = []
        self._weights: dict[int, tuple[Tensor, Tensor]] = {}  # by id: the tensor, and the softmax it came from
        self._states: dict[int, int | Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._fused(output, *args, **kwargs)
        if func in SOFTMAX and _over_last_axis(output, args, kwargs):
            output = self._begin(output)
            self._follow(output, output)
        elif func in SAME_WEIGHTS and (origin := self._origin(args[0] if args else kwargs.get("input"))) is not None:
            self._follow(output, origin)
        elif func in self.products:
            self._use(args)
        return output

    def unchanged(self) -> bool:
        """Whether nothing wrote into the weights after they were proven."""
        return all(self._is_unchanged(weights.source) for weights in self.proven)

    def _is_unchanged(self, x: Tensor) -> bool:
        state = self._states.get(id(x))
        if isinstance(state, Tensor):
            return torch.equal(x, state)
        return state is None or state == x._version

    def _fused(
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
        if self.grow:  # only then the output itself matters, by its gradient
            self._states[id(output)] = _state(output)
        self.proven.append(Weights(values, output, to_gradient))
        return output

    def _begin(self, x: Tensor) -> Tensor:
        """The same values, with a graph if `grow` asks for one."""
        if self.grow and not x.requires_grad and torch.is_grad_enabled():
            return x.requires_grad_().clone()  # a clone, because a leaf of the graph must not be written into
        return x

    def _follow(self, x: Tensor, origin: Tensor) -> None:
        self._weights[id(x)] = x, origin
        self._states.setdefault(id(x), _state(x))

    def _origin(self, x: object) -> Tensor | None:
        """The softmax whose weights `x` still has; None if it has none, or other values by now."""
        if id(x) not in self._weights:
            return None
        found, origin = self._weights[id(x)]
        return origin if self._is_unchanged(found) and self._is_unchanged(origin) else None

    def _use(self, factors: Any) -> None:
        weighing = factors[:1] if self.products is MATRIX_PRODUCTS else factors
        for factor in weighing:
            origin = self._origin(factor)
            if origin is not None and all(known.source is not origin for known in self.proven):
                self.proven.append(Weights(precise(origin), origin))


def _state(x: Tensor) -> int | Tensor:
    """What tells whether it was written into: its version, or its values where PyTorch counts no versions."""
    return x.clone() if x.is_inference() else x._version


def _over_last_axis(output: Tensor, args: Any, kwargs: Any) -> bool:
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return axis in (-1, output.ndim - 1)
